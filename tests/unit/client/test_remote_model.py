"""The ends of a model on the client's side, and which checkpoint they come from."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import msgspec
import pytest
import torch

from shoal.client.activity import Activity
from shoal.client.remote_model import (
    EMBED_AT_ONCE,
    HEADS,
    RemoteModel,
    find_checkpoint,
    find_described,
    head_form,
    open_model,
)
from shoal.errors import FingerprintMismatch, ModelNotFound, UsageError
from shoal.model.families import model_config
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.block_loading import load_ends
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.model_source import open_checkpoint
from shoal.protocol.messages import Description
from shoal.types import ModelSpec
from tests.records import FINGERPRINT


class OneModelSwarm:
    """A client of a swarm that serves one checkpoint."""

    activity = Activity()

    def __init__(self, folder: Path) -> None:
        checkpoint = open_checkpoint(str(folder))
        self.spec = ModelSpec(checkpoint.name, fingerprint(checkpoint), 6, 48)
        self.description = Description(checkpoint.name, self.spec.fingerprint, folder.name)
        self.asked: list[ModelSpec | None] = []
        self.closed = 0

    async def wait_for(self, model: ModelSpec, wait_s: float = 0.0) -> None:
        """AsyncClient."""
        self.asked.append(model)

    async def descriptions(self, wait_s: float = 0.0) -> list[Description]:
        """AsyncClient."""
        self.asked.append(None)
        return [self.description]

    async def close(self) -> None:
        """AsyncClient."""
        self.closed += 1


async def opened(swarm: OneModelSwarm, model: str | None = None, head: str = "float32") -> RemoteModel:
    """The swarm's model."""
    return await open_model(swarm, model, head=head)  # type: ignore[arg-type]


async def test_a_model_that_the_user_names(tiny_model: Path) -> None:
    """The swarm is asked for this very checkpoint."""
    swarm = OneModelSwarm(tiny_model)
    async with await opened(swarm, str(tiny_model)) as model:
        assert model.source == str(tiny_model)
        assert model.spec == swarm.spec
        assert swarm.asked == [swarm.spec]
        await model.close()
    assert swarm.closed == 2  # twice is harmless


