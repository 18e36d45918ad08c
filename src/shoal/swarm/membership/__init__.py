"""Private swarms: who is a member, and that nobody else is answered (docs/concepts/membership.md)."""
