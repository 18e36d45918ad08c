"""GPTQ's files (AutoGPTQ, GPTQModel): 2, 3, 4 or 8 bits, whole zero points, groups that may follow the order of activations.

`KEY.qweight` int32 [inputs · bits / 32, outputs] holds a string of bits for each output; `qzeros` int32 [groups, outputs ·
bits / 32] one for each group; `scales` [groups, outputs] in floats; `g_idx` int32 [inputs] names each input's group. The
first version of the format stores a zero point less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.quant.bit_strings import WORD_BITS, unpack_across, unpack_down
from shoal.model.quant.grouping import Codes, group_size, in_groups
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.quant.stored_tensors import Array, Stored, floats, integers, unsigned

WIDTHS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class GptqForm(NamedTuple):
    """What a configuration says of all layers. `zero_offset` is added to a stored zero point; `group` inputs share a scale
    (None: all of them, or as the groups' number says)."""

    bits: int
    zero_offset: int = 1
    group: int | None = None


def gptq_form(config: Mapping[str, Any]) -> GptqForm:
    """From a checkpoint's `quantization_config`; raises UnsupportedModel for another width."""
    bits = config.get("bits")
    if type(bits) is not int or bits not in WIDTHS:
        raise UnsupportedModel(f"GPTQ weights of {bits!r} bits are not read: {WIDTHS} are")
    if config.get("dynamic"):
        raise UnsupportedModel("GPTQ weights whose bits differ from layer to layer (dynamic) are not read")
    return GptqForm(bits, 0 if config.get("checkpoint_format") == "gptq_v2" else 1, group_size(config))


def dequantize(tensors: Stored, key: str, form: GptqForm | None = None) -> Array:
    """The weights [inputs, outputs] of one layer in its scales' dtype, fp16 for most; bf16 comes as fp32.

    `form` None: four bits of the first version. Raises CheckpointError naming what is wrong.
    """
    whole = read(tensors, key, form or GptqForm(4)).dequantized().T.contiguous()
    return (whole.float() if whole.dtype == torch.bfloat16 else whole).numpy()


def read(tensors: Stored, key: str, form: GptqForm) -> PackedMatrix:
    """One layer's matrix; raises CheckpointError naming what is wrong."""
    words = unsigned(integers(tensors, f"{key}.qweight", np.int32, 2))
    inputs, left = divmod(words.shape[0] * WORD_BITS, form.bits)
    if left or not inputs:
        raise CheckpointError(
            f"{key}.qweight has {words.shape[0]} rows of words: no whole number of {form.bits}-bit codes"
        )
    stored_zeros = integers(tensors, f"{key}.qzeros", np.int32, 2)
    groups, outputs = stored_zeros.shape[0], words.shape[1]
    if stored_zeros.shape[1] != -(-outputs * form.bits // WORD_BITS):
        raise CheckpointError(f"{key}.qzeros of {list(stored_zeros.shape)} does not fit {outputs} outputs")
    scales = floats(tensors, f"{key}.scales", [groups, outputs])
    zeros = unpack_across(unsigned(stored_zeros), form.bits, outputs).astype(np.int16) + form.zero_offset
    codes = torch.from_numpy(np.ascontiguousarray(unpack_down(words, form.bits, inputs).T))
    places = integers(tensors, f"{key}.g_idx", np.int32, 1) if f"{key}.g_idx" in tensors else None
    beside = scales.T.contiguous(), torch.from_numpy(np.ascontiguousarray(zeros.T))
    return in_groups(key, Codes(codes, form.bits), *beside, places, form.group)
