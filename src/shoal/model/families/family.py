"""What a family is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from shoal.model.families.fields import Config
from shoal.model.families.gguf_mapping import GgufMapping
from shoal.model.families.layout import TensorMap
from shoal.model.nn.block import ModelConfig
from shoal.protocol.messages import RowCodec


class Family(msgspec.Struct, frozen=True):
    """One `model_type`: what its configuration means and where its tensors are.

    `block_tensors(config, index)` and `end_tensors(config)` give, by role, what `Block` and `EmbeddingAndHead` are made of.
    `row_codecs` are the codecs in which its rows may travel: those that tests/parity/test_families.py has proven. No fp16 where
    rows of real models leave its range, and neither where a rounded row may go to another expert. `gguf` says how its GGUF
    files differ; None: there are none, or they call themselves another family's.

    `defaults` are the values of transformers' class for every field that is read, since files leave out what is at its
    default; a field that is not there is null. `aliases` are other names of fields.
    """

    model_type: str
    title: str
    config: Callable[[Config], ModelConfig]
    block_tensors: Callable[[ModelConfig, int], TensorMap]
    end_tensors: Callable[[ModelConfig], TensorMap]
    row_codecs: tuple[RowCodec, ...] = ("fp32", "bf16", "fp16")
    gguf: GgufMapping | None = None
    defaults: Mapping[str, Any] = {}
    aliases: Mapping[str, str] = {}

    def model_config(self, hf: Config) -> ModelConfig:
        """From config.json, whatever it leaves out; raises UnsupportedModel and CheckpointError."""
        given = dict(hf)
        for other, name in self.aliases.items():
            if given.get(name) is None and given.get(other) is not None:
                given[name] = given[other]
        return self.config({**self.defaults, **given})
