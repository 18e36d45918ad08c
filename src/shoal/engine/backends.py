"""What computes a span: plain torch, torch around compiled linear layers, or the compiled kernels throughout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from shoal.engine.blocks import Blocks, TorchBlocks
from shoal.engine.native import MAX_TURNINGS, NativeBlock, NativeBlocks, supports
from shoal.engine.native_proof import prove_native
from shoal.engine.proof import CPU, ExecutionEnv, Proof, prove
from shoal.kv.cache import KVCache
from shoal.model.kernels import cpu
from shoal.model.kernels.linears import MakeLinear, torch_linear
from shoal.model.kernels.native_linear import native_linears
from shoal.model.nn.block import Block, BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.weights.block_loading import LoadedBlock, WeightFormat
from shoal.types import Span

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
"""Floats that the compiled kernels read; float16 is for plain torch."""


THREADS = torch.get_num_threads()
"""What torch has before anybody changes it: of a server that is not told how many. One that moves loads a second time, when
torch has one thread left."""


class Backend(Protocol):
    """Builds blocks from their weights, proves their arithmetic, and puts them to work over a cache."""

    def build(self, config: BlockConfig, weights: BlockWeights) -> LoadedBlock:
        """A block as this backend holds it."""
        ...

    def prove(self, blocks: Sequence[LoadedBlock], model: ModelConfig) -> Proof:
        """Whether rows are exact here; to be called before `assemble`."""
        ...

    def assemble(self, model: ModelConfig, span: Span, blocks: Sequence[LoadedBlock], cache: KVCache) -> Blocks:
        """The blocks of a span as something that computes."""
        ...


class TorchBackend(Backend):
    """Plain torch in a setting; its linear layers may be compiled ones."""

    def __init__(self, setting: ExecutionEnv = CPU, make: MakeLinear = torch_linear, kernel: str = "torch") -> None:
        self._setting = setting
        self._make = make
        self._kernel = kernel
        self._tile = 1

    def build(self, config: BlockConfig, weights: BlockWeights) -> Block:
        return Block(config, weights, self._make)

    def prove(self, blocks: Sequence[LoadedBlock], model: ModelConfig) -> Proof:
        """Backend: sets torch's thread count as well."""
        proof = prove(cast(Sequence[Block], blocks), model, self._setting)
        self._tile = proof.tile
        return Proof(self._kernel, proof.tile, proof.threads, proof.exact, proof.probe)

    def assemble(self, model: ModelConfig, span: Span, blocks: Sequence[LoadedBlock], cache: KVCache) -> Blocks:
        held = cast(Sequence[Block], blocks)
        return TorchBlocks(model.block, span.start, held, cache, self._tile, self._setting.attention)


class NativeBackend(Backend):
    """The compiled kernels; see `Panels.int8_rows`."""

    def __init__(self, context: cpu.Context, int8_rows: bool = False) -> None:
        self._context = context
        self._int8_rows = int8_rows

    def build(self, config: BlockConfig, weights: BlockWeights) -> NativeBlock:
        return NativeBlock(config, weights, self._int8_rows)

    def prove(self, blocks: Sequence[LoadedBlock], model: ModelConfig) -> Proof:
        """Backend: sets torch's thread count as well."""
        torch.set_num_threads(1)  # its others would wait for work by spinning, on cores that the kernels' threads need
        exact, probe = prove_native(cast(Sequence[NativeBlock], blocks), model, self._context)
        return Proof(kernel_name(self._int8_rows), 1, self._context.threads, exact, probe)

    def assemble(self, model: ModelConfig, span: Span, blocks: Sequence[LoadedBlock], cache: KVCache) -> Blocks:
        return NativeBlocks(model.block, span.start, cast(Sequence[NativeBlock], blocks), cache, self._context)


def kernel_name(int8_rows: bool) -> str:
    """What numerics call the compiled kernels."""
    return "native-int8" if int8_rows else "native"


def choose_backend(
    model: ModelConfig, form: WeightFormat, threads: int | None = None, int8_rows: bool = False
) -> Backend:
    """The fastest backend that this machine's processor has for a model's blocks in this form."""
    if not _native(form):
        return TorchBackend()
    context = cpu.Context(threads or THREADS)
    kinds = model.distinct_blocks
    if all(map(supports, kinds)) and len({(kind.rope, kind.rotated_dim) for kind in kinds}) <= MAX_TURNINGS:
        return NativeBackend(context, int8_rows)
    return TorchBackend(make=native_linears(context, int8_rows), kernel=f"torch+{kernel_name(int8_rows)}")


def choose_linears(form: WeightFormat, threads: int | None = None, int8_rows: bool = False) -> MakeLinear:
    """What makes the fastest linear layers that this machine has for weights in this form."""
    if not _native(form):
        return torch_linear
    return native_linears(cpu.Context(threads or torch.get_num_threads()), int8_rows)


def _native(form: WeightFormat) -> bool:
    return cpu.available() and (form.bits is not None or form.dtype in NATIVE_DTYPES)
