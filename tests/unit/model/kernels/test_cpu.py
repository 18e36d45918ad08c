"""The compiled library as it is found: switched off, of another age, of another processor."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import types
from pathlib import Path

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.model.kernels import cpu
from shoal.model.kernels.panels import pack
from tests.kernels.natively import needs_kernels


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SHOAL_KERNELS=torch`; `avx2` limits it."""
    monkeypatch.setenv(cpu.VARIABLE, "torch")
    assert cpu.library.__wrapped__() is None
    monkeypatch.setenv(cpu.VARIABLE, "avx2")
    assert cpu.instruction_set() in (0, cpu.AVX2)


@needs_kernels
def test_another_interface_is_left_alone_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its structs would be read wrongly; the user hears why everything is slow."""
    monkeypatch.setattr(cpu, "ABI", cpu.ABI + 1)
    with caplog.at_level(logging.WARNING, "shoal"):
        assert cpu.library.__wrapped__() is None
    assert f"have interface {cpu.ABI - 1}, this Shoal needs {cpu.ABI}" in caplog.text


def test_a_library_that_cannot_be_loaded_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What is installed and broken is no choice of the user; what is not installed is."""
    broken = types.ModuleType("shoal_kernels")
    broken.LIBRARY = tmp_path / "libshoal.so"  # type: ignore[attr-defined]
    broken.LIBRARY.write_bytes(b"no library")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shoal_kernels", broken)
    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING, "shoal"):
        assert cpu.library.__wrapped__() is None
    assert "cannot be loaded" in caplog.text
    assert "libshoal.so" in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, "shoal_kernels", None)
    assert cpu.library.__wrapped__() is None
    assert not caplog.text


def test_without_kernels_there_are_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of a block, and no context opens."""
    monkeypatch.setattr(cpu, "library", lambda: None)
    assert cpu.block_fields.__wrapped__() == {}
    assert not cpu.available()
    assert cpu.instruction_set() == 0
    with pytest.raises(RuntimeError, match="not available"):
        cpu.Context(1)


@needs_kernels
def test_blocks_are_laid_out_as_the_library_says() -> None:
    """Matrices, vectors, numbers: in its order and of its size."""
    kinds = list(cpu.block_fields().values())
    assert [kind for index, kind in enumerate(kinds) if kind not in kinds[:index]] == [
        "linear",
        "vector",
        "number",
        "integer",
    ]
    struct = cpu.block_struct()
    assert [name for name, _ in struct._fields_] == list(cpu.block_fields())  # type: ignore[misc]
    block = struct(window=7)
    pointers = cpu.block_pointers([block])
    assert ctypes.cast(pointers[0], ctypes.POINTER(struct)).contents.window == 7


@needs_kernels
def test_a_library_that_disagrees_on_the_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that Python lays out otherwise would move all that follow."""
    fields = {"qkv": "linear", "window": "integer"}
    monkeypatch.setattr(cpu, "block_fields", lambda: fields)
    with pytest.raises(RuntimeError, match="bytes large"):
        cpu.block_struct.__wrapped__()


@needs_kernels
def test_a_context_closes_twice() -> None:
    """The second time does nothing; a product before that is the matrix's."""
    context, matrix, rows = cpu.Context(2), numbers(1, 64, 40), numbers(2, 5, 40)
    out = torch.empty(5, 64)
    context.linear(cpu.linear_struct(pack(matrix)), rows, out)
    torch.testing.assert_close(out, rows @ matrix.T)
    context.close()
    context.close()


@needs_kernels
def test_sizes_are_checked_before_the_library_sees_them() -> None:
    """Rows of another width, room that is too small, tensors that are not what they should be; no rows are no work."""
    linear = cpu.linear_struct(pack(numbers(1, 70, 40)))
    with contextlib.closing(cpu.Context(1)) as context:
        for rows, out, message in (
            (numbers(2, 5, 39), torch.empty(5, 128), "not .n, 40."),
            (numbers(2, 40), torch.empty(5, 128), "not .n, 40."),
            (numbers(2, 5, 40), torch.empty(4, 128), "less than"),
            (numbers(2, 5, 40), torch.empty(5, 127), "less than"),
            (numbers(2, 5, 40), torch.empty(5, 128, dtype=torch.float64), "not contiguous fp32"),
            (numbers(2, 5, 40), torch.empty(128, 5).T, "not contiguous fp32"),
        ):
            with pytest.raises(ValueError, match=message):
                context.linear(linear, rows, out)
        context.linear(linear, numbers(2, 0, 40), torch.empty(0, 128))
        with pytest.raises(ValueError, match="pieces"):
            context.read(torch.ones(1024), 0)
    for threads in (0, -1, cpu.MAX_THREADS + 1):
        with pytest.raises(ValueError, match=f"{threads} threads"):
            cpu.Context(threads)
