"""What the JSON files beside a checkpoint's tensors say: its configuration, its index, how its weights are packed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.fp8 import fp8_block, fp8_tensors
from shoal.model.weights.mxfp4 import is_mxfp4, mxfp4_tensors
from shoal.model.weights.packed_checkpoint import PackedCheckpoint
from shoal.model.weights.quantized_layers import METHODS, method_of, with_quantized_layers

MAX_CONFIG_BYTES = 1 << 20
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors as floats, where its configuration says that they are packed.

    Raises UnsupportedModel for a way of packing that is not read.
    """
    given, block = checkpoint.config.get("quantization_config"), fp8_block(checkpoint.config)
    if given is None:
        return checkpoint
    if is_mxfp4(checkpoint.config):
        return PackedCheckpoint(checkpoint, mxfp4_tensors(checkpoint))
    if block is not None:
        return PackedCheckpoint(checkpoint, fp8_tensors(checkpoint, block))
    if (method := method_of(checkpoint)) is not None:
        return with_quantized_layers(checkpoint, method)
    kind = given.get("quant_method") if isinstance(given, Mapping) else given
    raise UnsupportedModel(
        f"{checkpoint.source}: weights quantized by {kind!r} are not read "
        f"({', '.join(METHODS)} and mxfp4 are, and fp8 e4m3 with weight_block_size)"
    )


def index_places(text: bytes, name: str) -> Mapping[str, str]:
    """The file of each tensor by a `model.safetensors.index.json`, plain names only; raises CheckpointError."""
    weight_map = parse_config(text, name).get("weight_map")
    places = weight_map if isinstance(weight_map, dict) else {}
    if not places or not all(isinstance(file, str) and _PLAIN_NAME.fullmatch(file) for file in places.values()):
        raise CheckpointError(f"{name} does not map tensors to *.safetensors files beside it")
    return places


def parse_config(text: bytes, name: str) -> Mapping[str, Any]:
    """A JSON object of a bounded size; raises CheckpointError."""
    if len(text) > 64 * MAX_CONFIG_BYTES:
        raise CheckpointError(f"{name} has {len(text)} bytes: no configuration is so large")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return config
