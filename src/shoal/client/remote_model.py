"""A model as its user sees it: text in, text out, the blocks elsewhere."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from shoal.client.client import AsyncClient
from shoal.client.client_options import ROUTE_WAIT_S, SessionOptions
from shoal.client.head import BatchedHead
from shoal.engine.backends import choose_linears
from shoal.engine.proof import prove_ends
from shoal.errors import FingerprintMismatch, ModelNotFound, ShoalError, UsageError
from shoal.memory import trim_memory
from shoal.model.families import model_config
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.nn.block import EmbeddingAndHead, ModelConfig
from shoal.model.nn.sampling import sample
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.block_loading import WeightFormat, load_ends, weight_format
from shoal.model.weights.chat_template import Message
from shoal.model.weights.checkpoint import Checkpoint, fingerprint, model_spec
from shoal.model.weights.hub import open_hub
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import Tokenizer, load_tokenizer
from shoal.protocol.messages import Description
from shoal.types import ModelSpec

MODELS_VARIABLE = "SHOAL_MODELS"
"""A directory in which local checkpoints are looked for by the names that servers tell."""

HEADS = ("float32", "bfloat16", "int8")

TEMPLATES_AT_ONCE = 4
"""Chat templates that are computed at the same time, each in a process of its own; others wait."""

EMBED_AT_ONCE = 16
"""So many embedding rows are looked up where they are asked for: that takes microseconds, another thread's turn 0.1 ms."""

MAX_DESCRIPTIONS = 8
"""Things that servers say of the model, each of which is looked for on this machine."""

_PLAIN_SOURCE = re.compile(r"[^/\\:\0~][^/\\:\0]*(/[^/\\:\0]+)*")
"""A name or a path within a folder, on any system."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""What a model can be called that is to be downloaded: nothing that a shell would obey."""

_COMMIT = re.compile(r"([0-9a-f]{40})?")

T = TypeVar("T")


class RemoteModel:
    """Embedding, head and tokenizer here; blocks in the swarm. Made by `open_model`; arithmetic runs in one thread, chat
    templates in a few.

    `source`: what the user called it; empty for the one that the swarm serves.
    """

    def __init__(
        self,
        client: AsyncClient,
        spec: ModelSpec,
        config: ModelConfig,
        ends: EmbeddingAndHead,
        tokenizer: Tokenizer,
        source: str = "",
    ) -> None:
        self.source = source
        self.client = client
        self.spec = spec
        self.config = config
        self.tokenizer = tokenizer
        self._ends = ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shoal-head")
        self._templates = ThreadPoolExecutor(TEMPLATES_AT_ONCE, thread_name_prefix="shoal-template")
        # The thread's first work, while the session is opened and the prompt is read; logits wait behind it.
        self._proof = self._thread.submit(prove_ends, ends, config.block)
        self._thread.submit(trim_memory)  # of what it took to load
        self._computing = 0
        self.head = BatchedHead(self._logits, self._thread, free=self._is_free)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self._ends.logits(rows, self._proof.result().tile)

    def _is_free(self) -> bool:
        """Whether arithmetic may run in the event loop: torch would keep a set of threads for every thread that calls it."""
        return self._computing == 0 and self._proof.done() and isinstance(self._ends.head, NativeLinear)

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the chat template, up to where the assistant speaks.

        The template is a program of its own, for which a thread waits: others of this client go on. Raises UsageError when
        the model has none, or it refuses the conversation.
        """
        loop = asyncio.get_running_loop()
        with self.client.activity.doing("putting the prompt into the chat template"):
            return await loop.run_in_executor(self._templates, self.tokenizer.encode_chat, messages)

    async def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token ids [n] → rows [n, hidden]."""
        if len(token_ids) <= EMBED_AT_ONCE or not self._proof.done():  # the first prompt need not wait for the proof
            return self._ends.embed(token_ids)
        return await self._compute(lambda: self._ends.embed(token_ids))

    async def choose(
        self,
        hidden_states: torch.Tensor,
        params: SamplingParams,
        seed: int,
        position: int,
        history: list[int],
        whose: Hashable = None,
    ) -> int:
        """The token after rows [n, hidden], from the last of them; `whose` names the reply (see `BatchedHead`)."""
        return await self.head.choose(
            hidden_states[-1:], lambda logits: sample(logits, params, seed, position, history), whose
        )

    def forget(self, whose: Hashable) -> None:
        """This reply asks for no more tokens."""
        self.head.forget(whose)

    async def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Rows [n, hidden] → logits [n, vocab] in fp32."""
        return await self._compute(lambda: self._logits(hidden_states))

    async def _compute(self, work: Callable[[], T]) -> T:
        def quiet() -> T:
            with torch.inference_mode():
                return work()

        self._computing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, quiet)
        finally:
            self._computing -= 1

    def session_options(self, num_tokens: int) -> SessionOptions:
        """Options for a session that will hold at most so many tokens, within what the model can."""
        return SessionOptions(max_tokens=min(num_tokens, self.config.max_positions))

    async def close(self) -> None:
        """Close the client too. Closing twice is harmless."""
        self._thread.shutdown(wait=False)
        self._templates.shutdown(wait=False, cancel_futures=True)
        await self.client.close()

    async def __aenter__(self) -> RemoteModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def open_model(
    client: AsyncClient,
    model: str | None,
    wait_s: float = ROUTE_WAIT_S,
    head: str = "float32",
    fingerprint_wanted: str | None = None,
) -> RemoteModel:
    """A model by what the user calls it, or (None) the one that the swarm serves, of several that of this fingerprint.

    `head`, one of HEADS, is how its embedding and head are kept on this side.

    Raises ModelNotFound when this side has no checkpoint of it, saying what to get, FingerprintMismatch when the swarm
    serves another under the name, NoRoute when it serves none.
    """
    form = head_form(head)
    with client.activity.doing("opening the model"):
        checkpoint = await _checkpoint(client, model, wait_s, fingerprint_wanted)
        config = model_config(checkpoint.config)
        spec = await asyncio.to_thread(model_spec, checkpoint, config)  # of the files, whatever servers say
    with client.activity.doing(f"waiting for a server of {spec.name}"):
        await client.wait_for(spec, wait_s)
    with client.activity.doing("reading embedding, head and tokenizer"):
        ends, tokenizer = await asyncio.gather(
            asyncio.to_thread(load_ends, checkpoint, config, form, choose_linears(form)),
            asyncio.to_thread(load_tokenizer, checkpoint),
        )
    return RemoteModel(client, spec, config, ends, tokenizer, _absolute(model) if model is not None else "")


async def _checkpoint(client: AsyncClient, model: str | None, wait_s: float, wanted: str | None) -> Checkpoint:
    """The checkpoint that the user names, the one with the fingerprint `wanted`, or the one that the swarm serves."""
    if model is not None:
        return await asyncio.to_thread(open_checkpoint, model)
    if wanted is not None:
        description, _ = await client.describe(await client.find_model(fingerprint=wanted, wait_s=wait_s))
        return await asyncio.to_thread(find_checkpoint, description)
    return await asyncio.to_thread(find_described, await client.descriptions(wait_s))


def _absolute(model: str) -> str:
    """What a user calls a model, from whatever folder it is looked for later."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def head_form(head: str) -> WeightFormat:
    """The form of one of HEADS; raises UsageError."""
    if head not in HEADS:
        raise UsageError(f"a head cannot be kept as {head!r}: choose one of {', '.join(HEADS)}")
    return weight_format("float32", 8) if head == "int8" else weight_format(head)


