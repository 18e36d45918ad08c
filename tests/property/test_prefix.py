"""Sharing pages changes no bit, whoever shares them, rewinds, or is evicted."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import KV_DTYPES
from shoal.kv.prefix import PrefixCache
from shoal.model.nn.block import Block, BlockConfig
from shoal.model.nn.rope import RopeConfig, cache_positions
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import fill_with_garbage, random_blocks, shared_tile, torch_runner

SPAN = Span(4, 6)
SPANS = (SPAN, SPAN, SPAN, Span(4, 5))
CONFIG = BlockConfig(33, 3, 1, 10, 40, 1e-5, RopeConfig())
MOST_TOKENS = 256
SESSIONS = 4
PAGES = SESSIONS * 2 * MOST_TOKENS // 64
TEXTS = [2 * numbers(seed, MOST_TOKENS, 33) for seed in (1, 2)]
"""What sessions read; so they often begin alike."""


class Action(NamedTuple):
    """Something that happens to one of the sessions."""

    kind: str
    session: int
    count: int
    text: int


actions = st.builds(
    Action,
    st.sampled_from(["step", "step", "step", "rewind", "reopen"]),
    st.integers(0, SESSIONS - 1),
    st.sampled_from([1, 7, 63, 64, 65, 128, 128, 192, 200]),
    st.sampled_from([0, 0, 0, 1]),
)


class Twin:
    """A runner that shares pages and one that does not, which must never differ."""

    def __init__(self, blocks: list[Block], tile: int, dtype: str, max_shared: int, between_clients: bool) -> None:
        sharing, plain = (
            KVCache(CONFIG.cache_shape, PAGES, dtype, max_shared=max_shared),
            KVCache(CONFIG.cache_shape, PAGES, dtype),
        )
        fill_with_garbage(sharing)
        prefixes = PrefixCache(
            sharing.pages, CONFIG.hidden_size, cache_positions((CONFIG.rope,)), between_clients=between_clients
        )
        self.runners: list[Runner] = [
            torch_runner(CONFIG, SPAN, blocks, sharing, tile, prefixes),
            torch_runner(CONFIG, SPAN, blocks, plain, tile),
        ]
        self.texts = [0] * SESSIONS
        self.found_rows = 0
        for session in range(SESSIONS):
            self.open(session, 0)

    def open(self, session: int, text: int) -> None:
        """Two clients and two spans among the sessions; it will read this text."""
        for runner in self.runners:
            runner.open(str(session), SPANS[session], MOST_TOKENS, client=f"client {session % 2}")
        self.texts[session] = text

    def do(self, action: Action) -> None:
        """To both."""
        session = str(action.session)
        position = self.runners[0].cache.pages[session].num_tokens
        if action.kind == "step":
            rows = TEXTS[self.texts[action.session]][position : position + action.count]
            if rows.shape[0]:
                self.step([Rows(session, position, rows)])
        elif action.kind == "rewind":
            for runner in self.runners:
                runner.truncate(session, max(0, position - action.count))
            self.texts[action.session] = action.text
        else:
            for runner in self.runners:
                runner.close(session)
            self.open(action.session, action.text)

    def finish(self) -> None:
        """Everybody reads to the end, in one batch."""
        batch = []
        for session, text in enumerate(self.texts):
            position = self.runners[0].cache.pages[str(session)].num_tokens
            if position < MOST_TOKENS:
                batch.append(Rows(str(session), position, TEXTS[text][position:]))
        if batch:
            self.step(batch)

    def step(self, batch: list[Rows]) -> None:
        """The same outputs."""
        outputs, expected = (runner.step(batch) for runner in self.runners)
        self.found_rows += self.runners[0].found_rows
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))

    def check(self) -> None:
        """The same numbers in the caches."""
        for session in range(SESSIONS):
            for block in SPANS[session].blocks():
                if self.runners[0].cache.pages[str(session)].num_tokens:
                    read: list[tuple[Tensor, Tensor]] = [r.cache.read(str(session), block) for r in self.runners]
                    assert all(torch.equal(one, other) for one, other in zip(*read, strict=True))


@pytest.fixture(scope="module")
def tile() -> int:
    """A tile that keeps rows exact here."""
    found = shared_tile(random_blocks(CONFIG, 1)[0], (1,))
    if found is None:
        pytest.skip("this machine's BLAS is not row-exact")
    return found


TWO_USERS = [
    Action("step", 0, 200, 0),
    Action("step", 2, 200, 0),
    Action("rewind", 0, 100, 1),
    Action("step", 0, 64, 0),
]


@settings(max_examples=60, deadline=None)
@example(plan=TWO_USERS, dtype="int4", max_shared=8, between_clients=False)
@given(
    plan=st.lists(actions, max_size=14),
    dtype=st.sampled_from(KV_DTYPES),
    max_shared=st.integers(1, 8),
    between_clients=st.booleans(),
)
def test_shared_pages_change_no_bit(
    tile: int, plan: list[Action], dtype: str, max_shared: int, between_clients: bool
) -> None:
    """Outputs and caches equal those of a runner that computes everything."""
    twin = Twin(random_blocks(CONFIG, 2, scale=0.3), tile, dtype, max_shared, between_clients)
    for action in plan:
        twin.do(action)
        twin.check()
    twin.finish()
    twin.check()
    event("found some" if twin.found_rows else "found nothing")


def test_the_plans_find_something(tile: int) -> None:
    """A plan by hand, so that the property is not empty."""
    twin = Twin(random_blocks(CONFIG, 2, scale=0.3), tile, "int8", 8, between_clients=False)
    for action in (Action("step", 0, 200, 0), Action("reopen", 0, 0, 0), Action("step", 0, 200, 0)):
        twin.do(action)
    assert twin.found_rows == 192
    twin.do(Action("rewind", 0, 40, 1))
    twin.finish()
    twin.check()
