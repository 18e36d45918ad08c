"""Floors under the quality of servers' weights, by what servers say of them: who meets one, and how an error tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.route_options import RouteOptions

MAX_NAMED = 8
"""Servers that an error names."""


class Floor(NamedTuple):
    """An option that demands something, what is demanded (None: nothing), and what a server says of it (None: nothing).

    `least`: whether more is better.
    """

    option: str
    unit: str
    least: bool
    demanded: Callable[[RouteOptions], float | None]
    said: Callable[[ServerRecord], float | None]

    def meets(self, server: ServerRecord, options: RouteOptions) -> bool:
        """Whether a server has what is demanded, by its own word. One that does not say has not."""
        demanded, said = self.demanded(options), self.said(server)
        if demanded is None:
            return True
        return said is not None and (said >= demanded if self.least else said <= demanded)

    def told(self, servers: Sequence[ServerRecord], options: RouteOptions) -> str:
        """What is demanded, and what those of these servers say that do not meet it, by name; empty where all do."""
        demanded = self.demanded(options)
        below = sorted((one.name or one.peer[:8], self._word(one)) for one in servers if not self.meets(one, options))
        if demanded is None or not below:
            return ""
        named = [" ".join(words) for words in below[:MAX_NAMED]]
        more = [f"and {len(below) - MAX_NAMED} more"] if len(below) > MAX_NAMED else []
        return f"{self.option} demands {demanded:.4g} {self.unit}: {', '.join([*named, *more])}"

    def _word(self, server: ServerRecord) -> str:
        said = self.said(server)
        return "does not say" if said is None else f"says {said:.4g}"


FLOORS = (
    Floor(
        "min_bits",
        "bits per weight",
        True,
        lambda options: options.min_bits or None,
        lambda server: server.bits_per_weight or None,
    ),
    Floor("max_kl", "nats at most", False, lambda options: options.max_kl, lambda server: server.kl_nats),
)
