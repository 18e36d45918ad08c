"""Checkpoints on the Hugging Face hub, read by HTTP range requests.

Revision, token, endpoint, offline mode and cache are huggingface-hub's (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME).
Files that its cache holds whole are read there; ranges that were fetched are kept beside it, so that a server can start
again without the network.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shoal.errors import CheckpointError, ModelNotFound, NetworkError
from shoal.weights.bytesource import ByteSource, LocalFile
from shoal.weights.checkpoint import Checkpoint
from shoal.weights.safetensors import SafetensorsCheckpoint, SafetensorsFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_CONNECTIONS = 8
TIMEOUT_S = 60.0


def open_hub(repo: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint of a hub repository; only headers are read here.

    Raises ModelNotFound for a repository, revision or file that is not there (or not cached, when offline),
    NetworkError when the hub does not answer.
    """
    from shoal.weights.source import index_files, parse_config

    config_path = fetch_file(repo, "config.json", revision)
    if config_path is None:
        raise ModelNotFound(f"{repo} has no config.json: it is not a transformers checkpoint")
    index = fetch_file(repo, INDEX, revision)
    names = [SINGLE] if index is None else index_files(index.read_bytes(), f"{repo}/{INDEX}")
    with ThreadPoolExecutor(HEADER_CONNECTIONS) as pool:
        files = list(pool.map(lambda name: SafetensorsFile(_source(repo, name, revision)), names))
    config = parse_config(config_path.read_bytes(), f"{repo}/config.json")
    return SafetensorsCheckpoint(repo, repo, config, files, revision or "")


def fetch_file(repo: str, name: str, revision: str | None) -> Path | None:
    """A small file through huggingface-hub's cache; None when the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except LocalEntryNotFoundError as error:
        if name != "config.json":
            return None  # offline, and the repository is known to be cached by its config.json
        raise ModelNotFound(
            f"{repo} is neither cached here nor can the hub be reached (offline?). Download it where there is a network: "
            f"hf download {repo}"
        ) from error
    except GatedRepoError as error:
        raise ModelNotFound(f"{repo} is gated: accept its terms on the hub and log in (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{repo} has no revision {revision}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"{repo!r} is not a directory or *.gguf file here, and the hub has no such model (or it is private: HF_TOKEN)"
        ) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise NetworkError(f"the hub does not answer for {repo}: {error}") from error


def _source(repo: str, name: str, revision: str | None) -> ByteSource:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=revision)
    return LocalFile(Path(cached)) if isinstance(cached, str) else RemoteFile(repo, name, revision)


class RemoteFile:
    """A file on the hub, read by range; every range fetched is kept on disk."""

    def __init__(self, repo: str, name: str, revision: str | None) -> None:
        from huggingface_hub import constants

        self.name = f"{repo}/{name}"
        self.bytes_read = 0
        self._folder = Path(constants.HF_HOME) / "shoal"
        known = self._metadata(repo, name, revision, offline=constants.HF_HUB_OFFLINE)
        self.size: int = known["size"]
        self._url: str = known["url"]
        self._token_free: bool = known["redirected"]
        self._ranges = (
            self._folder / "ranges" / hashlib.sha256(f"{self.name} {known['etag']}".encode()).hexdigest()[:32]
        )

    def _metadata(self, repo: str, name: str, revision: str | None, offline: bool) -> dict[str, Any]:
        """Size, etag and address: from the hub, or when it is out of reach as they were last time."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        kept = (
            self._folder / "files" / (hashlib.sha256(f"{repo} {name} {revision}".encode()).hexdigest()[:32] + ".json")
        )
        try:
            if offline:
                raise OSError("HF_HUB_OFFLINE is set")
            url = hf_hub_url(repo, name, revision=revision)
            found = get_hf_file_metadata(url)
        except EntryNotFoundError as error:
            raise ModelNotFound(f"{repo} has no {name}: only safetensors are read from the hub") from error
        except OSError as error:
            if kept.is_file():
                return dict(json.loads(kept.read_text()))
            raise ModelNotFound(f"{self.name} is not cached and the hub is out of reach ({error})") from error
        if not found.size or not found.etag:
            raise CheckpointError(f"the hub does not say how large {self.name} is")
        metadata = {
            "size": found.size, "etag": found.etag, "url": found.location, "redirected": found.location != url
        }  # fmt: skip
        _write(kept, json.dumps(metadata).encode())
        return metadata

    def read(self, offset: int, length: int) -> bytearray:
        """ByteSource: from the ranges kept here, else from the hub."""
        if not 0 <= offset <= offset + length <= self.size:
            raise CheckpointError(f"bytes {offset}:{offset + length} are outside {self.name} of {self.size}")
        if length == 0:
            return bytearray()
        kept = self._ranges / f"{offset}-{offset + length}"
        if kept.is_file() and kept.stat().st_size == length:
            return bytearray(kept.read_bytes())
        data = self._fetch(offset, length)
        _write(kept, data)
        return data

    def _fetch(self, offset: int, length: int) -> bytearray:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils._headers import build_hf_headers

        if constants.HF_HUB_OFFLINE:
            raise ModelNotFound(
                f"bytes {offset}:{offset + length} of {self.name} are not cached, and HF_HUB_OFFLINE is set"
            )
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        # A pre-signed address elsewhere must not be shown the token.
        headers |= {} if self._token_free else build_hf_headers()
        data = bytearray()
        try:
            with get_session().stream(
                "GET", self._url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
            ) as answer:
                if answer.status_code != 206:
                    raise CheckpointError(f"{self.name}: asked for a range, the hub answered {answer.status_code}")
                for piece in answer.iter_raw():
                    data += piece
                    if len(data) > length:
                        break
        except OSError as error:
            raise NetworkError(f"the hub does not answer for {self.name}: {error}") from error
        except Exception as error:
            if isinstance(error, CheckpointError) or not type(error).__module__.startswith("httpx"):
                raise
            raise NetworkError(f"the hub does not answer for {self.name}: {error}") from error
        if len(data) != length:
            raise NetworkError(f"{self.name}: {len(data)} of {length} bytes came")
        self.bytes_read += length
        return data


def _write(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    os.replace(draft, path)
