"""What a stranger's records, answers and addresses may do to everybody else: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import math
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import shoal
from shoal.errors import RecordError, ShoalError
from shoal.protocol.messages import Message, RowsFrame
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import MAX_PLANNED, RECORD_RENEWAL_S, SignedRecord, verify_record
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.transport.frame_channel import FrameChannel
from shoal.types import ModelSpec, PeerId, Span
from tests.attacks.membership.attackers import push
from tests.faults.native_calls import CALLS, EMPTY
from tests.faults.processes import ENDS_S, ROOT, SHOAL, ended, heard, running
from tests.faults.wire import Payload, Sent, on_the_way_out
from tests.kernels.natively import needs_kernels
from tests.records import FINGERPRINT, signed_record
from tests.support.virtual_clock import VirtualClock
from tests.swarms import NUM_BLOCKS, Swarm, SwarmMaker, until

ALL = Span(0, NUM_BLOCKS)
PROMPT = "the sea"
SOON_S = 2.0
"""How long something may take that comes about in a moment."""


async def show(swarm: Swarm, signed: SignedRecord) -> None:
    """A stranger's record, in an exchange with the swarm's first server."""
    async with swarm.client() as stranger:
        await push(stranger, swarm.servers[0], (signed.data,))


def greedy(ticket: str, model: Path | None) -> list[int]:
    """Eight tokens of a client that knows one ticket, and maybe the checkpoint."""
    with shoal.connect(None if model is None else str(model), peers=[ticket], transport="tls") as remote:
        return list(remote.generate(PROMPT, max_tokens=8, ignore_eos=True, wait_s=0.2).token_ids)


def low_and_high(folder: Path) -> tuple[Identity, Path]:
    """An identity that comes before another one in every list, and the file of the other one."""
    low, high = sorted((Identity.generate(), Identity.generate()), key=lambda one: one.peer)
    path = folder / "identity"
    path.write_text(high.key.private_bytes_raw().hex())
    return low, path


@pytest.mark.parametrize("named", [True, False], ids=["checkpoint at hand", "whatever is served"])
@pytest.mark.parametrize(
    "shape", [{"num_blocks": 1}, {"num_blocks": 1000}, {"hidden_size": 64}], ids=["1 block", "1000 blocks", "wider"]
)
async def test_a_models_shape_is_no_hearsay(
    swarm_of: SwarmMaker, tiny_model: Path, tmp_path: Path, shape: dict[str, Any], named: bool
) -> None:
    """A record that gives a model another shape than its checkpoint has changes no client's reply."""
    stranger, identity = low_and_high(tmp_path)
    async with swarm_of(ALL, identity=identity) as swarm:
        expected = await asyncio.to_thread(greedy, swarm.ticket, tiny_model)
        lie = msgspec.structs.replace(swarm.servers[0].record.model, **shape)
        await show(swarm, signed_record(stranger, model=lie, span=Span(0, lie.num_blocks)))
        assert await asyncio.to_thread(greedy, swarm.ticket, tiny_model if named else None) == expected


