"""A reply kept in a file goes on in another client: from what servers hold, else from its tokens; the old one is fenced off."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from shoal.client.async_model import AsyncModel
from shoal.client.client_options import SessionOptions
from shoal.client.completion import AsyncCompletionStream, Completion
from shoal.client.remote_model import RemoteModel, open_model
from shoal.client.saved_reply import SavedReply, read_saved, write_saved
from shoal.errors import FingerprintMismatch, NoRoute, SessionFenced, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.types import Span
from tests.swarms import Swarm, SwarmMaker, until

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
PROMPT = "the sea, the sea"
TOKENS = 40
GREEDY = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=7)


@contextlib.asynccontextmanager
async def opened(swarm: Swarm) -> AsyncIterator[RemoteModel]:
    """A client's model."""
    async with swarm.client() as client, await open_model(client, None) as model:
        yield model


def begin(
    model: RemoteModel, params: SamplingParams, path: Path | None, options: SessionOptions | None = None
) -> AsyncCompletionStream:
    """A reply that has not begun."""
    sampling = msgspec.structs.asdict(params)
    options = options or SessionOptions()
    return AsyncModel(model).stream(PROMPT, save=path, wait_s=5.0, keep_s=30.0, options=options, **sampling)


async def undisturbed(swarm: Swarm, params: SamplingParams) -> Completion:
    """The same reply when nothing happens."""
    async with opened(swarm) as model:
        return await begin(model, params, None).finish()


async def advance(reply: AsyncCompletionStream, tokens: int) -> None:
    """Generate so far, and stop there."""
    while len(reply.token_ids) < tokens:
        await anext(reply)


def taken(saved: SavedReply, model: RemoteModel, path: Path, wait_s: float = 5.0) -> AsyncCompletionStream:
    """The reply in another client."""
    return AsyncModel(model).resume(saved, path, wait_s=wait_s)


async def finish(path: Path, model: RemoteModel) -> tuple[Completion, str]:
    """Take a reply up and bring it to its end; also the text that was streamed."""
    reply = taken(read_saved(path), model, path)
    text = "".join([piece async for piece in reply])
    return reply.completion, text


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_another_client_goes_on_where_the_first_stopped(
    swarm_of: SwarmMaker, tmp_path: Path, params: SamplingParams
) -> None:
    """Same tokens and text, no row computed twice; the first client then finds itself fenced off."""
    path = tmp_path / "reply"
    async with swarm_of(*THIRDS) as swarm:
        expected = await undisturbed(swarm, params)
        before = [server.worker.stats.rows for server in swarm.servers]
        async with opened(swarm) as old, opened(swarm) as new:
            reply = begin(old, params, path)
            await advance(reply, 15)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            result, text = await finish(path, new)
            assert result.token_ids == expected.token_ids
            assert (result.text, text) == (expected.text, expected.text)
            assert result.exact
            with pytest.raises(SessionFenced):
                async for _ in reply:
                    pass
            await reply.aclose()
        rows = [server.worker.stats.rows - first for server, first in zip(swarm.servers, before, strict=True)]
        fed = len(result.prompt_ids) + TOKENS - 1
        assert rows == [fed] * 3
        await until(lambda: all(server.status().sessions == 0 for server in swarm.servers))


