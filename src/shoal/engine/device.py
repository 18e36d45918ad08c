"""Devices beside the processor: which names are good, how much memory there is, and the backend for one.

What is here has run on no device yet (docs/guides/serve.md); the CPU runs the same code in tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from shoal.engine.backends import TorchBackend
from shoal.engine.proof import ExecutionEnv
from shoal.errors import CapacityError, UsageError
from shoal.model.kernels.linears import device_linears
from shoal.model.nn.sdpa import DeviceAttention, find_flash

DEVICES = ("cpu", "cuda", "mps")
"""Kinds of device, as torch calls them; AMD's are "cuda" there too."""

DEVICE_SHARE = 0.8
"""The share of a CUDA device's memory that is used unless the owner says how much; the rest is for what is being computed."""


def check_device(name: str) -> None:
    """Raises UsageError for a name that means nothing here, CapacityError for a device that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r} is no device: choose one of {', '.join(DEVICES)}, or cuda:1") from None
    if device.type not in DEVICES or name.startswith("cpu:"):
        raise UsageError(f"--device is one of {', '.join(DEVICES)}, not {name}")
    count = _count(device.type)
    if (device.index or 0) >= count:
        raise CapacityError(
            f"--device {name}: torch finds {count or 'no'} device{'s' * (count != 1)} of this kind here"
        )


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or torch.backends.mps.is_available())


def device_memory_bytes(name: str) -> int | None:
    """What a server may use of a device's own memory; None where it has none, but shares the machine's."""
    if torch.device(name).type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(name).total_memory * DEVICE_SHARE)


@contextlib.contextmanager
def device_memory() -> Iterator[None]:
    """Raises CapacityError where a device's memory does not suffice for what is done inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"the device has too little memory (take fewer blocks, or lower --memory): {error}"
        ) from error


def device_backend(name: str, dtype: torch.dtype, kv_dtype: torch.dtype, exact: bool = False) -> TorchBackend:
    """Torch on a device, for weights that are kept in (or, as codes, become) `dtype`, over a cache that is read in `kv_dtype`.

    Fast by default: products in the weights' dtype, flash kernels. `exact`: the arithmetic of the CPU's plain torch, all in
    fp32, which the start-up proof may find row-exact there. Sums of 16-bit products are made in fp32 throughout, for the whole
    process.
    """
    kind = torch.device(name).type
    if exact:
        return TorchBackend(ExecutionEnv(name, kv_dtype=kv_dtype), kernel=f"torch-{kind}")
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    attention = DeviceAttention(find_flash() if kind == "cuda" else None)
    return TorchBackend(
        ExecutionEnv(name, attention, kv_dtype), device_linears(dtype), kernel=f"torch-{kind}-{attention.name}"
    )