async def test_a_models_name_is_not_spoilt(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A record of another checkpoint under the same name, with nothing behind it, keeps no client from the model."""
    async with swarm_of(ALL) as swarm:
        expected = await asyncio.to_thread(greedy, swarm.ticket, tiny_model)
        lie = msgspec.structs.replace(swarm.servers[0].record.model, fingerprint=FINGERPRINT)
        await show(swarm, signed_record(Identity.generate(), model=lie, span=ALL))
        assert await asyncio.to_thread(greedy, swarm.ticket, None) == expected


NEIGHBOUR = "ab" * 32
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "2^26 blocks": {"model": ModelSpec("tiny", FINGERPRINT, 1 << 26, 48), "span": Span(0, 1 << 26)},
    "2^63 blocks": {"model": ModelSpec("tiny", FINGERPRINT, 1 << 63, 48)},
    "2^64 - 1 blocks": {"model": ModelSpec("tiny", FINGERPRINT, (1 << 64) - 1, 48), "span": Span(0, (1 << 64) - 1)},
    "rows of 2^40 numbers": {"model": ModelSpec("tiny", FINGERPRINT, 12, 1 << 40)},
    "rows of no numbers": {"model": ModelSpec("tiny", FINGERPRINT, 12, 0)},
    "rows of -1 numbers": {"model": ModelSpec("tiny", FINGERPRINT, 12, -1)},
    "2^63 free tokens": {"free_tokens": 1 << 63},
    "-1 free tokens": {"free_tokens": -1},
    "2^64 - 1 queued rows": {"queued_rows": (1 << 64) - 1},
    "-1 queued rows": {"queued_rows": -1},
    "a decode rate of NaN": {"decode_rows_per_s": math.nan},
    "an endless decode rate": {"decode_rows_per_s": math.inf},
    "a prefill rate below 0": {"prefill_rows_per_s": -1.0},
    "weights of NaN bits": {"bits_per_weight": math.nan},
    "weights of -1 bits": {"bits_per_weight": -1.0},
    "a next span that ends before it begins": {"next_span": Span(9, 2)},
    "a next span beyond the model": {"next_span": Span(0, 13)},
    "a next span up to 2^63": {"next_span": Span(0, 1 << 63)},
    "blocks on disk beyond the model": {"on_disk": (Span(5, 13),)},
    "blocks on disk from -1": {"on_disk": (Span(-1, 3),)},
    "NaN seconds for a fetch": {"fetch_s": math.nan},
    "-1 seconds for a fetch": {"fetch_s": -1.0},
    "a round trip of NaN": {"round_trips": ((NEIGHBOUR, math.nan),)},
    "a round trip of -1 second": {"round_trips": ((NEIGHBOUR, -1.0),)},
    "a plan beyond the model": {"plan": (("abababab", Span(0, 13)),)},
    "a plan for no blocks": {"plan": (("abababab", Span(3, 3)),)},
    "signed before time began": {"issued_at": -math.inf},
}


@pytest.mark.parametrize("numbers", IMPOSSIBLE)
def test_a_record_of_impossible_numbers_is_refused(numbers: str) -> None:
    """A record holds no number that its node cannot mean, and none that arithmetic over all records would not survive."""
    signed = signed_record(Identity.generate(), **IMPOSSIBLE[numbers])
    with pytest.raises(RecordError):
        verify_record(signed.data, time.time())


async def test_elided_rows_end_no_client(
    swarm_of: SwarmMaker, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hop that elides the rows which a client needs costs it that hop at most, and never its process."""
    lies = iter([True])

    def elide(message: Message, payload: Payload) -> Sent:
        if isinstance(message, RowsFrame) and next(lies, False):
            return msgspec.structs.replace(message, elided=message.count), b""
        return message, payload

    options = ("--raw", "--max-tokens", "8", "--transport", "tls", "--json")
    async with swarm_of(ALL, ALL) as swarm:
        expected = await asyncio.to_thread(greedy, swarm.ticket, tiny_model)
        on_the_way_out(monkeypatch, elide)
        peers = ("--peers", swarm.ticket)
        async with running(SHOAL, "generate", PROMPT, *peers, *options, models=tiny_model.parent) as client:
            code, out, err = await ended(client)
        assert code == 0, err
        tokens = json.loads(out)["token_ids"]
        assert tokens == expected[: len(tokens)]


@pytest.fixture(scope="module")
def endings() -> dict[str, str]:
    """How calls of the compiled kernels with sizes that cannot be have ended."""
    command = [sys.executable, "-m", "tests.faults.native_calls"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=ENDS_S, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@needs_kernels
@pytest.mark.parametrize("call", CALLS)
def test_compiled_kernels_check_sizes(endings: dict[str, str], call: str) -> None:
    """Rows, room and threads that cannot be are refused before a compiled kernel divides by them or reads beyond them."""
    assert endings[call] == "raised" or (call in EMPTY and endings[call] == "returned")


def of_version_five(identity: Identity) -> ssl.SSLContext:
    """A TLS context that shows a certificate for a node key whose X.509 version there is not."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shoal node")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(identity.key.public_key())
    signed = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day).sign(identity.key, None)
    sound = signed.public_bytes(serialization.Encoding.DER)
    assert sound.count(b"\xa0\x03\x02\x01\x02") == 1
    shown = ssl.DER_cert_to_PEM_cert(sound.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"))
    private = identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.write_bytes(private + shown.encode())
        context.load_cert_chain(path)
    return context


class Listener:
    """Somebody whose certificate cannot be read; `dials` counts who came. Use with `async with`."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self.address = ""
        self.dials = 0
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def record(self) -> SignedRecord:
        """What it says of itself."""
        return signed_record(self.identity, (self.address,))

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_server(self._met, "127.0.0.1", 0, ssl=of_version_five(self.identity))
        self.address = f"tls://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_a_certificate_that_cannot_be_read_is_a_failed_dial() -> None:
    """A node whose certificate cannot be read is not the node that was dialled: the error says so, and is one of ours."""
    async with Listener() as listener:
        ticket = Ticket(listener.identity.peer, (listener.address,))
        with pytest.raises(ShoalError):
            async with shoal.AsyncClient([str(ticket)], only="tls"):
                pass


async def test_a_certificate_ends_no_gossip(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has met a certificate which it cannot read goes on exchanging records with the others."""
    monkeypatch.setattr("shoal.server.gossip.EXCHANGE_S", 0.02)
    asked: Counter[PeerId] = Counter()

    async with Listener() as listener, swarm_of(ALL, ALL) as swarm:
        begin = Directory.begin_exchange

        def counted(directory: Directory, peer: PeerId, network: str = "") -> None:
            asked[peer] += 1
            begin(directory, peer, network)

        monkeypatch.setattr(Directory, "begin_exchange", counted)
        await show(swarm, listener.record)
        await until(lambda: listener.dials >= len(swarm.servers))
        for server in swarm.servers:
            before = asked[server.identity.peer]
            await until(lambda peer=server.identity.peer, before=before: asked[peer] > before, SOON_S)


async def test_a_server_does_not_live_on_without_its_gossip(
    swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose exchange of records fails in a way that nobody foresaw goes on with it, or leaves and says why."""
    monkeypatch.setattr("shoal.server.gossip.EXCHANGE_S", 0.02)
    tried: Counter[int] = Counter()

    async def fail(channel: FrameChannel, directory: Directory, fingerprint: str = "") -> int:
        tried[id(directory)] += 1
        raise RuntimeError("nobody foresaw this")

    async with swarm_of(ALL, ALL) as swarm:
        monkeypatch.setattr(exchange, "ask", fail)
        server = swarm.servers[0]
        await until(lambda: tried[id(server.directory)] >= 1)
        await until(lambda: tried[id(server.directory)] >= 2 or server.ordered_to_leave.is_set(), SOON_S)


IPV4 = ("127.0.0.1", *(f"127.100.100.{100 + index}" for index in range(3)))
IPV6 = tuple(f"[2001:db8:1234:5678:9abc:def0:1234:567{index}]" for index in range(4))
NAME = "a server on the top shelf, quite far"
"""With four IPv4 addresses of both transports, three neighbours fit into a record beside it, and a fourth does not."""


def with_hosts(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]) -> None:
    """This machine's addresses, as servers find them."""
    for transport in ("tls_transport", "iroh_transport"):
        monkeypatch.setattr(f"shoal.transport.{transport}.local_hosts", lambda bound: hosts)


async def test_a_record_fits_whatever_a_server_is_called(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has room for the longest name that there may be, in letters of two bytes, and for all addresses."""
    with_hosts(monkeypatch, IPV6)
    async with swarm_of(ALL, transport=None, name="é" * 64) as swarm:
        server = swarm.servers[0]
        assert server.directory.get(server.identity.peer) is not None


async def test_a_record_fits_whomever_a_server_knows(swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record has room for four addresses of each transport beside four neighbours, so that a fifth server can join."""
    with_hosts(monkeypatch, IPV4)
    async with swarm_of(*[Span(3, 6)] * 4, transport=None, name=NAME) as swarm:
        server = await swarm.join(Span(0, 3))
        assert server.directory.get(server.identity.peer) is not None


async def test_a_record_is_renewed_whomever_a_server_knows(
    swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record is renewed after its server has measured the ways to four neighbours."""
    with_hosts(monkeypatch, IPV4)
    monkeypatch.setattr("shoal.server.server.RECORD_RENEWAL_S", 0.05)
    async with swarm_of(Span(0, 3), *[Span(3, 6)] * 4, transport=None, name=NAME) as swarm:
        server = swarm.servers[0]
        await until(lambda: len(server.network.peer_latency.round_trips) == 4)
        before = server.record.sequence
        await until(lambda: server.record.sequence > before, SOON_S)


async def test_a_record_says_what_matters_for_ten_minutes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight addresses, a long name, a plan and four neighbours: each renewal reaches another server whole."""
    with_hosts(monkeypatch, IPV4)
    monkeypatch.setattr("shoal.server.server.EXPIRY_S", 60.0)  # it is not what is tested, and wakes most often
    plan = tuple((f"{index:08x}", Span(0, 3)) for index in range(MAX_PLANNED))
    clock, name = VirtualClock(time.time()), "é" * 40
    servers: list[Server] = []
    async with contextlib.AsyncExitStack() as stack:
        for span in (*[Span(3, 6)] * 4, Span(0, 3)):
            peers = (servers[0].ticket,) if servers else ()
            config = ServeOptions(model=str(tiny_model), blocks=span, peers=peers, name=name, memory_bytes=128 << 20)
            servers.append(await stack.enter_async_context(Server(config, clock=clock)))
        neighbour, server = servers[0], servers[-1]
        await until(lambda: len(server.directory.records()) == 5)
        server.span_host.announce_plan(plan)
        for _ in range(int(600 / RECORD_RENEWAL_S)):
            before = server.record.sequence
            await clock.advance(RECORD_RENEWAL_S)
            await until(lambda before=before: server.record.sequence > before)
            await server.network.gossip.tell_some()
            heard_of = neighbour.directory.get(server.identity.peer)
            assert heard_of is not None
            assert heard_of.record == server.record
            assert (heard_of.record.name, heard_of.record.plan) == (name, plan)
            assert len(heard_of.record.addresses) == 8
            assert len(heard_of.record.round_trips) == 4


async def test_an_address_is_no_markup(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A server joins a swarm where a record has an address that would be markup in a terminal."""
    options = ("--transport", "tls", "--memory", "128MB")
    async with swarm_of(ALL) as swarm:
        await show(swarm, signed_record(Identity.generate(), ("tls://127.0.0.1:1[/]",)))
        async with running(SHOAL, "serve", str(tiny_model), "--peers", swarm.ticket, *options) as newcomer:
            ticket = await heard(newcomer)
            if ticket:
                newcomer.send_signal(signal.SIGTERM)
            code, _, err = await ended(newcomer)
    assert "Traceback" not in err
    assert Ticket.parse(ticket)
    assert code == 0
