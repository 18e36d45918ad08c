"""A place in a session's route, and who is there for it."""

from __future__ import annotations

from shoal.client.hop import HopControl


class Stage:
    """A place in the route: the hop that holds it, and hops that stand by for it."""

    def __init__(self, control: HopControl) -> None:
        self.control = control
        self.standby: list[HopControl] = []
        self.look_again_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether somebody stands by who is alive."""
        return bool(self.standby) and all(control.lost is None for control in self.standby)
