"""What is fuzzed: for each kind of bytes from outside some sound ones, and what takes them.

A target's `run` returns, or raises one of Shoal's errors: the input was refused. Anything else that it raises is a fault.
What is signed is mutated first and signed then, as a hostile node can do.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import Phase, find, settings
from safetensors.numpy import load_file, save

from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions
from shoal.client.saved_reply import read_saved
from shoal.engine.backends import choose_backend
from shoal.kv.cache import KVCache
from shoal.model.families import model_config
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.block_loading import load_blocks, weight_format
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.checkpoint_files import index_places, parse_config
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.hub import _check_range
from shoal.model.weights.model_source import open_checkpoint
from shoal.options import Option, options_of
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.messages import DIRECTORY, FIRST, GREETING, LINK, MEMBERSHIP, SESSION, encode_message, only
from shoal.protocol.row_codec import decode_rows
from shoal.protocol.rows import Rows
from shoal.server.serve_options import ServeOptions
from shoal.swarm.directory.directory import pack_records, unpack_records
from shoal.swarm.directory.records import verify_acceptance, verify_record
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership import credentials
from shoal.swarm.routing.route_options import RouteOptions
from shoal.transport.tls_certificate import _certificate, certified_peer
from shoal.types import PeerId, Span
from tests.records import signed_record
from tests.support.any_message import MESSAGES
from tests.support.exl3_files import CODEBOOKS, exl3_layer
from tests.support.family_cases import CASES, TINY
from tests.support.gguf_files import write_gguf
from tests.support.struct_strategies import sizes_at_most, values
from tests.support.tiny_models import tiny_llama
from tests.unit.client.test_saved_reply import saved_reply

NOW = 1_800_000_000.0
ROWS = 3


class Target(NamedTuple):
    """Sound inputs, made once, and what takes an input."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], object]


@functools.cache
def _signer() -> Identity:
    return Identity.generate()


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="shoal-fuzz-"))


def _file(data: bytes, name: str) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


PLACES = (FIRST, GREETING, DIRECTORY, SESSION, LINK, MEMBERSHIP, *map(only, MESSAGES))


def _message_seeds() -> list[bytes]:
    """Every message, within its bounds and as large as they allow."""
    one = settings(phases=[Phase.generate], database=None)
    some = [find(values(kind), lambda _: True, settings=one, random=random.Random(0)) for kind in MESSAGES]
    return [encode_message(message) for message in (*some, *(sizes_at_most(kind, "x") for kind in MESSAGES))]


def _message(data: bytes) -> None:
    PLACES[len(data) % len(PLACES)].decode(data)


def _frame_seeds() -> list[bytes]:
    return [bytes(encode_frame(header, b"payload")) for header in _message_seeds()]


def _frames(data: bytes) -> None:
    """The same bytes in two pieces."""
    decoder = FrameDecoder(max_payload_bytes=1 << 16)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        decoder.feed(piece)
        while decoder.next() is not None:
            pass


def _rows(data: bytes) -> None:
    codec = ("fp32", "bf16", "fp16")[len(data) % 3]
    decode_rows(data[2:], int.from_bytes(data[:1], "little"), int.from_bytes(data[1:2], "little"), codec)


def _signed(label: bytes, body: bytes) -> bytes:
    """The bytes with the signature of the node that they name, if they name this process's."""
    return _signer().sign(label, body) + body


def _record_seeds() -> list[bytes]:
    others = {"plan": (("ab" * 4, Span(0, 4)),), "round_trips": (("c" * 64, 0.1),), "on_disk": (Span(0, 4),)}
    moving = {"draining": True, "next_span": Span(2, 5), "max_blocks": 4, "fetch_s": 1.5}
    addresses = ("tls://[2001:db8::1]:4433", "iroh://192.0.2.1:5000", "tls://192.0.2.1:1")
    times = {"issued_at": NOW, "expires_at": NOW + 300.0}
    full = signed_record(
        _signer(), addresses, name="a name", numerics="native", version="1.0", **others, **moving, **times
    )
    return [one.data[64:] for one in (signed_record(_signer(), **times), full)]


def _record(data: bytes) -> None:
    verify_record(_signed(b"shoal record 1", data), NOW)