async def test_the_model_that_the_swarm_serves(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are found by the name that servers tell."""
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    swarm = OneModelSwarm(tiny_model)
    async with await opened(swarm) as model:
        assert model.source == ""
        assert swarm.asked == [None, swarm.spec]
        assert model.tokenizer.decode(model.tokenizer.encode("the sea")) == "the sea"


async def test_ends_are_computed_as_the_checkpoint_has_them(tiny_model: Path) -> None:
    """A few rows where they are asked for, many in the thread: the same numbers."""
    checkpoint = open_checkpoint(str(tiny_model))
    ends = load_ends(checkpoint, model_config(checkpoint.config))
    token_ids = list(range(5, 5 + 2 * EMBED_AT_ONCE))
    async with await opened(OneModelSwarm(tiny_model), str(tiny_model)) as model:
        expected = ends.embed(token_ids)
        assert torch.equal(await model.embed(token_ids), expected)  # before the proof perhaps
        logits = await model.logits(expected)
        assert torch.equal(await model.embed(token_ids), expected)  # after it
        assert torch.equal(await model.embed(token_ids[:2]), expected[:2])
        assert logits.shape == (len(token_ids), 258)
        torch.testing.assert_close(logits, ends.logits(expected, 1))
        token = await model.choose(expected, SamplingParams(), 0, 0, [])
        assert token == int(logits[-1].argmax())


async def test_a_sessions_room_is_within_what_the_model_can(tiny_model: Path) -> None:
    """It has 512 positions."""
    async with await opened(OneModelSwarm(tiny_model), str(tiny_model)) as model:
        assert [model.session_options(count).max_tokens for count in (1, 512, 513)] == [1, 512, 512]


@pytest.mark.parametrize("head", HEADS)
async def test_a_head_can_be_kept_in_less(tiny_model: Path, head: str) -> None:
    """Its logits are near those in float32."""
    async with await opened(OneModelSwarm(tiny_model), str(tiny_model), head) as model:
        rows = await model.embed([5, 6, 7])
        logits = await model.logits(rows)
    async with await opened(OneModelSwarm(tiny_model), str(tiny_model)) as model:
        exact = await model.logits(await model.embed([5, 6, 7]))
    assert float(torch.nn.functional.cosine_similarity(logits, exact).min()) > 0.99


def test_a_head_that_there_is_not() -> None:
    """The error says which there are."""
    with pytest.raises(UsageError, match="float32, bfloat16, int8"):
        head_form("int4")


def described(folder: Path, **changes: str) -> Description:
    """What a server of this checkpoint says of it."""
    checkpoint = open_checkpoint(str(folder))
    fields = {"name": checkpoint.name, "fingerprint": fingerprint(checkpoint), "source": folder.name}
    return Description(**{**fields, **changes})


def test_a_checkpoint_is_looked_for_here_and_in_the_models_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the source's name; without either there is nothing."""
    monkeypatch.delenv("SHOAL_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=f"hf download {tiny_model.name}"):
        find_checkpoint(described(tiny_model))
    monkeypatch.chdir(tiny_model.parent)
    assert find_checkpoint(described(tiny_model)).name == tiny_model.name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    assert find_checkpoint(described(tiny_model)).name == tiny_model.name


@pytest.mark.parametrize(
    "source",
    ["a" * 300, "a/" + "b" * 300, "é" * 200, "shut/x", "x\ny", "-h", "--token x", "a" * 96 + "/" + "b" * 96, "\x00"],
)
def test_a_source_that_cannot_be_is_not_looked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Neither a name that no file can have nor a folder that cannot be read keeps a client from what others say."""
    (tmp_path / "shut").mkdir(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    lie, truth = described(tiny_model, source=source), described(tiny_model)
    for revision in ("", "0" * 40):
        lie = msgspec.structs.replace(lie, revision=revision)
        assert find_described([lie, truth]).name == tiny_model.name
        with pytest.raises(ModelNotFound):
            find_described([lie])


@pytest.mark.parametrize("source", ["x; rm -rf ~", "--help", "$(id)", "x\nerror: ", "a b", "`id`"])
def test_no_command_is_made_of_a_strangers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """What a user is to type is only what a model can be called."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        find_checkpoint(Description("tiny", FINGERPRINT, source))
    assert "hf download" not in str(caught.value)


def test_of_what_servers_describe_only_the_checkpoint_counts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that say something else of the model, or serve what this machine has not, change nothing; two that it has do."""
    monkeypatch.setenv("SHOAL_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    one, other = tmp_path / tiny_model.name, tmp_path / "other"
    shutil.copytree(tiny_model, one)
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    lies = [described(one, source="nowhere"), described(one, fingerprint="ab" * 16)]
    assert find_described([*lies, described(one)]).name == tiny_model.name
    with pytest.raises(FingerprintMismatch, match="give the checkpoint"):
        find_described([described(one), described(other)])
    with pytest.raises(ModelNotFound, match="nowhere"):
        find_described(lies)


def test_another_checkpoint_under_the_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken; the right one beside it is."""
    other = tmp_path / tiny_model.name
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOAL_MODELS", raising=False)
    with pytest.raises(FingerprintMismatch, match="another checkpoint"):
        find_checkpoint(described(tiny_model))
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))
    assert fingerprint(find_checkpoint(described(tiny_model))) == described(tiny_model).fingerprint


@pytest.fixture
def contacted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What this process would have connected to, over a hub's cache that is empty."""
    asked: list[str] = []

    def connect(self: socket.socket, address: object) -> None:
        asked.append(str(address))
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return asked


SOURCES = [
    "org/model",
    "org/.hidden",
    "https://example.org/x",
    "//host/share",
    r"\\host\share",
    "/etc",
    "~root",
    "../x",
    "a/../../x",
    "",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("revision", ["", "main", "c" * 40, "../../x", "refs/pr/1"])
def test_what_a_stranger_names_is_not_contacted(contacted: list[str], source: str, revision: str) -> None:
    """Neither the hub nor anything else."""
    with pytest.raises(ModelNotFound, match="the swarm serves it"):
        find_checkpoint(Description("it", "f" * 32, source, revision))
    assert not contacted


def test_a_stranger_names_no_path_out_of_the_folders(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contacted: list[str]
) -> None:
    """A checkpoint that is there is not opened by an absolute path, nor by one that leads upwards."""
    monkeypatch.setenv("SHOAL_MODELS", str(tmp_path))
    for source in (str(tiny_model), f"../{tiny_model.name}", f"./{tiny_model.name}", f"x/../{tiny_model.name}"):
        (tiny_model.parent / "inner").mkdir(exist_ok=True)
        monkeypatch.chdir(tiny_model.parent / "inner")
        with pytest.raises(ModelNotFound):
            find_checkpoint(described(tiny_model, source=source))
    assert not contacted
