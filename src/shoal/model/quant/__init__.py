"""Matrices of few bits: one packed form, and the file formats that map into it (docs/concepts/packed-form.md)."""
