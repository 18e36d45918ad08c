"""A place in a session's route, and who is there for it."""

from __future__ import annotations

from shoal.client.session.hop_client import HopClient


class Stage:
    """A place in the route: the hop that holds it, and hops that stand by for it."""

    def __init__(self, control: HopClient) -> None:
        self.control = control
        self.standbys: list[HopClient] = []
        self.look_again_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether somebody stands by who is alive."""
        return bool(self.standbys) and all(control.lost is None for control in self.standbys)
