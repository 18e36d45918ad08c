"""Damaged layers: one tensor of a sound one made another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEY = "model.layers.0.mlp.up_proj"

Change = Callable[[dict[str, Any]], None]


def same(found: Any, expected: Any) -> bool:
    """Whether both have the same dtype, shape and bits."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def put(name: str, value: Callable[[Any], Any]) -> Change:
    """One tensor made another one."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{KEY}.{name}"] = value(tensors[f"{KEY}.{name}"].copy())

    return change


def at(index: Any, number: float) -> Callable[[Any], Any]:
    """One number made another one."""

    def changed(array: Any) -> Any:
        array[index] = number
        return array

    return changed
