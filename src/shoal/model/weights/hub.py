"""Checkpoints on the Hugging Face hub, read by HTTP range requests.

Revision, token, endpoint, offline mode and cache are huggingface-hub's (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME).
Files that its cache holds whole are read there; ranges that were fetched are kept beside it, so that a server can start
again without the network. A branch is resolved to its commit once: no checkpoint is ever pieced together from two commits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shoal.errors import CheckpointError, ModelNotFound, NetworkError, UnsupportedModel, UsageError
from shoal.files import replace_file
from shoal.model.weights.byte_source import ByteSource, LocalFile
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.checkpoint_files import index_places, parse_config, unpacked
from shoal.model.weights.model_files import INDEX, SINGLE, chosen_weights, is_index, weight_files
from shoal.model.weights.quantization_note import NOTE, note_of
from shoal.model.weights.quantized_layers import is_in
from shoal.model.weights.safetensors import SafetensorsCheckpoint, SafetensorsFile

HEADER_CONNECTIONS = 8
TIMEOUT_S = 60.0


def open_hub(repo: str, revision: str | None = None, cached_only: bool = False) -> Checkpoint:
    """The checkpoint of a hub repository; only headers are read here.

    With `cached_only` nothing is fetched, now or later, and its source is the folder of the cache. Raises ModelNotFound for a
    repository, revision or file that is not there (or not cached, when offline), NetworkError when the hub does not answer.
    """
    config_path = fetch_file(repo, "config.json", revision, cached_only)
    if config_path is None:
        where = "in the hub's cache here" if cached_only else "there: it is not a transformers checkpoint"
        raise ModelNotFound(f"{repo} has no config.json {where}")
    commit = config_path.parent.name  # huggingface-hub's cache is snapshots/COMMIT/FILE
    config = parse_config(config_path.read_bytes(), f"{repo}/config.json")
    if is_in(config, "exl2"):
        raise UnsupportedModel(f"{repo} is in EXL2, which is read from a directory: hf download {repo} --local-dir DIR")
    is_exl3 = is_in(config, "exl3")  # where a configuration and an index may speak of the model that it was made from
    chosen = None if is_exl3 else chosen_weights(repo, config)
    places = None
    if chosen is None or is_index(chosen):
        places = _index(repo, chosen or INDEX, commit, cached_only)
    held = set(places.values()) if places else set()
    if chosen is not None:
        held |= set() if is_index(chosen) else {chosen}
    elif not places or _has(repo, SINGLE, commit, cached_only):
        held.add(SINGLE)  # an error names it, where it is not there
    names = weight_files(repo, held, list(places.values()) if places else None, chosen)
    with ThreadPoolExecutor(HEADER_CONNECTIONS) as pool:
        files = list(pool.map(lambda name: SafetensorsFile(_source(repo, name, commit, cached_only)), names))
    source = str(config_path.parent) if cached_only else repo
    note = note_of(config, _report(repo, commit, cached_only) if "quantization_config" in config else {}, repo)
    return unpacked(SafetensorsCheckpoint(source, repo, config, files, commit, None if is_exl3 else places, note))


def _report(repo: str, commit: str, cached_only: bool) -> Mapping[str, Any]:
    """What our own quantizer wrote beside a checkpoint, if it made it."""
    path = None if _lacks(repo, NOTE, commit) else fetch_file(repo, NOTE, commit, cached_only)
    return {} if path is None else parse_config(path.read_bytes(), f"{repo}/{NOTE}")


def _index(repo: str, name: str, commit: str, cached_only: bool) -> Mapping[str, str] | None:
    """The file of each tensor by an index; None where there is no such index."""
    path = None if _lacks(repo, name, commit) else fetch_file(repo, name, commit, cached_only)
    return None if path is None else index_places(path.read_bytes(), f"{repo}/{name}")


def fetch_file(repo: str, name: str, revision: str | None, cached_only: bool = False) -> Path | None:
    """A small file through huggingface-hub's cache; None when the repository, or with `cached_only` the cache, has none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if cached_only:
            cached = try_to_load_from_cache(repo, name, revision=revision)
            return Path(cached) if isinstance(cached, str) else None
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
    except Exception as error:
        if _lacks_socks(error):
            raise UsageError(
                "the hub is to be reached through a SOCKS proxy (ALL_PROXY, HTTPS_PROXY), which needs a package: "
                "pip install socksio"
            ) from error
        if not _of_the_network(error) and not isinstance(error, ValueError):  # a proxy's address that cannot be
            raise
        raise NetworkError(f"the hub does not answer for {repo}: {error}") from error


def cached_folder(repo: str, revision: str) -> Path | None:
    """Where huggingface-hub's cache has the files of a commit; None when it has none. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def _lacks(repo: str, name: str, commit: str) -> bool:
    """Whether the hub said before that a commit has no such file; asking again while it is down would take 23 seconds."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, name, revision=commit) is _CACHED_NO_EXIST


