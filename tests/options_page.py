"""docs/options.md, made from the fields of the options structs: `python -m tests.options_page` writes it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions
from shoal.model.nn.sampling_params import SamplingParams
from shoal.options import Option, Options, options_of
from shoal.quantize.quantize_options import QuantizeOptions
from shoal.server.serve_options import ServeOptions
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.routing.route_options import RouteOptions

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

STRUCTS: dict[type[Options], str] = {
    ConnectOptions: "Keywords of `connect`; flags of `generate`, `chat`, `resume` and `status`.",
    ReplyOptions: "Keywords of `generate` and `stream`; flags of `generate`.",
    SamplingParams: "Keywords of `generate`, `stream` and `say`; flags of `generate` and `chat`.",
    SessionOptions: "Keywords of `connect`, `generate`, `stream` and `chat`; flags of `generate` and `chat`.",
    RouteOptions: "Keywords of `connect`, `generate`, `stream` and `chat`; flags of `generate` and `chat`.",
    DiscoveryOptions: "Fields of `DiscoveryOptions`; flags of `serve` and of the client's commands.",
    ServeOptions: "Fields of `ServeOptions`; flags of `serve`.",
    QuantizeOptions: "Fields of `QuantizeOptions`; flags of `quantize`.",
}

HEAD = """# Options

Every option is a field of a frozen struct, with its bounds and its help. The keywords of Python, the flags of the
commands and this page follow from the fields. A test checks that the page says what the code does. An option without a
flag is for Python alone. [Adding an option](adding-an-option.md) tells how one is made.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for struct, where in STRUCTS.items() for line in _section(struct, where))])


def _section(struct: type[Options], where: str) -> Iterator[str]:
    yield from (f"## {struct.__name__}", "", where, "", "| keyword | flag | value | default | what it does |")
    yield "|--|--|--|--|--|"
    for one in options_of(struct).values():
        flag = f"`{one.flag}`" if one.info.shown else ""
        yield f"| `{one.name}` | {flag} | {one.form.replace('|', 'or')} | {_default(one)} | {one.info.help} |"
    yield ""


def _default(one: Option) -> str:
    value: Any = one.default
    if (
        value is None
        or type(value).__name__ == "NoDefault"
        or isinstance(value, enum.Enum)
        or "NODEFAULT" in repr(value)
    ):
        return ""
    if isinstance(value, tuple | frozenset | dict):
        return "" if not value else f"`{sorted(value)}`"
    if isinstance(value, str):
        return f"`{value}`" if value else ""
    literal = any(get_origin(kind) is Literal and value in get_args(kind) for kind in one.kinds)
    return f"`{value}`" if literal or not isinstance(value, float) else f"`{value:g}`"


if __name__ == "__main__":
    PAGE.write_text(page())
