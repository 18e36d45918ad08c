"""compressed-tensors' "pack-quantized" format (llm-compressor): 4 or 8 bits, per group, per output or for a whole matrix.

`KEY.weight_packed` int32 [outputs, inputs · bits / 32] holds codes from the lowest bits up, a row after the other;
`weight_scale` [outputs, groups] floats; `weight_shape` the true [outputs, inputs]; `weight_zero_point`, where groups are not
symmetric, int32 [outputs · bits / 32, groups], packed downwards; `weight_g_idx` int32 [inputs] names each input's group.
Codes and zero points are stored with 2^(bits − 1) added.
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

WIDTHS = (4, 8)
PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")


class PackedForm(NamedTuple):
    """What a configuration says of a group of layers."""

    bits: int
    symmetric: bool
    group: int | None = None


def packed_form(config: Mapping[str, Any]) -> PackedForm:
    """From a checkpoint's `quantization_config`; raises UnsupportedModel for what is not read."""
    groups = config.get("config_groups")
    given = (
        [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    if config.get("format") != "pack-quantized" or len(given) != 1 or not isinstance(given[0], Mapping):
        raise UnsupportedModel(
            f"compressed-tensors in format {config.get('format')!r} with {len(given)} groups of layers are not read: "
            "pack-quantized with one group is"
        )
    bits, kind = given[0].get("num_bits"), given[0].get("type")
    if bits not in WIDTHS or kind != "int":
        raise UnsupportedModel(
            f"compressed-tensors weights of {bits!r} bits, type {kind!r}, are not read: {WIDTHS} int are"
        )
    return PackedForm(int(bits), given[0].get("symmetric") is not False, group_size(given[0]))


def dequantize(tensors: Stored, key: str, form: PackedForm | None = None) -> Array:
    """The weights [inputs, outputs] of one layer in its scales' dtype; bf16 comes as fp32.

    `form` None: four bits, symmetric. Raises CheckpointError naming what is wrong.
    """
    whole = read(tensors, key, form or PackedForm(4, True)).dequantized().T.contiguous()
    return (whole.float() if whole.dtype == torch.bfloat16 else whole).numpy()


def read(tensors: Stored, key: str, form: PackedForm) -> PackedMatrix:
    """One layer's matrix; raises CheckpointError naming what is wrong."""
    shape = integers(tensors, f"{key}.weight_shape", np.int64, 1)
    if len(shape) != 2 or not (shape > 0).all():
        raise CheckpointError(f"{key}.weight_shape is {shape[:8].tolist()}, not the outputs and inputs of a matrix")
    outputs, inputs = map(int, shape)
    words = unsigned(integers(tensors, f"{key}.weight_packed", np.int32, 2))
    if words.shape != (outputs, -(-inputs * form.bits // WORD_BITS)):
        raise CheckpointError(f"{key}.weight_packed of {list(words.shape)} is no matrix of {[outputs, inputs]}")
    scales = _scales(tensors, f"{key}.weight_scale", outputs)
    zeros = None if form.symmetric else _zeros(tensors, f"{key}.weight_zero_point", form.bits, tuple(scales.shape))
    codes = torch.from_numpy(unpack_across(words, form.bits, inputs))
    name = f"{key}.weight_g_idx"
    places = integers(tensors, name, np.int32, 1) if name in tensors else None
    if places is not None and (places < 0).all():
        places = None  # it is stored as −1 where groups are in order
    zero = 1 << (form.bits - 1) if form.symmetric else 0
    return in_groups(key, Codes(codes, form.bits, zero), scales, zeros, places, form.group)


def _scales(tensors: Stored, name: str, outputs: int) -> torch.Tensor:
    """[outputs, groups]: a matrix may have one for all outputs, or one for all groups."""
    given = tensors.get(name)
    shape = tuple(given.shape) if given is not None else ()
    scales = floats(tensors, name, shape)
    if shape in ((), (1,)):
        return scales.reshape(1, 1).repeat(outputs, 1)
    if len(shape) == 1:
        scales = scales[:, None]
    if scales.ndim != 2 or scales.shape[0] != outputs or not scales.shape[1]:
        raise CheckpointError(f"{name} of {list(shape)} does not fit {outputs} outputs")
    return scales


def _zeros(tensors: Stored, name: str, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    words = unsigned(integers(tensors, name, np.int32, 2))
    if words.shape != (-(-shape[0] * bits // WORD_BITS), shape[1]):
        raise CheckpointError(f"{name} of {list(words.shape)} does not fit {list(shape)} zero points of {bits} bits")
    return torch.from_numpy(unpack_down(words, bits, shape[0]).astype(np.int16))
