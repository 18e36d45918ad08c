"""Calls of the compiled kernels with sizes that cannot be, each in a process of its own: prints how each ended as JSON.

That is `returned`, `raised`, or the signal that killed it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.engine.native import NativeBlock, NativeBlocks
from shoal.engine.native_proof import canned
from shoal.kv.cache import KVCache
from shoal.model.kernels.cpu import Context, linear_struct
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.kernels.panels import pack
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import SMOLLM2

WIDTH, HIDDEN = 96, SMOLLM2.hidden_size


def _layer(context: Context, rows: Tensor) -> None:
    NativeLinear(pack(torch.ones(WIDTH, WIDTH)), context)(rows)


def _room(context: Context, out: Tensor) -> None:
    """Two rows through a layer, into `out`."""
    context.linear(linear_struct(pack(torch.ones(WIDTH, WIDTH))), torch.ones(2, WIDTH), out)


def _block(context: Context, rows: Tensor) -> None:
    """Rows through a block."""
    cache = KVCache(SMOLLM2.cache_shape, 4)
    cache.open("one", Span(0, 1), 64)
    cache.grow("one", 64)
    blocks = NativeBlocks(SMOLLM2, 0, [NativeBlock(SMOLLM2, canned(SMOLLM2))], cache, context)
    blocks.run(range(1), [Rows("one", 0, rows)])


CALLS: dict[str, Callable[[Context], object]] = {
    "a layer, no rows": lambda context: _layer(context, torch.empty(0, WIDTH)),
    "a layer, narrower rows": lambda context: _layer(context, torch.ones(2, WIDTH - 1)),
    "a layer, wider rows": lambda context: _layer(context, torch.ones(2, WIDTH + 1)),
    "a layer, room for one row of two": lambda context: _room(context, torch.empty(1, 2 * 64)),
    "a block, narrower rows": lambda context: _block(context, torch.ones(2, HIDDEN - 1)),
    "a block, wider rows": lambda context: _block(context, torch.ones(2, HIDDEN + 1)),
    "reading in no pieces": lambda context: context.read(torch.ones(1024), 0),
    "fewer threads than none": lambda context: Context(-1),
}
EMPTY = ("a layer, no rows",)
"""These may return as well: nothing is a right answer for no rows."""


def _ending(call: Callable[[Context], object]) -> str:
    child = os.fork()
    if child == 0:
        try:
            call(Context(1))
        except Exception:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "returned", 1: "raised"}.get(code, f"signal {-code}")


if __name__ == "__main__":
    print(json.dumps({name: _ending(call) for name, call in CALLS.items()}))