def _acceptance(data: bytes) -> None:
    verify_acceptance(_signed(b"shoal acceptance 1", data), NOW)


def _acceptance_seeds() -> list[bytes]:
    fields = {"session": bytes(16), "peer": _signer().peer, "upstream": "b" * 64, "generation": 1}
    return [msgspec.msgpack.encode({**fields, "expires_at": NOW + 60.0})]


def _batch_seeds() -> list[bytes]:
    wanted = [PeerId("a" * 64), PeerId("b" * 64)]
    return [pack_records(wanted, [_signed(b"shoal record 1", body) for body in _record_seeds()], 1 << 16)]


def _membership_seeds() -> list[bytes]:
    me = _signer().peer
    made = (
        credentials.Invite(me, bytes(16), me, ("tls://192.0.2.1:1",), NOW + 60.0, "lab"),
        credentials.Delegation(me, me, NOW + 60.0),
        credentials.Certificate(me, "b" * 64, me, NOW, NOW + 60.0),
        credentials.Revocations(me, 3, frozenset({"c" * 64}), frozenset({bytes(16)})),
    )
    return [bytes([index]) + msgspec.msgpack.encode(one) for index, one in enumerate(made)]


CHECKS: dict[bytes, Callable[[bytes], object]] = {
    b"shoal invite 1": credentials.verify_invite,
    b"shoal delegation 1": credentials.verify_delegation,
    b"shoal certificate 1": lambda data: credentials.verify_certificate(data, _signer().peer, NOW),
    b"shoal revocations 1": lambda data: credentials.verify_revocations(data, _signer().peer),
}


def _statement(data: bytes) -> None:
    label = list(CHECKS)[data[0] % len(CHECKS) if data else 0]
    CHECKS[label](_signed(label, data[1:]))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _invite_seeds() -> list[bytes]:
    me = _signer()
    invite = credentials.Invite(me.peer, bytes(16), me.peer, ("tls://192.0.2.1:1",), NOW + 60.0, "lab")
    delegation = credentials.Delegation(me.peer, me.peer, NOW + 60.0)
    return [credentials.sign_invite(invite, me).encode(), credentials.sign_delegation(delegation, me).encode()]


def _invite(data: bytes) -> None:
    (credentials.parse_invite if len(data) % 2 else credentials.parse_delegation)(_text(data))


def _ticket_seeds() -> list[bytes]:
    return [str(Ticket(_signer().peer, ("tls://192.0.2.1:1", "tls://[2001:db8::1]:9"))).encode()]


def _certificate_seeds() -> list[bytes]:
    return [_certificate(_signer().key).public_bytes(Encoding.DER)]


def _saved_seeds() -> list[bytes]:
    return [msgspec.msgpack.encode(saved_reply())]


def _range(data: bytes) -> None:
    status = int.from_bytes(data[:2], "little") % 600 if data[:1] == b"\xff" else 206
    _check_range("a file", status, _text(data), 100, 50)


@functools.cache
def _options() -> list[Option]:
    structs = (ServeOptions, ConnectOptions, SessionOptions, RouteOptions, ReplyOptions, SamplingParams)
    return [option for struct in structs for option in options_of(struct).values()]


def _option_seeds() -> list[bytes]:
    texts = ("1", "0.5", "6GB", "0:4", "10", "127.0.0.1:4433", "tls", "fp32", "float32", "a,b", "cuda", "~/x", "")
    return [bytes([index]) + text.encode() for index in range(len(_options())) for text in texts]


def _option(data: bytes) -> None:
    """An option as the command line reads it, from any text."""
    options = _options()
    option = options[data[0] % len(options)] if data else options[0]
    text = _text(data[1:])
    option.check(option.taken([text] if option.info.repeated else text))


