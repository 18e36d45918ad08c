"""The patched byte copy: equal to the original, and only where the original is the one that is known."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shoal.transport.iroh_patch import apply, recognised


def shipped(folder: Path, change: tuple[str, str] = ("", "")) -> Any:
    """The class as the installed package's file has it, unpatched, from a copy; with a change, if one is wanted."""
    spec = importlib.util.find_spec("iroh")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).with_name("iroh_ffi.py").read_text()
    (found,) = (node for node in ast.parse(text).body if getattr(node, "name", "") == "_UniffiRustBufferBuilder")
    source = ast.get_source_segment(text, found)
    assert source is not None
    copy = folder / "copied_binding.py"
    copy.write_text("import contextlib, ctypes, struct\n\n" + source.replace(*change) + "\n")
    copied = importlib.util.spec_from_file_location("copied_binding", copy)
    assert copied is not None
    assert copied.loader is not None
    module = importlib.util.module_from_spec(copied)
    copied.loader.exec_module(module)
    return module._UniffiRustBufferBuilder


def generated() -> Any:
    """The installed binding's class, patched."""
    builder = importlib.import_module("iroh.iroh_ffi")._UniffiRustBufferBuilder
    assert apply(builder)
    return builder


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000, 1_000_000])
def test_bytes_arrive_as_they_were(size: int) -> None:
    """Any number of bytes, of any bytes-like type, after and before other values."""
    data = Random(size).randbytes(size)
    for value in (data, bytearray(data), memoryview(data)):
        builder = generated()()
        builder.write_i32(size)
        builder.write(value)
        builder.write(b"end")
        buffer = builder.finalize()
        try:
            assert buffer.data[: buffer.len] == size.to_bytes(4, "big") + data + b"end"
        finally:
            buffer.free()


def test_twice_is_harmless() -> None:
    """The second time finds its work done."""
    builder = generated()
    method = builder.write
    assert apply(builder)
    assert builder.write is method


def test_the_shipped_method_is_known(tmp_path: Path) -> None:
    """The method in the package's file is the one that gets replaced; when this fails, look whether the patch can go."""
    builder = shipped(tmp_path)
    before = builder.write
    assert recognised(builder)
    assert apply(builder)
    assert builder.write is not before
    assert not recognised(builder)


def test_a_changed_method_is_left_alone(tmp_path: Path) -> None:
    """One changed line is enough."""
    builder = shipped(tmp_path, ("for i, byte in enumerate(value):", "for i, byte in enumerate(bytes(value)):"))
    before = builder.write
    assert not apply(builder)
    assert builder.write is before


def test_another_shape_is_left_alone() -> None:
    """A method that is not the known one, or whose source is not there, stays as it is."""

    class Newer:
        def write(self, value: bytes) -> None:
            self.rbuf = value

    class Native:
        write = bytes.join

    for builder in (Newer, Native):
        before = builder.write
        assert not recognised(builder)
        assert not apply(builder)
        assert builder.write == before
