"""A real server in a process of its own that fails on command: one JSON object a line on standard input.

Commands (`do`): links {peers, up, delay_s, rate_bytes_s}, corrupt {count}, hang {seconds}, full {on}, drain, stats. Each is
answered by a line on standard output. The end of the input ends the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
import time
from functools import partial
from typing import Any

from shoal.model.kernels import strict
from shoal.types import PeerId, Span
from tests.support.faults import Faults
from tests.support.link_plan import EmulatedLink


async def _serve(options: dict[str, Any]) -> None:
    from shoal.server.serve_options import ServeOptions
    from shoal.server.server import Server

    blocks = Span.parse(options.pop("blocks"))
    config = ServeOptions(**{**options, "blocks": blocks, "peers": tuple(options.get("peers", ()))})
    faults = Faults()
    orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    _read_orders(orders)
    async with Server(config, wrap=faults.wrap) as server:
        _say({"event": "ready", "ticket": server.ticket, "peer": server.identity.peer})
        max_sessions = server.sessions.max_sessions
        while (order := await orders.get()) is not None:
            answer: dict[str, Any] = {"event": "done"}
            match order["do"]:
                case "links":
                    rate = order.get("rate_bytes_s") or math.inf
                    link = EmulatedLink(delay_s=order.get("delay_s", 0.0), rate_bytes_s=rate, up=order.get("up", True))
                    faults.set_links(server.identity.peer, [PeerId(peer) for peer in order["peers"]], link)
                case "corrupt":
                    faults.corrupt = order["count"]
                case "hang":
                    hanging = asyncio.ensure_future(server.worker.between_steps(partial(time.sleep, order["seconds"])))
                    hanging.add_done_callback(lambda task: task.exception())
                case "full":
                    server.sessions.max_sessions = 0 if order["on"] else max_sessions
                case "drain":
                    answer["left"] = await server.drain(order.get("deadline_s", 30.0))
                case "stats":
                    answer |= {"rows": server.worker.stats.rows, "sessions": len(server.sessions)}
            _say(answer)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _read_orders(orders: asyncio.Queue[dict[str, Any] | None]) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(orders.put_nowait, json.loads(line))
        loop.call_soon_threadsafe(orders.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()


if __name__ == "__main__":
    strict.strict_mode_environment()
    asyncio.run(_serve(json.loads(sys.argv[1])))
