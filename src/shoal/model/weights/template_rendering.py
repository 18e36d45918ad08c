"""What renders a chat template, in a process of its own; see `chat_template`.

It runs in jinja2's sandbox and sees plain data only. The process asks its system to bound its time and memory before it reads
the template. Nothing of Shoal is imported, so that it starts at once.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_CPU_S = 3
"""Of computing, the start of the process included. A template takes a few milliseconds."""

MAX_MEMORY_BYTES = 1 << 30
MAX_RENDERED_CHARS = 1 << 24
"""More than any context holds."""

MAX_ERROR_CHARS = 500


def main() -> None:
    """Read a template, its special tokens and what it is to render as JSON; write the text or the error as JSON."""
    _bound()
    try:
        asked = json.load(sys.stdin)
        answer = {"text": rendered(asked["template"], asked["fields"])}
    except Exception as error:  # a stranger's program raises what it likes
        answer = {"error": f"{error or type(error).__name__}"[:MAX_ERROR_CHARS]}
    json.dump(answer, sys.stdout)


def rendered(template: str, fields: Mapping[str, Any]) -> str:
    """The text, of a bounded length; raises whatever the template raises."""
    pieces, length = [], 0
    for piece in environment().from_string(template).generate(**fields):
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise TemplateError(f"it writes more than {MAX_RENDERED_CHARS} characters")
        pieces.append(piece)
    return "".join(pieces)


def environment() -> Environment:
    """What a template may use, as transformers has it."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


def _bound() -> None:
    """Let the system end this process when it takes too much; where it cannot, the one that waits ends it."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_CPU": MAX_CPU_S, "RLIMIT_AS": MAX_MEMORY_BYTES, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit + (name == "RLIMIT_CPU")))
        except (AttributeError, OSError, ValueError):
            continue  # not on this system
    signal.signal(signal.SIGXCPU, _too_long)


def _too_long(*_: object) -> NoReturn:
    raise TemplateError(f"it computes for more than {MAX_CPU_S} s")


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks what an assistant said; here the text inside is all that matters."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Extension: the block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_call"), [], [], body).set_lineno(line)

    def _call(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` in a template, without a class whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """See `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in a template, without names that lead out of the sandbox."""

    def __init__(*args: Any, **fields: Any) -> None:  # `self` may be a field's name
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **fields)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot store {name!r} in a namespace")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
