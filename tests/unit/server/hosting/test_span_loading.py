"""How a server divides what its weights leave."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from shoal.engine.backends import TorchBackend
from shoal.engine.batch_queue import MAX_QUEUED_ROWS
from shoal.engine.device import device_backend
from shoal.engine.proof import Proof, numbers
from shoal.errors import CapacityError, UsageError
from shoal.kv.cache_storage import KV_DTYPES, page_bytes, read_dtype
from shoal.kv.prefix import output_page_bytes
from shoal.model.kernels.quantized import BITS
from shoal.model.nn.block import ModelConfig
from shoal.model.weights.block_loading import WeightFormat
from shoal.model.weights.weight_bits import block_bytes
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.rows import Rows
from shoal.server.hosting import span_loading
from shoal.server.hosting.span_loading import (
    FRAMES_HELD,
    LEAST_BACKLOG_ROWS,
    WEIGHT_SHARE,
    Source,
    _budget,
    _checked,
    load,
    max_blocks,
    open_source,
    told_of_base,
    with_chosen_bits,
)
from shoal.server.serve_options import BUFFER_SHARE, ServeOptions
from shoal.types import KvDtype, Span
from tests.support.tiny_models import SMOLLM2, tiny_llama

MODEL = ModelConfig("llama", 30, 49152, 8192, (), True, SMOLLM2)
LEFT_BYTES = 1 << 30


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_everything_fits_into_what_is_left(dtype: str) -> None:
    """Pages, journals, rows under way, shared pages and those that sessions are filling; nearly all of it is used."""
    config = ServeOptions(model="any", kv_dtype=dtype)
    budget = _budget(config, MODEL, LEFT_BYTES)
    journals = config.max_sessions * budget.journal_tokens * 4 * SMOLLM2.hidden_size
    outputs = (budget.shared_pages + config.max_sessions) * output_page_bytes(SMOLLM2.hidden_size)
    each_rows = budget.backlog_rows + FRAMES_HELD * budget.frame_rows
    under_way = budget.max_sessions * each_rows * 4 * SMOLLM2.hidden_size
    assert budget.max_sessions == config.max_sessions
    used = budget.pages * page_bytes(SMOLLM2.cache_shape, dtype) + journals + under_way + outputs
    assert LEFT_BYTES * 0.98 < used <= LEFT_BYTES
    assert budget.shared_pages > 0


def test_little_memory_has_fewer_sessions() -> None:
    """Each has room for a chunk of a prompt that waits and for a frame, or it is not there."""
    config = ServeOptions(model="any")
    budget = _budget(config, MODEL, 100_000_000)
    each_rows = budget.backlog_rows + FRAMES_HELD * budget.frame_rows
    assert budget.max_sessions < config.max_sessions
    assert (budget.backlog_rows, budget.frame_rows) >= (LEAST_BACKLOG_ROWS, FRAME_ROWS)
    assert budget.max_sessions * each_rows * 4 * SMOLLM2.hidden_size <= 100_000_000 * BUFFER_SHARE


def test_much_memory_takes_larger_frames() -> None:
    """As many rows as the queue has room for, of all sessions together."""
    config = ServeOptions(model="any")
    budget = _budget(config, MODEL, 1 << 36)
    assert budget.frame_rows > FRAME_ROWS
    assert config.max_sessions * (budget.backlog_rows + budget.frame_rows) <= MAX_QUEUED_ROWS


def test_smaller_numbers_make_room_for_more_tokens() -> None:
    """A quarter of the bytes and a little for the scales."""
    wide, narrow = (
        _budget(ServeOptions(model="any", kv_dtype=dtype), MODEL, LEFT_BYTES) for dtype in ("float32", "int8")
    )
    assert 3.7 < narrow.pages / wide.pages < 4


def test_too_little_is_refused() -> None:
    """A page for each block is the least; a little more has no room for sharing."""
    with pytest.raises(CapacityError, match="too little"):
        _budget(ServeOptions(model="any"), MODEL, 30 * page_bytes(SMOLLM2.cache_shape))
    assert _budget(ServeOptions(model="any"), MODEL, 40 * page_bytes(SMOLLM2.cache_shape)).shared_pages == 0


def test_an_unknown_dtype_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(UsageError, match="int4"):
        ServeOptions(model="any", kv_dtype="int3")


def test_a_device_that_is_not_here_is_refused_first() -> None:
    """Before anybody looks for the model."""
    with pytest.raises(CapacityError, match="cuda:99"):
        open_source(ServeOptions(model="nowhere/nothing", device="cuda:99"))
    with pytest.raises(UsageError, match="no device"):
        open_source(ServeOptions(model="nowhere/nothing", device="gpu"))


def test_a_server_on_a_device(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads, proves and says what it is. The processor stands in for a device here, too."""

    def backend(config: ServeOptions, model: ModelConfig, form: WeightFormat) -> TorchBackend:
        return device_backend(config.device, form.dtype, read_dtype(config.kv_dtype), config.exact)

    monkeypatch.setattr("shoal.server.hosting.span_loading._backend", backend)
    config = ServeOptions(
        model=str(tiny_llama(tmp_path)), device=device, kv_dtype="bfloat16", memory_bytes=64 << 20, max_sessions=2
    )
    source = open_source(config)
    loaded = load(config, source, Span(0, 2), lambda what, done, total: None)
    numerics = loaded.span_info.numerics
    assert numerics.kernel.startswith(f"torch-{device}-")
    assert not numerics.exact
    loaded.runner.open("one", Span(0, 2), 70)
    (output,) = loaded.runner.step([Rows("one", 0, numbers(1, 70, 48))])
    assert output.shape == (70, 48)


