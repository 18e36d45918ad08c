"""Values within the bounds of any msgspec struct, and just beyond them, from its own declaration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from shoal.types import NO_CONTROLS, PRINTABLE_ASCII, Span

_ALPHABETS = {
    PRINTABLE_ASCII: st.characters(min_codepoint=0x20, max_codepoint=0x7E),
    NO_CONTROLS: st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zl", "Zp")),
}
"""Drawn faster than by their patterns."""


def values(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Structs of this kind, each field anywhere within its bounds."""
    return _strategy(inspect.type_info(kind))


def numbers_without_bounds(kind: type[msgspec.Struct]) -> list[str]:
    """The fields, nested ones too, that hold a number which could be anything, or text or bytes of any length."""
    return [path for path, info in _leaves(kind.__name__, inspect.type_info(kind)) if not _is_bounded(info)]


def breaches(kind: type[msgspec.Struct], sound: Any) -> Iterator[tuple[str, Any]]:
    """(field, struct) where the struct is `sound` but for that field, which is just out of its bounds."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        for wrong in _beyond(field.type):
            yield field.name, msgspec.structs.replace(sound, **{field.name: wrong})


def sizes_at_most(kind: type[msgspec.Struct], text: str = "é") -> Any:
    """The struct with each field as large as its bounds allow; `text` is a character for texts without a pattern."""
    return _largest(inspect.type_info(kind), text)


def _strategy(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.StructType(cls=cls) if cls is Span:
            blocks = _strategy(info.fields[0].type)
            return st.tuples(blocks, blocks).map(lambda ends: Span(*sorted(ends)))
        case inspect.StructType():
            return st.builds(info.cls, **{field.name: _strategy(field.type) for field in info.fields})
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.IntType():
            return st.integers(info.ge, info.le)
        case inspect.FloatType():
            return st.floats(info.ge, info.le)
        case inspect.StrType(pattern=pattern) if pattern in _ALPHABETS:
            return st.text(_ALPHABETS[pattern], max_size=info.max_length)
        case inspect.StrType(pattern=str()):
            return st.from_regex(info.pattern or "").filter(lambda text: len(text) <= (info.max_length or 64))
        case inspect.StrType():
            return st.text(min_size=info.min_length or 0, max_size=info.max_length)
        case inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=info.max_length)
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.UnionType():
            return st.one_of(*map(_strategy, info.types))
        case inspect.VarTupleType():
            item = _strategy(info.item_type)
            most = min(info.max_length or 0, 4)
            return st.lists(item, min_size=info.min_length or 0, max_size=most).map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(_strategy, info.item_types))
    raise AssertionError(f"no strategy for {info}")


def _leaves(path: str, info: inspect.Type) -> Iterator[tuple[str, inspect.Type]]:
    match info:
        case inspect.StructType():
            for field in info.fields:
                yield from _leaves(f"{path}.{field.name}", field.type)
        case inspect.UnionType():
            for one in info.types:
                yield from _leaves(path, one)
        case inspect.VarTupleType():
            yield path, info
            yield from _leaves(f"{path}[]", info.item_type)
        case inspect.TupleType():
            for index, one in enumerate(info.item_types):
                yield from _leaves(f"{path}[{index}]", one)
        case _:
            yield path, info


def _is_bounded(info: inspect.Type) -> bool:
    match info:
        case inspect.IntType() | inspect.FloatType():
            return info.ge is not None and info.le is not None
        case inspect.StrType():
            return info.max_length is not None or (info.pattern or "").startswith("^[0-9a-f]{64}")
        case inspect.BytesType() | inspect.VarTupleType():
            return info.max_length is not None
        case inspect.BoolType() | inspect.LiteralType() | inspect.NoneType():
            return True
    return False


def _beyond(info: inspect.Type) -> Iterator[Any]:
    match info:
        case inspect.StructType(cls=cls) if cls is Span:
            yield from (Span(-1, 2), Span(0, (info.fields[0].type.le or 0) + 1))  # type: ignore[attr-defined]
        case inspect.StructType():
            sound = _largest(info, "x")
            yield from (wrong for _, wrong in breaches(info.cls, sound))
        case inspect.IntType():
            yield from ((info.ge or 0) - 1, (info.le or 0) + 1, 1 << 64, 1 << 200, 1.5, "1")
        case inspect.FloatType():
            yield from ((info.ge or 0.0) - 1.0, 2.0 * (info.le or 0.0), float("nan"), float("inf"), "1")
        case inspect.StrType():
            yield from ("x" * ((info.max_length or 64) + 1), "\udcff", b"x")
        case inspect.BytesType():
            yield bytes((info.max_length or 0) + 1)
            if info.min_length:
                yield bytes(info.min_length - 1)
        case inspect.LiteralType():
            yield "something else"
        case inspect.VarTupleType():
            item = _largest(info.item_type, "x")
            yield (item,) * ((info.max_length or 0) + 1)
            yield from ((wrong,) for wrong in _beyond(info.item_type))


def _largest(info: inspect.Type, text: str) -> Any:
    match info:
        case inspect.StructType(cls=cls) if cls is Span:
            most = info.fields[0].type.le  # type: ignore[attr-defined]
            return Span(most - 1, most)
        case inspect.StructType():
            return info.cls(**{field.name: _largest(field.type, text) for field in info.fields})
        case inspect.BoolType():
            return True
        case inspect.NoneType():
            return None
        case inspect.IntType() | inspect.FloatType():
            return info.le
        case inspect.StrType():
            pattern = info.pattern or ""
            return "f" * 64 if pattern.startswith("^[0-9a-f]{64}") else text * (info.max_length or 0)
        case inspect.BytesType():
            return bytes(info.max_length or 0)
        case inspect.LiteralType():
            return max(map(str, info.values), key=len)
        case inspect.UnionType():
            return _largest(next(one for one in info.types if not isinstance(one, inspect.NoneType)), text)
        case inspect.VarTupleType():
            return (_largest(info.item_type, text),) * (info.max_length or 0)
        case inspect.TupleType():
            return tuple(_largest(one, text) for one in info.item_types)
    raise AssertionError(f"nothing is largest of {info}")
