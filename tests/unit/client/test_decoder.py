"""Prefill, decode, stop, over a session and a model of bytes that only count."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.errors import GrantExceeded
from shoal.model.nn.sampling_params import SamplingParams

END = 0
HIDDEN = 20
"""A special token, which no text shows."""


class CountingModel:
    """The token after n is n + 1; token ids are letters, 0 ends a text."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(
            decode=lambda ids: "".join(chr(96 + token) for token in ids if token != HIDDEN),
            eos_token_ids={END},
            special_token={"<hidden>": HIDDEN}.get,
        )
        self.seeds: set[int] = set()
        self.last_token = -1

    async def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Rows that are token ids."""
        return torch.tensor(token_ids, dtype=torch.float32).unsqueeze(1)

    def forget(self, whose: object) -> None:
        """No reply is remembered."""

    async def choose(self, rows: torch.Tensor, params: SamplingParams, seed: int, *_: object) -> int:
        """The next number; after `last_token` the end."""
        self.seeds.add(seed)
        token = int(rows[-1, 0]) + 1
        return END if token - 1 == self.last_token else token


class RecordingSession:
    """Holds the rows that it is given."""

    def __init__(self, max_tokens: int = 100) -> None:
        self.options = SimpleNamespace(max_tokens=max_tokens)
        self.rows: list[int] = []
        self.steps: list[int] = []
        self.exact = True
        self.last_trace = None

    async def rewind(self, position: int) -> None:
        """Forget rows."""
        del self.rows[position:]

    async def step(self, rows: torch.Tensor, reply: int | None = None) -> torch.Tensor:
        """Rows come out as they are."""
        self.rows += [int(row) for row in rows[:, 0]]
        self.steps.append(len(rows))
        return rows[-(reply or len(rows)) :]


def decoder(model: CountingModel, session: RecordingSession, **more: Any) -> SessionDecoder:
    """A decoder over what only looks like a model and a session."""
    return SessionDecoder(model, session, **more)  # type: ignore[arg-type]


def reply(prompt: Sequence[int], token_ids: Sequence[int] = (), **sampling: Any) -> GrowingReply:
    """A reply of at most 5 tokens."""
    return GrowingReply(prompt, SamplingParams(**{"max_tokens": 5, "seed": 7, **sampling}), token_ids)


async def test_tokens_come_one_by_one() -> None:
    """A prefill, then a row for each token but the last; the seed is the reply's."""
    model, session, one = CountingModel(), RecordingSession(), reply([1, 2])
    pieces = [piece async for piece in decoder(model, session).generate(one)]
    assert (pieces, one.text, one.token_ids, one.finish_reason) == (list("cdefg"), "cdefg", [3, 4, 5, 6, 7], "length")
    assert (session.steps, session.rows) == ([2, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6])
    assert model.seeds == {7}
    assert (one.cached_tokens, one.prefill_tokens) == (0, 2)


async def test_an_end_token_ends_unless_it_is_ignored() -> None:
    """It is among the tokens, not in the text."""
    model, one = CountingModel(), reply([1])
    model.last_token = 3
    assert [piece async for piece in decoder(model, RecordingSession()).generate(one)] == ["b", "c"]
    assert (one.token_ids, one.finish_reason) == ([2, 3, END], "stop")
    other = reply([1], ignore_eos=True)
    async for _ in decoder(model, RecordingSession()).generate(other):
        pass
    assert len(other.token_ids) == 5


async def test_a_stop_string_ends() -> None:
    """And is left out."""
    one = reply([1], stop=("de",))
    text = "".join([piece async for piece in decoder(CountingModel(), RecordingSession()).generate(one)])
    assert (text, one.finish_reason) == ("bc", "stop string")


@pytest.mark.parametrize("more", [{}, {"ignore_eos": True}, {"stop": ("never", "<hidden>")}])
async def test_a_stop_string_that_is_one_special_token_ends(more: dict[str, Any]) -> None:
    """Although no text shows it; end tokens that are ignored are others."""
    one = reply([17], **{"stop": ("<hidden>",), **more})
    pieces = [piece async for piece in decoder(CountingModel(), RecordingSession()).generate(one)]
    assert (pieces, one.token_ids, one.finish_reason) == (["r", "s"], [18, 19, HIDDEN], "stop string")


async def test_text_goes_on_from_the_prompt() -> None:
    """A space between the two is the reply's; the text of tokens that it has already is made in the same way."""
    model = CountingModel()
    model.tokenizer.decode = lambda ids: "".join(f" {token}" for token in ids)[1:]
    for already in ([], [3], [3, 4]):
        one = reply([1, 2], token_ids=already)
        assert "".join([piece async for piece in decoder(model, RecordingSession()).generate(one)]) == " 3 4 5 6 7"


async def test_a_session_that_is_full_ends() -> None:
    """A prompt that leaves no room is refused."""
    one = reply([1, 2])
    async for _ in decoder(CountingModel(), RecordingSession(3)).generate(one):
        pass
    assert (one.token_ids, one.finish_reason) == ([3, 4], "length")
    with pytest.raises(GrantExceeded, match="a prompt of 4 tokens; the session holds 3"):
        async for _ in decoder(CountingModel(), RecordingSession(3)).generate(reply([1, 2, 3, 4])):
            pass


async def test_what_the_session_holds_is_not_sent_again() -> None:
    """The next turn begins where it differs; its last token is always sent."""
    model, session = CountingModel(), RecordingSession()
    talk = decoder(model, session)
    first = reply([1, 2])
    async for _ in talk.generate(first):
        pass
    session.steps.clear()
    second = reply([1, 2, 3, 4, 9, 10])
    async for _ in talk.generate(second):
        pass
    assert session.steps[0] == second.prefill_tokens == 2
    assert second.cached_tokens == 4
    assert session.rows[:6] == [1, 2, 3, 4, 9, 10]
    session.steps.clear()
    async for _ in talk.generate(reply([1, 2])):
        pass
    assert session.steps[0] == 1


async def test_a_reply_that_has_begun_goes_on() -> None:
    """Its text so far comes first, and its tokens are part of the prompt; rows that are held already are not sent."""
    one, session = reply([1, 2], token_ids=[3, 4]), RecordingSession()
    session.rows = [1, 2, 3]
    pieces = [piece async for piece in decoder(CountingModel(), session, held=[1, 2, 3]).generate(one)]
    assert pieces == ["cd", "e", "f", "g"]
    assert session.rows == [1, 2, 3, 4, 5, 6]


async def test_a_reply_is_kept_before_its_newest_token_goes_into_the_session() -> None:
    """And once before anything: another process can begin where this one ends."""
    session, one = RecordingSession(), reply([1, 2])
    seen: list[tuple[int, int]] = []
    talk = decoder(CountingModel(), session, keep=lambda: seen.append((len(one.token_ids), len(session.rows))))
    async for _ in talk.generate(one):
        pass
    assert seen == [(0, 0), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]


async def test_times_are_counted() -> None:
    """Of the prefill with the first token, and of the others."""
    one = reply([1, 2])
    async for _ in decoder(CountingModel(), RecordingSession()).generate(one):
        pass
    assert one.prefill_s > 0
    assert one.decode_s > 0