@functools.cache
def _checkpoint() -> Path:
    """A random Llama of one block."""
    folder = _folder() / "llama"
    folder.mkdir()
    tiny_llama(
        folder,
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    return folder


def _config_seeds() -> list[bytes]:
    """Tiny configurations of all families."""
    return [json.dumps({"model_type": case.model_type, **TINY, **case.fields}).encode() for case in CASES]


def _config(data: bytes) -> None:
    model_config(parse_config(data, "config.json"))


def _index_seeds() -> list[bytes]:
    return [
        json.dumps({"metadata": {}, "weight_map": {"a.weight": "model-1.safetensors", "b": "x.safetensors"}}).encode()
    ]


def _safetensors_seeds() -> list[bytes]:
    return [(_checkpoint() / "model.safetensors").read_bytes()]


def _safetensors(data: bytes) -> None:
    path = _file(data, "model.safetensors")
    config = path.with_name("config.json")
    if not config.exists():
        shutil.copy(_checkpoint() / config.name, config)
    _computed(open_checkpoint(str(path.parent)))


@functools.cache
def _exl3_folder() -> Path:
    """A configuration of the same model in EXL3."""
    folder = _folder() / "exl3"
    folder.mkdir()
    config = json.loads((_checkpoint() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "exl3"}}))
    return folder


def _exl3_seeds() -> list[bytes]:
    """Layers of several widths, with scales and with signs alone."""
    rng, stored = np.random.default_rng(0), load_file(_checkpoint() / "model.safetensors")
    for bits, name in enumerate([name for name in stored if name.endswith("proj.weight")], 1):
        outputs, inputs = stored.pop(name).shape
        key = name.removesuffix(".weight")
        stored |= exl3_layer(rng, key, bits, inputs, outputs, CODEBOOKS[bits % 3], older=bits % 2 == 0).tensors
    return [save(stored)]


def _exl3(data: bytes) -> None:
    (_exl3_folder() / "model.safetensors").write_bytes(data)
    _computed(open_checkpoint(str(_exl3_folder())))


def _gguf_seeds() -> list[bytes]:
    path = _folder() / "sound"
    write_gguf(_checkpoint(), path)
    return [path.read_bytes()]


def _gguf(data: bytes) -> None:
    path = _file(data, "model.gguf")
    _computed(GgufCheckpoint(str(path), LocalFile(path)))


def _computed(checkpoint: Checkpoint) -> None:
    """Some rows through the first block on the fastest engine, from the file's own sizes and weights."""
    model, form = model_config(checkpoint.config), weight_format("float32", None, checkpoint)
    span = Span(0, 1)
    backend = choose_backend(model, form, threads=1)
    blocks = load_blocks(checkpoint, model, span, form, build=backend.build)
    cache = KVCache(model.block.cache_shape, 1)
    cache.open("one", span, 64)
    cache.grow("one", 64)
    rows = Rows("one", 0, torch.ones(ROWS, model.block.hidden_size))
    backend.assemble(model, span, blocks, cache).run(range(1), [rows])


TARGETS: dict[str, Target] = {
    "messages": Target(_message_seeds, _message),
    "frames": Target(_frame_seeds, _frames),
    "rows": Target(lambda: [b"\x02\x03" + bytes(24), b"\x02\x03" + bytes(12)], _rows),
    "records": Target(_record_seeds, _record),
    "record batches": Target(_batch_seeds, lambda data: unpack_records(2, data)),
    "acceptances": Target(_acceptance_seeds, _acceptance),
    "membership statements": Target(_membership_seeds, _statement),
    "invites": Target(_invite_seeds, _invite),
    "tickets": Target(_ticket_seeds, lambda data: Ticket.parse(_text(data))),
    "TLS certificates": Target(_certificate_seeds, certified_peer),
    "saved replies": Target(_saved_seeds, lambda data: read_saved(_file(data, "saved"))),
    "HTTP ranges": Target(lambda: [b"bytes 100-149/1000", b"\xff\x01", b"bytes */1000"], _range),
    "options": Target(_option_seeds, _option),
    "configurations": Target(_config_seeds, _config),
    "indexes": Target(_index_seeds, lambda data: index_places(data, "index.json")),
    "safetensors": Target(_safetensors_seeds, _safetensors),
    "EXL3": Target(_exl3_seeds, _exl3),
    "GGUF": Target(_gguf_seeds, _gguf),
}
FILES = ("configurations", "indexes", "safetensors", "EXL3", "GGUF", "saved replies")
"""Targets that read files; the others take what comes over the network or from a user's hand."""
