"""What a server's owner may set."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from shoal.errors import UsageError
from shoal.kv.cache_storage import KV_DTYPES
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.types import MAX_NAME_CHARS, Span, is_plain

MIN_MEMORY_BYTES = 64 << 20
JOURNAL_SHARE = 0.1
"""The share of the memory beside the weights that journals may take."""

PREFIX_SHARE = 0.1
"""The share of the memory beside the weights that output rows of pages which sessions share may take."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `shoal serve`. Sizes in bytes, rates in bits per second; None leaves a choice to the server."""

    model: str
    revision: str | None = None
    blocks: Span | None = None
    num_blocks: int | None = None
    peers: tuple[str, ...] = ()
    name: str = ""
    memory_bytes: int | None = None
    threads: int | None = None
    dtype: str = "auto"
    quantize: int | None = None
    int8_rows: bool = False
    kv_dtype: str = "float32"
    share_prefixes: bool = False
    device: str = "cpu"
    exact: bool = False
    listen: str = "127.0.0.1:0"
    transport: str | None = None
    max_upload_bits_per_s: float | None = None
    max_sessions: int = 64
    max_session_tokens: int = 32_768
    identity: Path | None = None
    private: PrivateSwarm | None = None
    discovery: DiscoveryOptions = DiscoveryOptions()
    fetch_ahead: int = 0

    def __post_init__(self) -> None:
        if self.blocks is not None and self.num_blocks is not None:
            raise UsageError("give --blocks or --num-blocks, not both")
        for label, value in (
            ("--num-blocks", self.num_blocks),
            ("--threads", self.threads),
            ("--max-sessions", self.max_sessions),
            ("--max-upload", self.max_upload_bits_per_s),
        ):
            if value is not None and value <= 0:
                raise UsageError(f"{label} must be positive, not {value}")
        if self.fetch_ahead < 0:
            raise UsageError(f"--fetch-ahead must not be negative, but is {self.fetch_ahead}")
        if self.kv_dtype not in KV_DTYPES:
            raise UsageError(f"--kv-dtype is one of {', '.join(KV_DTYPES)}, not {self.kv_dtype}")
        if self.memory_bytes is not None and self.memory_bytes < MIN_MEMORY_BYTES:
            raise UsageError(f"--memory must be at least {MIN_MEMORY_BYTES >> 20} MB")
        if self.int8_rows and self.quantize is None:
            raise UsageError("--int8-rows goes with --quantize")
        if self.private is not None and self.discovery.wanted:
            raise UsageError("a private swarm is found by its invite and its members, not by --lan or --public")
        if len(self.name) > MAX_NAME_CHARS or not is_plain(self.name):
            raise UsageError(f"--name has at most {MAX_NAME_CHARS} characters, none of them a control character")


def default_memory_bytes() -> int:
    """Half of the machine's memory, or 4 GiB where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):  # not on this platform
        return 4 << 30
