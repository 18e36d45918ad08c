"""Chat templates: rendered as transformers renders them, without importing it.

A template comes with a model and is a stranger's program: it runs in jinja2's sandbox and sees plain data only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from shoal.errors import UsageError

Message = Mapping[str, str]
T = TypeVar("T")

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message's reasoning is given. Templates read the first; gpt-oss's reads the second."""


class ChatTemplate:
    """A template with the special tokens that it writes. Raises UsageError for one that cannot be compiled."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        self._special_tokens = dict(special_tokens)
        self._template = _guarded(lambda: environment.from_string(source))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the assistant speaks; raises UsageError where the template refuses it."""
        if not messages:
            raise UsageError("a conversation needs at least one message")
        return _guarded(
            lambda: self._template.render(
                messages=[_with_reasoning(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        )


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:  # a stranger's program raises what it likes
        raise UsageError(f"the model's chat template refuses this conversation: {error}") from error


def _with_reasoning(message: Message) -> dict[str, str]:
    """A message without empty fields, its reasoning under each name that templates read."""
    plain = {str(key): value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


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
