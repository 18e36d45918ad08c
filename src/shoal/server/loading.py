"""From a model's name to blocks that are ready to run, within the memory that the owner gave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from shoal.engine.proof import prove
from shoal.engine.runner import Runner
from shoal.errors import CapacityError, UsageError
from shoal.kv.cache import KVCache
from shoal.kv.pages import PAGE_TOKENS, PageAllocator
from shoal.nn.block import ModelConfig
from shoal.nn.families import model_config
from shoal.server.config import JOURNAL_SHARE, ServerConfig, default_memory_bytes
from shoal.server.service import Holding
from shoal.swarm.placement import choose_span
from shoal.types import ModelSpec, Span
from shoal.weights.checkpoint import Checkpoint
from shoal.weights.loading import block_digest, load_blocks
from shoal.weights.source import open_checkpoint
from shoal.wire.messages import Numerics

Progress = Callable[[str, int, int], None]

DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