@pytest.mark.parametrize("asked", [".", "../tiny", "../tiny/", "./"])
def test_others_are_told_a_folders_name(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its owner called it, and nothing of where it lies."""
    monkeypatch.chdir(tiny_llama(tmp_path / "tiny"))
    config = ServeOptions(model=asked, memory_bytes=64 << 20, max_sessions=2)
    source = open_source(config)
    assert load(config, source, Span(0, 1), lambda what, done, total: None).span_info.source == "tiny"


@pytest.mark.parametrize(("dtype", "form"), [("float32", "float32"), ("int8", "int8-turned"), ("int4", "int4-turned")])
def test_numerics_say_how_the_cache_is_kept(dtype: KvDtype, form: str, tmp_path: Path) -> None:
    """A server that rounds keys as they are is not equal to one that turns them before."""
    config = ServeOptions(model=str(tiny_llama(tmp_path)), kv_dtype=dtype, memory_bytes=64 << 20, max_sessions=2)
    loaded = load(config, open_source(config), Span(0, 1), lambda what, done, total: None)
    assert loaded.span_info.numerics.kv_dtype == form
    assert f"/{form}/" in loaded.span_info.numerics.key


def test_exactness_that_was_asked_for_is_had_or_refused() -> None:
    """What the proof found decides; unasked, an inexact server starts."""
    inexact = Proof("torch-cuda", 1, 1, False, "")
    with pytest.raises(UsageError, match="torch-cuda"):
        _checked(ServeOptions(model="any", exact=True), inexact)
    assert _checked(ServeOptions(model="any"), inexact) is inexact
    exact = Proof("torch", 4, 1, True, "")
    assert _checked(ServeOptions(model="any", exact=True), exact) is exact


QUANTIZED = Path(__file__).parents[3] / "foreign" / "quantized"


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_a_foreign_file_is_a_model_of_its_own_without_its_base(method: str) -> None:
    """With it, it is the base: its name, its fingerprint, and what clients are told to get."""
    base = open_source(ServeOptions(model=str(QUANTIZED / "source")))
    alone = open_source(ServeOptions(model=str(QUANTIZED / method)))
    made = open_source(ServeOptions(model=str(QUANTIZED / method), base=str(QUANTIZED / "source")))
    assert alone.model.fingerprint != base.model.fingerprint
    assert alone.described is alone.checkpoint
    assert (told_of_base(alone), told_of_base(base)) == ("", "")
    assert told_of_base(made) == f"{method} serves as source ({base.model.fingerprint[:8]})"
    assert made.model == base.model
    loaded = load(
        ServeOptions(model="any", memory_bytes=64 << 20, max_sessions=2),
        made,
        Span(0, 1),
        lambda what, done, total: None,
    )
    info = loaded.span_info
    assert (info.source, info.config_json) == ("source", json.dumps(dict(base.checkpoint.config)).encode())
    assert 4 < loaded.bits_per_weight < 6
    assert loaded.kl_nats is None


def test_a_base_that_it_cannot_have_been_made_from(tmp_path: Path) -> None:
    """The field that differs is named; so is another base that the file itself names."""
    other = tiny_llama(tmp_path / "other", vocab_size=131)
    with pytest.raises(
        UsageError, match=r"--base cannot be other: awq differs from it in num_blocks \(1, not 3\)"
    ) as caught:
        open_source(ServeOptions(model=str(QUANTIZED / "awq"), base=str(other)))
    assert caught.value.field == "base"
    shutil.copytree(QUANTIZED / "awq", tmp_path / "made")
    (tmp_path / "made" / "quantization.json").write_text(json.dumps({"base_fingerprint": "ab" * 16}))
    by_note = open_source(ServeOptions(model=str(tmp_path / "made")))
    assert by_note.model.fingerprint == "ab" * 16
    assert told_of_base(by_note) == "made says that it was made from abababab, and serves as that"
    with pytest.raises(UsageError, match=f"made from {'ab' * 16}"):
        open_source(ServeOptions(model=str(tmp_path / "made"), base=str(QUANTIZED / "source")))


@pytest.fixture
def wide_source(tmp_path: Path) -> Source:
    """A model of eight blocks, in fp32."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64}
    return open_source(ServeOptions(model=str(tiny_llama(tmp_path / "wide", num_hidden_layers=8, **sizes))))


@pytest.mark.parametrize(
    ("blocks", "bits", "held"),
    [(8.0, None, 8), (2.0, None, 2), (1.9, 8, 7), (0.52, 8, 2), (0.5, 6, 2), (0.35, 5, 2), (0.3, 4, 2), (0.2, 4, 1)],
)
def test_a_memory_chooses_bits(
    blocks: float, bits: int | None, held: int, wide_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as leave a quarter of the model; `blocks` is the memory in blocks of fp32. The weights take their share of it."""
    memory_bytes = (
        int(blocks * block_bytes(wide_source.config, WeightFormat(), wide_source.checkpoint) / WEIGHT_SHARE) + 1
    )
    monkeypatch.setattr(span_loading, "_memory_bytes", lambda config: memory_bytes)
    monkeypatch.setattr(span_loading.cpu, "available", lambda: True)
    chosen = with_chosen_bits(ServeOptions(model="any", memory_bytes=64 * 10**6), wide_source)
    assert (chosen.quantize, max_blocks(chosen, wide_source)) == (bits, held)
    assert (
        held * block_bytes(wide_source.config, WeightFormat(bits=bits), wide_source.checkpoint)
        <= WEIGHT_SHARE * memory_bytes
    )


@pytest.mark.parametrize(
    "named",
    [{"quantize": 4}, {"blocks": Span(0, 1)}, {"dtype": "bfloat16"}, {"device": "mps"}, {"memory_bytes": None}],
)
def test_what_an_owner_has_named_is_kept(named: dict[str, object], wide_source: Source) -> None:
    """Bits are chosen for a memory alone, on a processor."""
    config = ServeOptions(**{"model": "any", "memory_bytes": 64 * 10**6, **named})  # type: ignore[arg-type]
    assert with_chosen_bits(config, wide_source) is config


def test_without_compiled_kernels_no_bits_are_chosen(wide_source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes would take a byte each."""
    monkeypatch.setattr(span_loading.cpu, "available", lambda: False)
    config = ServeOptions(model="any", memory_bytes=64 * 10**6)
    assert with_chosen_bits(config, wide_source) is config


def test_the_start_says_what_it_takes(tmp_path: Path) -> None:
    """Blocks, bits as they lie in memory, and memory, before the proof; floats of a file's codes are floats there."""
    said: list[str] = []
    model = tiny_llama(tmp_path, hidden_size=512, intermediate_size=1536, head_dim=64)
    config = ServeOptions(model=str(model), memory_bytes=64 * 10**6, max_sessions=2)
    load(config, open_source(config), Span(0, 2), lambda what, done, total: said.append(what))
    told = next(text for text in said if "bits per weight" in text)
    assert re.fullmatch(r"blocks 0:2 at 32(\.\d)? bits per weight: 0\.02\d of 0\.064 GB", told)


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
def test_every_width_is_served_or_refused_at_once(bits: int) -> None:
    """One that no kernel here computes with is told when the checkpoint is opened, with those that there are."""
    config = ServeOptions(model=str(QUANTIZED / "source"), quantize=bits, memory_bytes=64 << 20, max_sessions=2)
    if bits not in BITS:
        with pytest.raises(UsageError, match=f"quantized to {bits} bits: choose one of {BITS[0]}, {BITS[1]}"):
            open_source(config)
        return
    loaded = load(config, open_source(config), Span(0, 1), lambda what, done, total: None)
    assert bits < loaded.bits_per_weight < bits + 0.5
    assert loaded.kl_nats is None
