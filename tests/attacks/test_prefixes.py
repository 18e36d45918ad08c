"""Attempts to be served, or to have others served, what was computed from other rows."""

from __future__ import annotations

import pytest
import torch

from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.prefix import PrefixCache
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig, cache_positions
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import random_blocks, torch_runner

CONFIG = BlockConfig(33, 3, 1, 10, 40, 1e-5, RopeConfig())
SPAN = Span(0, 2)
ROWS = numbers(1, 192, 33)


def make(between_clients: bool = True) -> Runner:
    """A runner that shares as much as it can."""
    cache = KVCache(CONFIG.cache_shape, 60, max_shared=20)
    prefixes = PrefixCache(
        cache.pages, CONFIG.hidden_size, cache_positions((CONFIG.rope,)), between_clients=between_clients
    )
    return torch_runner(CONFIG, SPAN, random_blocks(CONFIG, 2), cache, 4, prefixes)


def begin(
    runner: Runner, session: str, rows: torch.Tensor, client: str = "attacker", span: Span = SPAN
) -> torch.Tensor:
    """A session's outputs; `runner.found_rows` says how many were found."""
    runner.open(session, span, 256, client)
    return runner.step([Rows(session, 0, rows)])[0]


def test_another_clients_rows_are_not_found() -> None:
    """By default: neither their pages nor the time they took."""
    runner = make(between_clients=False)
    begin(runner, "victim", ROWS, client="victim")
    begin(runner, "attacker", ROWS)
    assert runner.found_rows == 0


def test_rows_that_differ_anywhere_are_not_found() -> None:
    """The sign of a zero is enough, and pages behind a difference are not found either."""
    runner = make()
    rows = ROWS.clone()
    rows[70, 5] = 0.0
    begin(runner, "victim", rows, client="victim")
    other = rows.clone()
    other[70, 5] = -0.0
    begin(runner, "one", other)
    assert runner.found_rows == 64


def test_a_chain_cannot_be_entered_in_the_middle() -> None:
    """The rows of a later page, sent as the first ones, are not what they were there."""
    runner = make()
    begin(runner, "victim", ROWS, client="victim")
    begin(runner, "attacker", ROWS[64:])
    assert runner.found_rows == 0


def test_a_part_of_the_blocks_is_another_computation() -> None:
    """The same rows through other blocks of the same server."""
    runner = make()
    begin(runner, "victim", ROWS, client="victim")
    outputs = begin(runner, "attacker", ROWS, span=Span(0, 1))
    assert runner.found_rows == 0
    assert torch.equal(outputs, begin(make(), "alone", ROWS, span=Span(0, 1)))


@pytest.mark.parametrize("cut", [1, 64, 100, 128, 150])
def test_rewinding_and_sending_other_rows_poisons_nothing(cut: int) -> None:
    """The attacker fills pages, goes back and fills them with other rows: whoever comes next gets the right ones, always."""
    expected = begin(make(), "alone", ROWS)
    runner = make()
    begin(runner, "attacker", ROWS)
    begin(runner, "accomplice", ROWS)
    for session in ("attacker", "accomplice"):
        runner.truncate(session, cut)
        runner.step([Rows(session, cut, -ROWS[cut:])])
    assert torch.equal(begin(runner, "victim", ROWS, client="victim"), expected)
    assert torch.equal(begin(runner, "next", ROWS, client="next"), expected)


def test_rows_that_are_refused_leave_nothing_behind() -> None:
    """A page with NaN is computed for nobody, and the session that sent it goes on as before."""
    runner = make()
    runner.open("attacker", SPAN, 256, "attacker")
    bad = ROWS.clone()
    bad[150, 0] = float("nan")
    for _ in range(2):
        with pytest.raises(ValueError, match="finite"):
            runner.step([Rows("attacker", 0, bad)])
    assert runner.cache.pages.num_shared == 0
    assert torch.equal(runner.step([Rows("attacker", 0, ROWS)])[0], begin(make(), "alone", ROWS))
    assert runner.found_rows == 0


def test_a_flood_of_prefixes_takes_no_more_than_its_share() -> None:
    """Neither memory nor what is granted: the pages count as free, and old ones go."""
    runner = make()
    for number in range(40):
        begin(runner, "attacker", numbers(100 + number, 128, 33))
        runner.close("attacker")
    pages = runner.cache.pages
    assert pages.num_shared <= 20
    assert (pages.free, pages.granted) == (60, 0)
    runner.open("victim", SPAN, 30 * 64, "victim")
    runner.cache.grow("victim", 30 * 64)
