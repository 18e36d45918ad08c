"""The hub by range requests: a local server that imitates it counts every byte."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import CheckpointError, ModelNotFound, NetworkError, ShoalError, UsageError
from shoal.model.families import model_config
from shoal.model.weights.block_loading import load_blocks, load_ends
from shoal.model.weights.checkpoint import Checkpoint, fingerprint
from shoal.model.weights.hub import fetch_file, open_hub
from shoal.model.weights.quantization_note import NO_NOTE, QuantizationNote
from shoal.model.weights.tokenizer import load_tokenizer
from shoal.model.weights.tokenizer_cache import TokenizerCache
from shoal.types import Span
from tests.support.exl3_files import exl3_layer
from tests.support.tiny_models import tiny_llama, tiny_tokenizer

REPO = "org/tiny"
QUANTIZED = Path(__file__).parents[3] / "foreign" / "quantized"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Serves one repository's files with ranges; `sent` counts the bytes of safetensors bodies."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.sent = 0
        self.whole = False
        self.commit = COMMIT
        self.range_status = 206
        self.shift = 0
        self.away: Hub | None = None
        self.tokens: list[str | None] = []
        self.requested: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        if self.thread.is_alive():
            self.shutdown()
            self.server_close()
            self.thread.join()


class Handler(BaseHTTPRequestHandler):
    """The few endpoints that reading a checkpoint takes."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self.answer(body=False)

    def do_GET(self) -> None:
        """A file, or a range of it."""
        self.answer(body=True)

    def redirect(self, url: str) -> None:
        """To where the hub keeps large files."""
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def refuse(self, code: str, status: int = 404) -> None:
        """An error as the hub words it."""
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bool) -> None:
        """/org/tiny/resolve/REVISION/FILE."""
        self.server.requested.append(self.path)
        parts = self.path.strip("/").split("/")
        if parts[:2] != REPO.split("/") or parts[2] != "resolve":
            return self.refuse("RepoNotFound")
        if parts[3] not in ("main", self.server.commit, COMMIT):
            return self.refuse("RevisionNotFound")
        path = self.server.folder / parts[4]
        if not path.is_file():
            return self.refuse("EntryNotFound")
        data = path.read_bytes()
        asked = self.headers.get("Range")
        if asked:
            self.server.tokens.append(self.headers.get("Authorization"))
        if asked and self.server.away is not None:
            return self.redirect(self.server.away.url + self.path)
        if asked and self.server.range_status != 206:
            return self.refuse("", self.server.range_status)
        self.send_response(206 if asked and not self.server.whole else 200)
        if asked and not self.server.whole:
            first, last = (int(one) + self.server.shift for one in asked.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT if parts[3] == COMMIT else self.server.commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
            self.server.sent += len(data) if path.suffix == ".safetensors" else 0
        return None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one tiny model in one file."""
    folder = tmp_path / "repo"
    tiny_llama(folder, num_hidden_layers=4, tie_word_embeddings=False)
    served = Hub(folder)
    yield served
    served.close()


READ = """
import json, sys
from shoal.errors import ShoalError
from shoal.model.families import model_config
from shoal.types import Span
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.model_source import open_checkpoint
for span in sys.argv[2:]:
    try:
        checkpoint = open_checkpoint(sys.argv[1])
        header = checkpoint.bytes_read
        load_blocks(checkpoint, model_config(checkpoint.config), Span.parse(span))
        names = {name: [info.dtype, info.shape] for name, info in checkpoint.tensors.items()}
        print(json.dumps({"header": header, "read": checkpoint.bytes_read, "tensors": names}))
    except ShoalError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


def read(hub: Hub, home: Path, *spans: str, offline: bool = False) -> list[dict[str, Any]]:
    """Read spans of the model in a process of its own, whose hub and cache are these."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = subprocess.run(
        [sys.executable, "-c", READ, REPO, *spans], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def size_of(tensors: dict[str, Any], *prefixes: str) -> int:
    """Bytes of the fp32 tensors whose names begin so."""
    total = 0
    for name, (dtype, shape) in tensors.items():
        assert dtype == "F32"
        if name.startswith(prefixes):
            count = 4
            for size in shape:
                count *= size
            total += count
    return total


def test_a_server_reads_its_span_and_restarts_without_the_network(hub: Hub, tmp_path: Path) -> None:
    """A span costs the header and its blocks, on both sides, and nothing when offline later; another span is missing."""
    home = tmp_path / "home"
    (first,) = read(hub, home, "1:3")
    expected = first["header"] + size_of(first["tensors"], "model.layers.1.", "model.layers.2.")
    assert first["read"] == expected == hub.sent
    hub.sent, before = 0, len(hub.requested)
    again, other = read(hub, home, "1:3", "0:1", offline=True)
    assert again["tensors"] == first["tensors"]
    assert again["read"] == hub.sent == 0
    assert len(hub.requested) == before
    assert other["error"] == "ModelNotFound"
    assert "HF_HUB_OFFLINE" in other["text"]


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub for this process: what huggingface-hub read from the environment is set to it."""
    from huggingface_hub import close_session, constants

    home = tmp_path / "home"
    settings = {"ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": False}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    close_session()
    yield hub
    close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that huggingface-hub would have slept between its retries."""
    slept: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=slept.append))
    return slept


def same(checkpoint: Checkpoint, folder: Path, *names: str) -> bool:
    """Whether what the checkpoint reads is what the file in the folder holds."""
    held = load_file(folder / "model.safetensors")
    return all(torch.equal(checkpoint.read(name), held[name]) for name in names)


NORM, OTHER = "model.norm.weight", "model.layers.2.input_layernorm.weight"


def test_a_client_reads_the_ends(here: Hub) -> None:
    """The header, embedding, norm and head, counted on both sides: no block."""
    checkpoint = open_hub(REPO)
    header = checkpoint.bytes_read
    load_ends(checkpoint, model_config(checkpoint.config))
    held = load_file(here.folder / "model.safetensors")
    ends = sum(4 * tensor.numel() for name, tensor in held.items() if not name.startswith("model.layers."))
    assert checkpoint.bytes_read == header + ends == here.sent
    assert here.sent < (here.folder / "model.safetensors").stat().st_size / 2


def test_a_note_of_our_quantizer_is_asked_for_once(here: Hub) -> None:
    """Beside quantized weights alone; a repository without one is not asked again."""
    open_hub(REPO)
    assert not any(path.endswith("quantization.json") for path in here.requested)
    for file in (QUANTIZED / "awq").iterdir():
        (here.folder / file.name).write_bytes(file.read_bytes())
    here.commit = "d" * 40
    for _ in range(2):
        assert open_hub(REPO).note == NO_NOTE
    assert len([path for path in here.requested if path.endswith("quantization.json")]) == 1
    (here.folder / "quantization.json").write_text(json.dumps({"base_fingerprint": "ab" * 16, "kl": 0.5}))
    here.commit = "e" * 40
    noted = open_hub(REPO)
    assert noted.note == QuantizationNote("ab" * 16, 0.5)
    assert fingerprint(noted) == "ab" * 16


def test_revisions_and_unknown_names(here: Hub) -> None:
    """A commit works; what the hub does not have is named, and where else was looked."""
    assert same(open_hub(REPO, COMMIT), here.folder, NORM)
    with pytest.raises(ModelNotFound, match="org/tiny has no revision nightly"):
        open_hub(REPO, "nightly")
    with pytest.raises(ModelNotFound, match=r"'org/none' is not a directory.*HF_TOKEN"):
        open_hub("org/none")
    (here.folder / "model.safetensors").rename(here.folder / "pytorch_model.bin")
    here.commit = "d" * 40
    with pytest.raises(ModelNotFound, match=r"model\.safetensors: only safetensors"):
        open_hub(REPO)
    (here.folder / "config.json").unlink()
    here.commit = "e" * 40
    with pytest.raises(ModelNotFound, match=r"org/tiny has no config\.json"):
        open_hub(REPO)


def test_offline_and_never_cached_says_what_to_do(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that downloads it is in the message, and the hub was not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match=f"hf download {REPO}"):
        open_hub(REPO)
    assert not here.requested


def test_a_hub_without_ranges_is_refused(here: Hub) -> None:
    """A server that answers a range with the whole file is not downloaded from."""
    here.whole = True
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the hub ignores ranges"):
        open_hub(REPO)


def test_a_fingerprint_costs_its_samples(here: Hub) -> None:
    """The first KiB of eight tensors, counted on both sides, and nothing the second time."""
    checkpoint = open_hub(REPO)
    header = checkpoint.bytes_read
    mark = fingerprint(checkpoint)
    assert header < checkpoint.bytes_read == here.sent <= header + 8 * 1024
    again = open_hub(REPO)
    assert (fingerprint(again), again.bytes_read) == (mark, 0)


def test_a_hub_that_is_down_is_not_missed(here: Hub, waits: list[float]) -> None:
    """Without HF_HUB_OFFLINE too: what was read before is read from disk at once, what was not names the hub."""
    from huggingface_hub import close_session

    assert same(open_hub(REPO), here.folder, NORM)
    here.close()
    close_session()
    again = open_hub(REPO)
    assert same(again, here.folder, NORM)
    assert (again.bytes_read, again.revision, waits) == (0, COMMIT, [])
    with pytest.raises(NetworkError, match=r"model\.safetensors"):
        again.read(OTHER)
    with pytest.raises(ModelNotFound, match="hf download org/else"):
        open_hub("org/else")


def test_a_branch_that_moves_is_read_at_one_commit(here: Hub) -> None:
    """A checkpoint stays at the commit that it was opened at; the next one sees the new commit, and no old range."""
    first = open_hub(REPO)
    asked = here.requested[-1]
    here.commit = "d" * 40
    tiny_llama(here.folder, seed=5, num_hidden_layers=4, tie_word_embeddings=False)
    first.read(NORM)
    assert COMMIT in asked
    assert COMMIT in here.requested[-1]
    second = open_hub(REPO)
    assert (first.revision, second.revision) == (COMMIT, here.commit)
    assert same(second, here.folder, NORM, "model.layers.1.mlp.up_proj.weight")


def test_the_token_stays_with_the_hub(here: Hub, tmp_path: Path) -> None:
    """Large files are redirected to another host, which is not shown the token."""
    here.away = Hub(here.folder)
    try:
        assert same(open_hub(REPO), here.folder, NORM)
        assert set(here.tokens) == {"Bearer hf_secret"}
        assert set(here.away.tokens) == {None}
        assert len(here.away.tokens) == len(here.tokens)
    finally:
        here.away.close()


@pytest.mark.parametrize("status", [401, 404, 416, 500, 503])
def test_a_range_that_is_refused_keeps_nothing(here: Hub, status: int) -> None:
    """The answer's status is told, and a later try succeeds."""
    checkpoint = open_hub(REPO)
    here.range_status, before = status, checkpoint.bytes_read
    with pytest.raises(NetworkError, match=str(status)):
        checkpoint.read(NORM)
    assert checkpoint.bytes_read == before
    here.range_status = 206
    assert same(checkpoint, here.folder, NORM)


def test_another_range_than_the_one_asked_for_is_refused(here: Hub) -> None:
    """A proxy that answers with other bytes of the right length gives no weights."""
    checkpoint = open_hub(REPO)
    here.shift = -4
    with pytest.raises(CheckpointError, match="another range"):
        checkpoint.read(NORM)


def test_a_file_in_the_cache_costs_nothing(here: Hub) -> None:
    """What huggingface-hub has downloaded whole is read there."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPO, "model.safetensors")
    here.sent = 0
    assert same(open_hub(REPO), here.folder, NORM, OTHER)
    assert here.sent == 0


def shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors into two files with an index."""
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file_goes_before_an_index(here: Hub) -> None:
    """As transformers has it; that there is none is asked once."""
    shard(here.folder, {"model.norm.weight": torch.zeros(1)})
    assert same(open_hub(REPO), here.folder, NORM)
    (here.folder / "model.safetensors").unlink()
    here.commit = "d" * 40
    for _ in range(2):
        assert open_hub(REPO).tensors["model.norm.weight"].shape == (1,)
    asked = [path for path in here.requested if path.endswith(f"{here.commit}/model.safetensors")]
    assert len(asked) == 1


def chosen(folder: Path, name: str) -> None:
    """Have the configuration name its weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))


def test_a_configuration_may_choose_a_file(here: Hub) -> None:
    """Before `model.safetensors` and any index, which are not asked for."""
    (here.folder / "model.safetensors").rename(here.folder / "mine.safetensors")
    save_file({"model.norm.weight": torch.zeros(1)}, here.folder / "model.safetensors")
    shard(here.folder, {"model.norm.weight": torch.zeros(1)})
    chosen(here.folder, "mine.safetensors")
    held = load_file(here.folder / "mine.safetensors")
    assert torch.equal(open_hub(REPO).read(NORM), held[NORM])
    assert not any("model.safetensors" in path for path in here.requested)


def test_a_configuration_may_choose_an_index(here: Hub) -> None:
    """The same."""
    tensors = load_file(here.folder / "model.safetensors")
    shard(here.folder, tensors)
    (here.folder / "model.safetensors.index.json").rename(here.folder / "mine.safetensors.index.json")
    save_file({"model.norm.weight": torch.zeros(1)}, here.folder / "model.safetensors")
    chosen(here.folder, "mine.safetensors.index.json")
    checkpoint = open_hub(REPO)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("../mine.safetensors", CheckpointError),
        ("../mine.safetensors.index.json", CheckpointError),
        ("gone.safetensors.index.json", CheckpointError),
        ("gone.safetensors", ModelNotFound),
        ("mine.bin", CheckpointError),
    ],
)
def test_a_configuration_chooses_in_vain(here: Hub, name: str, error: type[ShoalError]) -> None:
    """What is not there, or not beside it, is no model, and no other is taken for it."""
    chosen(here.folder, name)
    with pytest.raises(error):
        open_hub(REPO)


def test_the_cache_alone(here: Hub) -> None:
    """What was read before is read again, with its tokenizer's folder as its source; nothing else is asked for, ever."""
    assert same(open_hub(REPO), here.folder, NORM)
    for revision in (None, COMMIT):
        before = len(here.requested)
        cached = open_hub(REPO, revision, cached_only=True)
        assert same(cached, here.folder, NORM)
        assert (cached.name, cached.revision, Path(cached.source).name) == (REPO, COMMIT, COMMIT)
        with pytest.raises(ModelNotFound, match="nobody but the swarm named this model"):
            cached.read(OTHER)
        assert len(here.requested) == before


def test_a_tokenizer_of_the_cache_alone(here: Hub, tmp_path: Path) -> None:
    """It is read from the cache's folder too; transformers asks for nothing."""
    from huggingface_hub import hf_hub_download

    tiny_tokenizer(here.folder)
    for path in here.folder.glob("*.json"):
        hf_hub_download(REPO, path.name)
    assert same(open_hub(REPO), here.folder, NORM)
    before = len(here.requested)
    tokenizer = load_tokenizer(open_hub(REPO, cached_only=True), TokenizerCache(tmp_path / "tokenizers"))
    assert tokenizer.decode(tokenizer.encode("sea")) == "sea"
    assert len(here.requested) == before


@pytest.mark.parametrize("repo", [REPO, "org/else", "a/b/c", "../x", "org/.."])
def test_the_cache_alone_has_nothing(here: Hub, repo: str) -> None:
    """Nor is anything asked."""
    with pytest.raises(ModelNotFound):
        open_hub(repo, cached_only=True)
    assert not here.requested


def test_shards(here: Hub) -> None:
    """A sharded repository is read through its index."""
    whole = here.folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    shard(here.folder, tensors)
    checkpoint = open_hub(REPO)
    header = checkpoint.bytes_read
    load_blocks(checkpoint, model_config(checkpoint.config), Span(3, 4))
    block = sum(4 * tensor.numel() for name, tensor in tensors.items() if name.startswith("model.layers.3."))
    assert checkpoint.bytes_read == header + block == here.sent
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_exl3_is_read_through_its_index(here: Hub) -> None:
    """Its files are the index's; tensors that the source alone had are no fault, nor is a file that its configuration named."""
    tensors, config = (
        load_file(here.folder / "model.safetensors"),
        json.loads((here.folder / "config.json").read_text()),
    )
    layer = exl3_layer(np.random.default_rng(0), "model.layers.3.mlp.up_proj", 3, 48, 100)
    old = {"model.layers.3.mlp.up_proj.weight": tensors.pop("model.layers.3.mlp.up_proj.weight")}
    tensors |= {name: torch.from_numpy(one) for name, one in layer.tensors.items()}
    (here.folder / "model.safetensors").unlink()
    shard(here.folder, tensors | old)
    for file in here.folder.glob("*.safetensors"):
        save_file({name: one for name, one in load_file(file).items() if name not in old}, file)
    config |= {"transformers_weights": "other.safetensors", "quantization_config": {"quant_method": "exl3"}}
    (here.folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_hub(REPO)
    header = checkpoint.bytes_read
    assert np.array_equal(checkpoint.read("model.layers.3.mlp.up_proj.weight").numpy(), layer.weights.T)
    assert checkpoint.bytes_read == header + sum(one.nbytes for one in layer.tensors.values()) == here.sent


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), UsageError),
        (ValueError("Unknown scheme for proxy URL URL('socks4://127.0.0.1:1')"), NetworkError),
    ],
)
def test_a_proxy_that_cannot_be_used(error: Exception, kind: type[ShoalError], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the HTTP client lacks, or does not understand, is an error of ours."""

    def fail(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(kind, match="hub"):
        fetch_file("some/model", "config.json", None)
