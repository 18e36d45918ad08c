"""Options: the fields of a frozen struct are the source of the Python interface, the command line and the guides' tables.

A field is `Annotated[type, option("What it does.")]`. Its name is the keyword in Python; the command line derives the flag.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

import msgspec

from shoal.errors import ShoalError, UsageError

GROUPS = ("Model", "Memory", "Network", "Swarm", "Reply", "Session", "Route", "Limits", "Output")
"""The groups of options, in the order in which help and guides show them."""


ALSO_CALLED = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "do_sample": "temperature",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "ticket": "peers",
    "tickets": "peers",
}
"""Names that other libraries have for our options."""


class OptionInfo(NamedTuple):
    """What is said of an option beside its type: help text, group, bounds, and how the command line takes it.

    `form`: what a value has to be, where type and bounds do not say it in a user's words. `parse` turns another form into
    the value: the text of the command line, with `repeated` several of them, `envvar` the environment's. `flag`: its name
    there, made from the field's if empty. Without `shown` the command line does not take it.
    """

    help: str
    group: str = "Session"
    least: float | None = None
    above: float | None = None
    most: float | None = None
    flag: str = ""
    metavar: str = ""
    form: str = ""
    parse: Callable[[Any], Any] | None = None
    repeated: bool = False
    envvar: str = ""
    shown: bool = True


option = OptionInfo


class Option(NamedTuple):
    """A field of an options struct."""

    name: str
    type: Any
    default: Any
    info: OptionInfo

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.info.flag or f"--{self.name.replace('_', '-')}"

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its value may have; None stands for itself."""
        alternatives = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        return tuple(None if one is type(None) else one for one in alternatives)

    @property
    def form(self) -> str:
        """What a value has to be, in words."""
        return self.info.form or " or ".join(_form(kind, self.info) for kind in self.kinds if kind is not None)

    def check(self, value: object) -> None:
        """Raises UsageError that names the option, for a value of another type or beyond the bounds."""
        if not any(_fits(kind, value, self.info) for kind in self.kinds):
            raise self._refused(value)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple | frozenset) else ():
            if isinstance(text, str):
                check_text(self.name, text)

    def _refused(self, value: object) -> UsageError:
        return UsageError(f"{self.name} cannot be {value!r}: it is {self.form}", field=self.name)

    def taken(self, value: Any) -> Any:
        """The value that is meant by another form of it. Raises UsageError that names the option where there is none."""
        value = _plain_number(self.kinds, value)
        if self.info.parse is None or any(_fits(kind, value, self.info) for kind in self.kinds if kind is not str):
            return value
        try:
            parsed = self.info.parse(value)
        except UsageError as error:
            reason = str(error).removeprefix(f"{self.name} cannot be {value!r}: ").removesuffix(f", not {value!r}")
        except (ShoalError, AttributeError, TypeError, ValueError, OverflowError):
            reason = f"it is {self.form}"
        else:
            if not any(_fits(kind, parsed, self.info) for kind in self.kinds):
                raise self._refused(value)
            return parsed
        raise UsageError(f"{self.name} cannot be {value!r}: {reason}", field=self.name)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all options structs. Every field is checked when one is made; a field that is a struct of options is not.

    Another form of a value, which `parse` takes, is turned into the value.
    """

    def __post_init__(self) -> None:
        for one in options_of(type(self)).values():
            given = getattr(self, one.name)
            value = one.taken(given)
            if value is not given:
                msgspec.structs.force_setattr(self, one.name, value)
            one.check(value)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Made from keywords, whose values may have other forms too; raises UsageError for one that is no option."""
        check_names(given, cls)
        return cls(**{name: options_of(cls)[name].taken(value) for name, value in given.items()})

    def changed(self, given: Mapping[str, Any]) -> Self:
        """These options with other values for some keywords; raises as `of` does."""
        check_names(given, type(self))
        known = options_of(type(self))
        return msgspec.structs.replace(self, **{name: known[name].taken(value) for name, value in given.items()})


