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
from typing import Any

import pytest

from shoal.testing.tiny import tiny_llama

REPO = "org/tiny"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Serves one repository's files with ranges; `sent` counts the bytes of safetensors bodies."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.sent = 0
        self.whole = False
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
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

    def refuse(self, code: str) -> None:
        """An error as the hub words it."""
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bool) -> None:
        """/org/tiny/resolve/REVISION/FILE."""
        parts = self.path.strip("/").split("/")
        if parts[:2] != REPO.split("/") or parts[2] != "resolve":
            return self.refuse("RepoNotFound")
        if parts[3] not in ("main", COMMIT):
            return self.refuse("RevisionNotFound")
        path = self.server.folder / parts[4]
        if not path.is_file():
            return self.refuse("EntryNotFound")
        data = path.read_bytes()
        asked = self.headers.get("Range")
        self.send_response(206 if asked and not self.server.whole else 200)
        if asked and not self.server.whole:
            first, last = (int(one) for one in asked.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
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
from shoal.nn.families import model_config
from shoal.types import Span
from shoal.weights.loading import load_blocks, load_ends
from shoal.weights.source import open_checkpoint
repo, revision, what = sys.argv[1:4]
try:
    checkpoint = open_checkpoint(repo, revision or None)
    header = checkpoint.bytes_read
    config = model_config(checkpoint.config)
    if what == "ends":
        load_ends(checkpoint, config)
    else:
        load_blocks(checkpoint, config, Span.parse(what))
    names = {name: [info.dtype, info.shape] for name, info in checkpoint.tensors.items()}
    print(json.dumps({"header": header, "read": checkpoint.bytes_read, "tensors": names}))
except ShoalError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


def read(
    hub: Hub, home: Path, what: str, repo: str = REPO, revision: str = "", offline: bool = False
) -> dict[str, Any]:
    """Read a part of a model in a process of its own, whose hub and cache are these."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = subprocess.run(
        [sys.executable, "-c", READ, repo, revision, what],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


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


def test_a_server_and_a_client_read_only_their_tensors(hub: Hub, tmp_path: Path) -> None:
    """A span costs the header and its blocks; the ends cost the header and three tensors; counted on both sides."""
    span = read(hub, tmp_path / "server", "1:3")
    expected = span["header"] + size_of(span["tensors"], "model.layers.1.", "model.layers.2.")
    assert span["read"] == expected == hub.sent
    hub.sent = 0
    ends = read(hub, tmp_path / "client", "ends")
    expected = ends["header"] + size_of(ends["tensors"], "model.embed_tokens.", "model.norm.", "lm_head.")
    assert ends["read"] == expected == hub.sent
    assert expected < (hub.folder / "model.safetensors").stat().st_size / 2


def test_a_restart_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    """What was read once is read from disk the next time, offline too; what was not says what to do."""
    home = tmp_path / "home"
    first = read(hub, home, "0:2")
    hub.sent = 0
    again = read(hub, home, "0:2", offline=True)
    assert again["tensors"] == first["tensors"]
    assert again["read"] == hub.sent == 0
    other = read(hub, home, "2:3", offline=True)
    assert other["error"] == "ModelNotFound"
    assert "HF_HUB_OFFLINE" in other["text"]
    nothing = read(hub, tmp_path / "empty", "0:1", offline=True)
    assert nothing["error"] == "ModelNotFound"
    assert f"hf download {REPO}" in nothing["text"]


def test_revisions_and_unknown_names(hub: Hub, tmp_path: Path) -> None:
    """A commit works; what the hub does not have is named."""
    home = tmp_path / "home"
    assert "read" in read(hub, home, "0:1", revision=COMMIT)
    unknown = read(hub, home, "0:1", revision="nightly")
    assert (unknown["error"], "nightly" in unknown["text"]) == ("ModelNotFound", True)
    unknown = read(hub, home, "0:1", repo="org/none")
    assert (unknown["error"], "org/none" in unknown["text"]) == ("ModelNotFound", True)


def test_a_hub_without_ranges_is_refused(hub: Hub, tmp_path: Path) -> None:
    """A server that answers a range with the whole file is not downloaded from."""
    hub.whole = True
    answer = read(hub, tmp_path / "home", "0:1")
    assert answer["error"] == "CheckpointError"
    assert "range" in answer["text"]


def test_shards(hub: Hub, tmp_path: Path) -> None:
    """A sharded repository is read through its index."""
    from safetensors.torch import load_file, save_file

    whole = hub.folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, hub.folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    span = read(hub, tmp_path / "home", "3:4")
    assert span["read"] == span["header"] + size_of(span["tensors"], "model.layers.3.") == hub.sent
