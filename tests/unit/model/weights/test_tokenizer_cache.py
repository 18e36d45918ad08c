"""The cache of converted tokenizers: what comes back, what counts as absent, how much is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from shoal.model.weights import tokenizer_cache
from shoal.model.weights.tokenizer_cache import CACHE_VARIABLE, TokenizerCache, TokenizerData, cache_folder

DATA = TokenizerData(msgspec.Raw(b'{"version":"1.0"}'), {"default": "{{ 'ü' }}"}, {"bos_token": "<s>"}, 1, False)


@pytest.fixture
def cache(tmp_path: Path) -> TokenizerCache:
    """An empty cache."""
    return TokenizerCache(tmp_path / "cache", ["converter 1"])


def test_a_tokenizer_comes_back(cache: TokenizerCache) -> None:
    """The same data, from a file that only its owner can read; before it is stored there is none."""
    assert cache.load("source") is None
    cache.store("source", DATA)
    assert cache.load("source") == DATA
    assert cache.path("source").stat().st_mode & 0o077 == 0
    cache.drop("source")
    cache.drop("source")
    assert cache.load("source") is None


def test_another_source_or_converter_has_another_file(cache: TokenizerCache, tmp_path: Path) -> None:
    """What a changed file or a later version would convert to is not known."""
    cache.store("source", DATA)
    assert cache.load("sauce") is None
    assert TokenizerCache(tmp_path / "cache", ["converter 2"]).load("source") is None


def test_a_damaged_file_counts_as_absent(cache: TokenizerCache) -> None:
    """Cut off anywhere, or with any byte changed; it can be stored again."""
    cache.store("source", DATA)
    path = cache.path("source")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        assert cache.load("source") is None
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert cache.load("source") is None
    cache.store("source", DATA)
    assert cache.load("source") == DATA


def test_a_file_of_another_name_counts_as_absent(cache: TokenizerCache) -> None:
    """Whole as it is: it was made from something else."""
    cache.store("source", DATA)
    cache.path("source").rename(cache.path("sauce"))
    assert cache.load("sauce") is None


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are of this system")
def test_a_file_that_others_may_write_counts_as_absent(cache: TokenizerCache) -> None:
    """In a folder that is shared, another user could have written it."""
    cache.store("source", DATA)
    cache.path("source").chmod(0o666)
    assert cache.load("source") is None


def test_what_is_no_file_counts_as_absent(cache: TokenizerCache) -> None:
    """A folder in its place is neither read nor in the way."""
    cache.path("source").mkdir(parents=True)
    assert cache.load("source") is None
    cache.store("source", DATA)
    assert cache.load("source") is None


def test_a_file_that_is_too_large_counts_as_absent(cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one written."""
    cache.store("source", DATA)
    monkeypatch.setattr(tokenizer_cache, "MAX_FILE_BYTES", 40)
    assert cache.load("source") is None
    cache.store("other", DATA)
    assert not cache.path("other").exists()


def test_those_used_last_are_kept(cache: TokenizerCache, tmp_path: Path) -> None:
    """Reading counts as use; nothing but whole files is left behind."""
    for index in range(tokenizer_cache.MAX_FILES + 3):
        cache.store(f"source {index}", DATA)
        os.utime(cache.path(f"source {index}"), (index, index))
        cache.load("source 0")
    held = [index for index in range(tokenizer_cache.MAX_FILES + 3) if cache.path(f"source {index}").exists()]
    assert held == [0, *range(4, tokenizer_cache.MAX_FILES + 3)]
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".json"}


def test_a_folder_that_cannot_be_made_costs_nothing_else(tmp_path: Path) -> None:
    """The tokenizer is converted again next time."""
    (tmp_path / "file").write_text("")
    cache = TokenizerCache(tmp_path / "file" / "cache")
    cache.store("source", DATA)
    assert cache.load("source") is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$SHOAL_CACHE, else the platform's folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path / "tokenizers"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "shoal" / "tokenizers"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "shoal" / "tokenizers"