@functools.cache
def options_of(struct: type[Options]) -> dict[str, Option]:
    """The options of a struct by name, in the order of its fields."""
    hints = get_type_hints(struct, include_extras=True)
    found = {}
    for one in msgspec.structs.fields(struct):
        hint = hints[one.name]
        info = next((entry for entry in get_args(hint)[1:] if isinstance(entry, OptionInfo)), None)
        if get_origin(hint) is not Annotated or info is None:
            continue
        default = one.default_factory() if one.default_factory is not msgspec.NODEFAULT else one.default
        found[one.name] = Option(one.name, get_args(hint)[0], default, info)
    return found


def check_names(given: Mapping[str, Any], *structs: type[Options]) -> None:
    """Raises UsageError for a keyword that is an option of none of these structs."""
    names = {name for struct in structs for name in options_of(struct)}
    for name in given:
        if name not in names:
            meant = ALSO_CALLED.get(name) or next(iter(difflib.get_close_matches(name, names, 1)), "")
            hint = f" (did you mean {meant}?)" if meant in names else ""
            raise UsageError(f"there is no option {name!r}{hint}; there are {', '.join(sorted(names))}", field=name)


def check_text(name: str, text: str) -> None:
    """Raises UsageError for what is no text: bytes that are not UTF-8 come as lone surrogates from the command line."""
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise UsageError(f"{name} is not UTF-8: character {at + 1} is {character!a}", field=name)


def split(given: Mapping[str, Any], *structs: type[Options]) -> list[dict[str, Any]]:
    """Keywords by the first struct that has them; raises UsageError for one that is in none."""
    check_names(given, *structs)
    parts, left = [], dict(given)
    for struct in structs:
        names = [name for name in left if name in options_of(struct)]
        parts.append({name: left.pop(name) for name in names})
    return parts


def _plain_number(kinds: tuple[Any, ...], value: Any) -> Any:
    """A number of another library, such as numpy's, as Python's own; what is no number as it is."""
    if value is None or isinstance(value, bool | str | bytes) or type(value) in (int, float):
        return value
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        if int in kinds or any(isinstance(one, int) for kind in kinds for one in _choices(kind)):
            return operator.index(value)
        if float in kinds:
            return float(value)
    return value


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _fits(kind: Any, value: object, info: OptionInfo) -> bool:
    if kind is None or kind is Any:
        return kind is Any or value is None
    if get_origin(kind) is Literal:
        same = (one for one in _choices(kind) if isinstance(value, type(one)) and not isinstance(value, bool))
        return value in tuple(same)  # 4.0 is not the choice 4
    plain = get_origin(kind) or kind
    if plain in (int, float):
        numbers = (int, float) if plain is float else (int,)
        return isinstance(value, numbers) and not isinstance(value, bool) and _within(value, info)
    if not isinstance(value, plain):
        return False
    return plain not in (tuple, frozenset) or _holds(value, kind)


def _holds(values: Iterable[object], kind: Any) -> bool:
    """Whether what is in a tuple or a set is of the type that it says."""
    inner = next(iter(get_args(kind)), object)
    inner = getattr(inner, "__supertype__", inner)
    return all(isinstance(one, get_origin(inner) or inner) for one in values)


def _within(value: float, info: OptionInfo) -> bool:
    return (
        not math.isnan(value)
        and (info.least is None or value >= info.least)
        and (info.above is None or value > info.above)
        and (info.most is None or value <= info.most)
    )


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "several texts",
    frozenset: "several texts",
    Path: "a path",
}


def _form(kind: Any, info: OptionInfo) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    plain = get_origin(kind) or kind
    words = _WORDS.get(plain, f"a {plain.__name__}" if isinstance(plain, type) else str(plain))
    if plain not in (int, float):
        return words
    bounds = [(" from ", info.least), (" above ", info.above), (" to ", info.most)]
    return words + "".join(
        f"{word}{bound if isinstance(bound, int) else format(bound, '.10g')}"
        for word, bound in bounds
        if bound is not None
    )