async def test_a_client_may_stop_before_its_first_row(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """What it kept then has no rows yet, whatever servers have got since."""
    path = tmp_path / "reply"
    async with swarm_of(*THIRDS) as swarm:
        expected = await undisturbed(swarm, GREEDY)
        async with opened(swarm) as old, opened(swarm) as new:
            reply = begin(old, GREEDY, path)
            await advance(reply, 1)
            saved = read_saved(path)
            session = msgspec.structs.replace(saved.session, position=0)
            write_saved(path, msgspec.structs.replace(saved, token_ids=[], text="", session=session))
            result, text = await finish(path, new)
            assert (result.token_ids, text) == (expected.token_ids, expected.text)
            with pytest.raises(SessionFenced):
                async for _ in reply:
                    pass
            await reply.aclose()


async def test_a_server_that_is_gone_by_then_is_replaced(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Only its blocks are computed again."""
    path = tmp_path / "reply"
    async with swarm_of(*THIRDS, Span(2, 4)) as swarm:
        expected = await undisturbed(swarm, GREEDY)
        async with opened(swarm) as old, opened(swarm) as new:
            reply = begin(old, GREEDY, path)
            await advance(reply, 15)
            middle = reply.route[1].peer
            victim = next(server for server in swarm.servers if server.identity.peer == middle)
            before = {server.identity.peer: server.worker.stats.rows for server in swarm.servers}
            held = read_saved(path).session.position
            await victim.__aexit__(None, None, None)
            result, _ = await finish(path, new)
            assert result.token_ids == expected.token_ids
            names = [server.identity.peer for server in swarm.servers]
            assert {hop.peer for hop in result.route} == set(names) - {middle}
            new_rows = len(result.prompt_ids) + TOKENS - 1 - held
            for hop in result.route:
                server = next(server for server in swarm.servers if server.identity.peer == hop.peer)
                replayed = held if hop.span == Span(2, 4) else 0
                # the first client sees the death too, and may have had the substitute begin before it was fenced off
                assert server.worker.stats.rows - before[hop.peer] - new_rows in (replayed, 2 * replayed)
            await reply.aclose()


async def test_what_servers_have_forgotten_is_replayed_from_the_tokens(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """The session is over at every hop; the reply is not."""
    path = tmp_path / "reply"
    async with swarm_of(*THIRDS) as swarm:
        expected = await undisturbed(swarm, SEEDED)
        async with opened(swarm) as old:
            reply = begin(old, SEEDED, path)
            await advance(reply, 20)
            assert reply.reply.session is not None
            await reply.reply.session.close()
        async with opened(swarm) as new:
            result, _ = await finish(path, new)
        assert result.token_ids == expected.token_ids
        await reply.aclose()


async def test_a_reply_left_early_keeps_its_session(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Ctrl-C with a file: servers hold what they have; a whole reply ends its session."""
    path = tmp_path / "reply"
    async with swarm_of(Span(0, 6)) as swarm, opened(swarm) as model:
        reply = begin(model, GREEDY, path)
        await advance(reply, 5)
        await reply.aclose()
        assert swarm.servers[0].status().sessions == 1
        await finish(path, model)
        await until(lambda: swarm.servers[0].status().sessions == 0)
        again, text = await finish(path, model)
        assert again.route == ()
        assert text == again.text != ""
        assert len(again.token_ids) == TOKENS


async def test_a_failed_resume_may_be_tried_again(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Nobody has the last blocks for a while: the file and the other hops' caches stay."""
    path = tmp_path / "reply"
    async with swarm_of(Span(0, 3), Span(3, 6)) as swarm:
        expected = await undisturbed(swarm, GREEDY)
        async with opened(swarm) as old, swarm.client() as client, await open_model(client, None) as model:
            reply = begin(old, GREEDY, path, SessionOptions(patience_s=0.0))
            await advance(reply, 10)
            await swarm.servers[1].__aexit__(None, None, None)
            saved = read_saved(path)
            with pytest.raises(NoRoute, match="3:6"):
                async for _ in taken(saved, model, path, wait_s=0.0):
                    pass
            assert swarm.servers[0].status().sessions == 1
            await swarm.join(Span(3, 6))
            result, _ = await finish(path, model)
            assert result.token_ids == expected.token_ids
            await reply.aclose()


async def test_only_one_of_two_takes_a_reply_up(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Both have read the file before either wrote it: the second is told, and the first is not disturbed."""
    path = tmp_path / "reply"
    async with swarm_of(*THIRDS) as swarm:
        expected = await undisturbed(swarm, GREEDY)
        async with opened(swarm) as old, opened(swarm) as one, opened(swarm) as other:
            reply = begin(old, GREEDY, path)
            await advance(reply, 10)
            await reply.aclose()
            saved = read_saved(path)
            winner, loser = taken(saved, one, path), taken(saved, other, path)
            await anext(winner)
            with pytest.raises(SessionFenced, match="another process has taken up"):
                await anext(loser)
            async for _ in winner:
                pass
            assert winner.token_ids == expected.token_ids


async def test_a_reply_of_another_model_is_refused(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """Its rows would mean nothing here."""
    path = tmp_path / "reply"
    async with swarm_of(Span(0, 6)) as swarm, opened(swarm) as model:
        reply = begin(model, GREEDY, path)
        await advance(reply, 3)
        await reply.aclose()
        saved = read_saved(path)
        other = msgspec.structs.replace(saved.session.model, fingerprint="00" * 16)
        saved = msgspec.structs.replace(saved, session=msgspec.structs.replace(saved.session, model=other))
        with pytest.raises(FingerprintMismatch, match=other.name):
            async for _ in taken(saved, model, path):
                pass
        with pytest.raises(UsageError, match="cannot write"):
            write_saved(tmp_path / "nowhere" / "reply", saved)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80", None], ids=["empty", "text", "another", "none"])
def test_a_file_that_is_no_reply_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """The error names the file."""
    path = tmp_path / "reply"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="reply"):
        read_saved(path)
