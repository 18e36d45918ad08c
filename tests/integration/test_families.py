"""Families through real servers: the same bits as in one process, and the row codecs that a family is proven for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.client.client_options import SessionOptions
from shoal.errors import Refused
from shoal.model.families import family
from shoal.model.kernels import cpu
from shoal.protocol.messages import RowCodec
from shoal.types import Span
from tests.support.certify import load, opened, prompt, through
from tests.support.family_cases import CASES, save_checkpoint
from tests.swarms import Swarm, SwarmMaker

SPANS = (Span(0, 1), Span(1, 3))
FAMILIES = ("gemma3_text", "mixtral", "gpt_oss", "deepseek_v3", "olmo2", "bloom")


def checkpoint(model_type: str, folder: Path) -> Path:
    """A tiny random one."""
    case = next(case for case in CASES if case.model_type == model_type and not case.name)
    return save_checkpoint(case, folder / model_type)


async def hidden_states(swarm: Swarm, rows: torch.Tensor, codec: RowCodec = "fp32") -> torch.Tensor:
    """What comes out of all blocks for these rows."""
    async with swarm.client() as client:
        options = SessionOptions(max_tokens=300, row_codec=codec, prefill_chunk_rows=37, patience_s=1.0)
        async with client.session(await client.find_model(), options=options) as session:
            return await session.step(rows)


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers without the compiled kernels, whose bits are their own."""
    monkeypatch.setattr("shoal.model.kernels.cpu.available", lambda: False)


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.parametrize("model_type", FAMILIES)
async def test_servers_compute_what_one_process_does(swarm_of: SwarmMaker, tmp_path: Path, model_type: str) -> None:
    """Blocks that differ, experts, sinks, latent caches, ALiBi: bit for bit, in other chunks and through two servers."""
    directory = checkpoint(model_type, tmp_path)
    loaded = load(directory)
    rows = loaded.ends.embed(prompt(loaded.config.vocab_size))
    async with swarm_of(*SPANS, model=str(directory)) as swarm:
        assert torch.equal(await hidden_states(swarm, rows), through(opened(loaded), rows, 0))


@pytest.mark.skipif(not cpu.available(), reason="there are no compiled kernels here")
@pytest.mark.parametrize("model_type", FAMILIES)
async def test_the_fastest_engine_computes_the_same_to_rounding(
    swarm_of: SwarmMaker, tmp_path: Path, model_type: str
) -> None:
    """Compiled blocks where the kernels know them, torch around compiled matrices elsewhere."""
    directory = checkpoint(model_type, tmp_path)
    loaded = load(directory)
    rows = loaded.ends.embed(prompt(loaded.config.vocab_size))
    async with swarm_of(*SPANS, model=str(directory)) as swarm:
        found = await hidden_states(swarm, rows)
    torch.testing.assert_close(found, through(opened(loaded), rows, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("plain_torch")
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "mixtral"])
async def test_row_codecs_are_offered_by_family(swarm_of: SwarmMaker, tmp_path: Path, model_type: str) -> None:
    """A codec that the family is proven for rounds as it does in one process; another is refused by name."""
    directory = checkpoint(model_type, tmp_path)
    loaded = load(directory)
    rows = loaded.ends.embed(prompt(loaded.config.vocab_size))
    codecs: tuple[RowCodec, ...] = ("bf16", "fp16")
    async with swarm_of(*SPANS, model=str(directory)) as swarm:
        for codec in codecs:
            if codec in family(model_type).row_codecs:
                found = await hidden_states(swarm, rows, codec)
                assert torch.equal(found, through(opened(loaded, (1,)), rows, 0, codec))
            else:
                with pytest.raises(Refused, match=f"rows as {codec} are not proven"):
                    await hidden_states(swarm, rows, codec)