def find_described(descriptions: Sequence[Description]) -> Checkpoint:
    """The one checkpoint on this machine that servers describe, of several things that they may say.

    Raises what `find_checkpoint` raises when it has none, FingerprintMismatch when it has several.
    """
    found: dict[str, Checkpoint] = {}
    problems: list[ShoalError] = []
    for description in descriptions[:MAX_DESCRIPTIONS]:
        try:
            if description.fingerprint not in found:
                found[description.fingerprint] = find_checkpoint(description)
        except (ModelNotFound, FingerprintMismatch) as error:
            problems.append(error)
    if len(found) > 1:
        names = ", ".join(one.source for one in found.values())
        raise FingerprintMismatch(f"different checkpoints ({names}): give the checkpoint that you mean")
    if not found:
        raise problems[0]
    return next(iter(found.values()))


def find_checkpoint(description: Description) -> Checkpoint:
    """The checkpoint that a server describes, if this machine has it: in the hub's cache, here, or in $SHOAL_MODELS.

    Raises ModelNotFound saying what to download, FingerprintMismatch when what is found is another.
    """
    problems = []
    for place, checkpoint in _held(description):
        try:
            if fingerprint(opened := checkpoint()) == description.fingerprint:
                return opened
        except ShoalError as error:
            problems.append(str(error))
            continue
        problems.append(f"{place} is another checkpoint")
    if problems and all(problem.endswith("another checkpoint") for problem in problems):
        raise FingerprintMismatch(f"{'; '.join(problems)} than the swarm's {description.name}")
    source = description.source
    how = f"hf download {source}, or the same file" if _HUB_NAME.fullmatch(source) else "the same files"
    raise ModelNotFound(
        f"the swarm serves {description.name} ({source}), and a client needs its embedding, head and tokenizer: "
        f"get it ({how}), then name its path, or put it into ${MODELS_VARIABLE}"
    )


def _is_there(path: Path) -> bool:
    """Whether a stranger's name is one of something here; one that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _held(description: Description) -> Iterator[tuple[str, Callable[[], Checkpoint]]]:
    """Where this machine may have what a stranger's server names, and how it is opened; nothing is fetched.

    Names that lead out of the folders, to the network or to a revision that is no commit are not looked for.
    """
    source, revision = description.source, description.revision
    if not _PLAIN_SOURCE.fullmatch(source) or set(source.split("/")) & {"..", "."}:
        return
    folders = [Path.cwd(), *(Path(folder) for folder in [os.environ.get(MODELS_VARIABLE)] if folder)]
    for path in [folder / source for folder in folders]:
        if _is_there(path):
            yield str(path), partial(open_checkpoint, str(path))
    try:
        if (demo := demo_model_path()).name == source:
            yield str(demo), partial(open_checkpoint, str(demo))
    except ModelNotFound:
        pass  # the demo's package is not installed: one place less to look
    if source.count("/") == 1 and not source.endswith(".gguf") and _COMMIT.fullmatch(revision):
        yield source, partial(open_hub, source, revision or None, cached_only=True)
