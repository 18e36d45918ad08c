"""What a server's owner may set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shoal.errors import UsageError
from shoal.options import Options, option
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.types import MAX_NAME_CHARS, KvDtype, PeerId, Span, is_plain

MIN_MEMORY_BYTES = 64 * 10**6
JOURNAL_SHARE = 0.1
"""The share of the memory beside the weights that journals may take."""

PREFIX_SHARE = 0.1
"""The share of the memory beside the weights that output rows of pages which sessions share may take."""

BUFFER_SHARE = 0.05
"""The share of the memory beside the weights that rows under way may take: received, waiting, or not sent yet."""

MAX_SHARE = 1000
"""How many times a stranger's share the owner may give to one node."""

_UNITS = {"gib": 1 << 30, "mib": 1 << 20, "gb": 10**9, "mb": 10**6, "": 1}


def parse_bytes(text: str) -> int:
    """`"800MB"`, `"4GB"`, `"6.5GiB"` or a plain number of bytes → bytes; raises UsageError."""
    lowered = text.strip().lower()
    unit = next(unit for unit in _UNITS if lowered.endswith(unit))
    try:
        return int(float(lowered.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise UsageError("it is a size like 800MB or 4GB") from error


def _bits_per_s(megabits: str) -> float:
    return float(megabits) * 1e6


def _shares(texts: str | Sequence[str]) -> dict[PeerId, int]:
    """`KEY=N` for each; raises UsageError."""
    shares: dict[PeerId, int] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        key, _, times = text.partition("=")
        if not re.fullmatch(r"[0-9a-f]{64}", key) or not times.isdecimal() or not 1 <= int(times) <= MAX_SHARE:
            raise UsageError(f"it is a node's id, = and a whole number from 1 to {MAX_SHARE}")
        shares[PeerId(key)] = int(times)
    return shares


QuantizedBits = Literal[8, 6, 5, 4, 3, 2]

WeightDtype = Literal["auto", "float32", "bfloat16", "float16"]


class ServeOptions(Options, frozen=True, kw_only=True):
    """Options of a server. Sizes in bytes, rates in bits per second; None leaves a choice to the server.

    `private` is the private swarm that it serves in. Raises UsageError for values that make no sense, alone or together.
    """

    model: Annotated[str, option("Hub id, directory of safetensors, or GGUF file.", "Model", shown=False)]
    revision: Annotated[str | None, option("Revision on the hub.", "Model")] = None
    base: Annotated[
        str | None,
        option("The checkpoint that a quantized model was made from: serve its blocks in the base's swarm.", "Model"),
    ] = None
    blocks: Annotated[
        Span | None, option("Blocks to hold, START:STOP.", "Model", parse=Span.of, form="a span like 0:10")
    ] = None
    num_blocks: Annotated[int | None, option("How many blocks; the swarm's weakest are chosen.", "Model", least=1)] = (
        None
    )
    dtype: Annotated[
        WeightDtype,
        option("How weights are kept; auto: as the checkpoint has them.", "Model"),
    ] = "auto"
    quantize: Annotated[
        QuantizedBits | None, option("Round weights to that many bits while loading, without calibration.", "Model")
    ] = None
    int8_rows: Annotated[
        bool,
        option("With --quantize: round hidden states to 8 bits too, row by row; faster, less precise.", "Model"),
    ] = False
    exact: Annotated[
        bool,
        option(
            "Refuse to start unless rows are exact; on a GPU: slower arithmetic that may be.", "Model", flag="--exact"
        ),
    ] = False
    device: Annotated[str, option("cpu, cuda, cuda:1 or mps; only cpu has been tried.", "Model")] = "cpu"
    threads: Annotated[int | None, option("Compute threads.", "Model", least=1)] = None
    memory_bytes: Annotated[
        int | None,
        option(
            "Memory to use, like 6GB; default: half of the machine's.",
            "Memory",
            least=MIN_MEMORY_BYTES,
            flag="--memory",
            metavar="SIZE",
            form="a size from 64MB, like 800MB or 4GB",
            parse=parse_bytes,
        ),
    ] = None
    kv_dtype: Annotated[KvDtype, option("How keys and values are kept.", "Memory")] = "float32"
    share_prefixes: Annotated[
        bool, option("What one client's prompt began with may be found by another's. Hits can be timed.", "Memory")
    ] = False
    fetch_ahead: Annotated[
        int,
        option(
            "Blocks to have on disk, fetched while the line is idle, in a swarm of up to 128 servers.",
            "Memory",
            least=0,
        ),
    ] = 0
    listen: Annotated[str, option("HOST:PORT to listen on; 0.0.0.0 for all, port 0 for a free one.", "Network")] = (
        "127.0.0.1:0"
    )
    transport: Annotated[str | None, option("Use only this transport: tls or iroh.", "Network")] = None
    max_upload_bits_per_s: Annotated[
        float | None,
        option(
            "Limit on sending, in Mbit/s.", "Limits", above=0, flag="--max-upload", metavar="MBIT", parse=_bits_per_s
        ),
    ] = None
    max_sessions: Annotated[int, option("Sessions at once.", "Limits", least=1)] = 64
    max_session_tokens: Annotated[int, option("Tokens that one session may have.", "Limits", least=1)] = 32_768
    shares: Annotated[
        Mapping[PeerId, int],
        option(
            "KEY=N: this node has N times a stranger's share, like a gateway with many users; may be repeated.",
            "Limits",
            flag="--share",
            metavar="KEY=N",
            parse=_shares,
            repeated=True,
        ),
    ] = msgspec.field(default_factory=dict)
    peers: Annotated[tuple[str, ...], option("Ticket of a member to join.", "Swarm", shown=False)] = ()
    name: Annotated[str, option("This server's name in lists of servers.", "Swarm")] = ""
    identity: Annotated[
        Path | None, option("Key file, made if missing; `shoal serve` keeps one for each model.", "Swarm")
    ] = None
    private: PrivateSwarm | None = None
    discovery: DiscoveryOptions = DiscoveryOptions()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None and self.num_blocks is not None:
            raise UsageError("blocks or num_blocks is given, not both", field="blocks")
        if self.int8_rows and self.quantize is None:
            raise UsageError("int8_rows goes with quantize", field="int8_rows")
        if self.private is not None and self.discovery.wanted:
            raise UsageError("a private swarm is found by its invite and its members, not by --lan or --public")
        if not all(isinstance(times, int) and 1 <= times <= MAX_SHARE for times in self.shares.values()):
            raise UsageError(f"a share in shares is a whole number from 1 to {MAX_SHARE}", field="shares")
        if len(self.name) > MAX_NAME_CHARS:
            raise UsageError(
                f"name cannot have {len(self.name)} characters: it has at most {MAX_NAME_CHARS}", field="name"
            )
        if not is_plain(self.name):
            raise UsageError(f"name cannot be {self.name!r}: it is one line without control characters", field="name")


def default_memory_bytes() -> int:
    """Half of the machine's memory, or 4 GiB where that is unknown."""
    there = machine_memory_bytes()
    return 4 << 30 if there is None else there // 2


def machine_memory_bytes() -> int | None:
    """The machine's memory; None where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this platform
        return None