def _has(repo: str, name: str, commit: str, cached_only: bool) -> bool:
    try:
        _source(repo, name, commit, cached_only)
    except ModelNotFound:
        return False
    return True


def _source(repo: str, name: str, commit: str, cached_only: bool) -> ByteSource:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=commit)
    return LocalFile(Path(cached)) if isinstance(cached, str) else RemoteFile(repo, name, commit, cached_only)


ABSENT = "absent"
"""Kept in the place of a size: the hub said that a commit has no such file."""


class RemoteFile:
    """A file on the hub as of a commit, read by range; every range fetched is kept on disk. `cached_only`: none is fetched."""

    def __init__(self, repo: str, name: str, commit: str, cached_only: bool = False) -> None:
        from huggingface_hub import constants, hf_hub_url

        self.name = f"{repo}/{name}"
        self.bytes_read = 0
        self._repo = repo
        self._cached_only = cached_only
        # Not the address that this redirects to: that one is signed and good for an hour.
        self._url = hf_hub_url(repo, name, revision=commit)
        self._folder = (
            Path(constants.HF_HOME) / "shoal" / hashlib.sha256(f"{self.name} {commit}".encode()).hexdigest()[:32]
        )
        self.size = self._size()

    def _size(self) -> int:
        """The file's length: as it was last time, else from the hub."""
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        kept = self._folder / "size"
        text = kept.read_text() if kept.is_file() else ""
        if text.isdecimal():
            return int(text)
        missing = ModelNotFound(f"there is no {self.name}: only safetensors are read from the hub")
        if text == ABSENT:
            raise missing
        self._may_fetch(self.name)
        try:
            size = get_hf_file_metadata(self._url).size
        except EntryNotFoundError as error:
            self._keep(kept, ABSENT.encode())
            raise missing from error
        except Exception as error:
            if not _of_the_network(error):
                raise
            raise ModelNotFound(f"{self.name} is not cached and the hub is out of reach ({error})") from error
        if not size:
            raise CheckpointError(f"the hub does not say how large {self.name} is")
        self._keep(kept, str(size).encode())
        return size

    def _keep(self, path: Path, data: bytes | bytearray) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)

    def _may_fetch(self, what: str) -> None:
        if self._cached_only:
            raise ModelNotFound(
                f"{what} is not cached here, and nobody but the swarm named this model, so that the hub is not asked: name it "
                f"yourself (--model {self._repo}), or hf download {self._repo}"
            )

    def read(self, offset: int, length: int) -> bytearray:
        """ByteSource: from the ranges kept here, else from the hub."""
        if not 0 <= offset <= offset + length <= self.size:
            raise CheckpointError(f"bytes {offset}:{offset + length} are outside {self.name} of {self.size}")
        if length == 0:
            return bytearray()
        kept = self._folder / f"{offset}-{offset + length}"
        if kept.is_file() and kept.stat().st_size == length:
            return LocalFile(kept).read(0, length)
        data = self._fetch(offset, length)
        self._keep(kept, data)
        return data

    def _fetch(self, offset: int, length: int) -> bytearray:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils._headers import build_hf_headers

        what = f"bytes {offset}:{offset + length} of {self.name}"
        self._may_fetch(what)
        if constants.HF_HUB_OFFLINE:
            raise ModelNotFound(f"{what} are not cached, and HF_HUB_OFFLINE is set")
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        try:
            # The session drops the token where it is redirected to another host.
            with get_session().stream(
                "GET", self._url, headers=build_hf_headers() | wanted, timeout=TIMEOUT_S, follow_redirects=True
            ) as answer:
                _check_range(what, answer.status_code, answer.headers.get("Content-Range", ""), offset, length)
                for piece in answer.iter_raw():
                    data += piece
                    if len(data) > length:
                        break
        except Exception as error:
            if not _of_the_network(error):
                raise
            raise NetworkError(f"the hub does not answer for {what}: {error}") from error
        if len(data) != length:
            raise NetworkError(f"{what}: {len(data)} of {length} bytes came")
        self.bytes_read += length
        return data


def _check_range(what: str, status: int, content_range: str, offset: int, length: int) -> None:
    """Whether the answer is the range that was asked for, before any of its body is read."""
    if status == 200:
        raise CheckpointError(
            f"{what}: the hub ignores ranges and answers with the whole file, which is not downloaded"
        )
    if status != 206:
        raise NetworkError(f"{what}: the hub answered {status}")
    if not content_range.startswith(f"bytes {offset}-{offset + length - 1}/"):
        raise CheckpointError(f"{what}: the hub answered with another range, {content_range[:100]!r}")


def _lacks_socks(error: Exception) -> bool:
    """Whether the HTTP client lacks what it needs for a SOCKS proxy."""
    return isinstance(error, ImportError) and "socksio" in str(error)


def _of_the_network(error: Exception) -> bool:
    """Whether an error is of the connection: an OSError, or one of huggingface-hub's HTTP client (httpx, later httpx2)."""
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")
