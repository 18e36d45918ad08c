"""AWQ's files in their "gemm" layout (AutoAWQ): 4 bits, whole zero points, groups in order.

`KEY.qweight` int32 [inputs, outputs / 8] and `qzeros` int32 [groups, outputs / 8] hold eight outputs in a word, in the order
0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up; `scales` [groups, outputs] are floats.
"""

from __future__ import annotations

import numpy as np
import torch

from shoal.errors import CheckpointError
from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section
from shoal.model.quant.stored_tensors import Array, Stored, floats, integers, unsigned

BITS = 4
PARTS = ("qweight", "qzeros", "scales")
IN_WORD = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each four bits of a word are of."""


def dequantize(tensors: Stored, key: str) -> Array:
    """The weights [inputs, outputs] of one layer in its scales' dtype, fp16 for most; bf16 comes as fp32.

    Raises CheckpointError naming what is wrong.
    """
    whole = read(tensors, key).dequantized().T.contiguous()
    return (whole.float() if whole.dtype == torch.bfloat16 else whole).numpy()


def read(tensors: Stored, key: str) -> PackedMatrix:
    """One layer's matrix; raises CheckpointError naming what is wrong."""
    codes, zeros = (_unpacked(integers(tensors, f"{key}.{part}", np.int32, 2)) for part in PARTS[:2])
    (inputs, outputs), groups = codes.shape, zeros.shape[0]
    if zeros.shape[1] != outputs or not groups or inputs % groups:
        raise CheckpointError(f"{key}.qzeros for {list(zeros.shape)} does not fit {inputs} inputs, {outputs} outputs")
    scales = floats(tensors, f"{key}.scales", [groups, outputs])
    section = Section(
        inputs,
        BITS,
        inputs // groups,
        Levels(scales.T.contiguous()),
        zeros=torch.from_numpy(np.ascontiguousarray(zeros.T)),
    )
    return PackedMatrix(torch.from_numpy(np.ascontiguousarray(codes.T)), (section,), dtype=scales.dtype)


def _unpacked(words: Array) -> Array:
    """Words [rows, n] → codes [rows, 8 n]."""
    shifts = np.empty(8, np.uint32)
    shifts[list(IN_WORD)] = np.arange(8, dtype=np.uint32) * BITS
    return (unsigned(words)[..., None] >> shifts & 15).astype(np.uint8).reshape(words.shape[0], 8 * words.shape[1])
