"""A rounded matrix as the tensors of an EXL2 file: what `shoal.model.quant.exl2` reads."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.model.quant.bit_strings import pack_across, pack_down
from shoal.quantize.rounding import RoundedMatrix
from shoal.quantize.row_groups import OUTPUT_MULTIPLE, STEP_BITS


def exl2_tensors(key: str, matrix: RoundedMatrix) -> dict[str, Tensor]:
    """The five tensors of a layer by their names; outputs are filled up with zeros."""
    missing = -matrix.codes.shape[1] % OUTPUT_MULTIPLE
    words, pairs, first = list[Tensor](), list[int](), 0
    for group in matrix.groups:
        codes = F.pad(matrix.codes[first : first + group.inputs], (0, missing), value=1 << (group.bits - 1))
        pairs += [group.bits, sum(len(some) for some in words)]
        words.append(torch.from_numpy(pack_down(codes.numpy(), group.bits).view(np.int32)))
        first += group.inputs
    steps = pack_across(F.pad(matrix.steps, (0, missing)).numpy(), STEP_BITS)
    inverse = torch.empty(len(matrix.order), dtype=torch.int32)
    inverse[matrix.order] = torch.arange(len(matrix.order), dtype=torch.int32)
    return {
        f"{key}.q_weight": torch.cat(words),
        f"{key}.q_groups": torch.from_numpy(np.array(pairs, np.uint16).view(np.int16)),
        f"{key}.q_scale": torch.from_numpy(steps.view(np.int32)),
        f"{key}.q_scale_max": matrix.tops,
        f"{key}.q_invperm": inverse,
    }
