"""Rows of prefill beside decoding: rationed by time, on machines that the tests make up."""

from __future__ import annotations

import pytest

from shoal.engine.prefill_budget import MAX_DECODE_SLOWDOWN, SLICED_ROWS, SLOWEST, PrefillBudget
from tests.support.queue_desk import QueueDesk, taken

MOST = 128


def learnt(decode_s: float, row_s: float, held_s: float = 0.0, rounds: int = 40) -> PrefillBudget:
    """A budget after steps on a machine where a row of prefill always costs `row_s` and decoding `decode_s`."""
    budget = PrefillBudget()
    for _ in range(rounds):
        budget.measured(4, 0, decode_s, held_s)
        budget.measured(0, MOST, MOST * row_s)
        rows = budget.rows(MOST)
        budget.measured(4, rows, decode_s + rows * row_s, held_s)
    return budget


def test_whole_chunks_until_something_is_known() -> None:
    """Without a measurement of both kinds there is nothing to ration by."""
    budget = PrefillBudget()
    assert budget.rows(MOST) == MOST
    budget.measured(1, 0, 0.02)
    assert budget.rows(MOST) == MOST
    budget.measured(0, MOST, 0.2)
    assert budget.rows(MOST) < MOST


@pytest.mark.parametrize("decode_s", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("row_s", [1e-5, 1e-4, 1e-3])
def test_a_step_stretches_as_far_as_it_may(decode_s: float, row_s: float) -> None:
    """Within a row of MAX_DECODE_SLOWDOWN, unless a whole chunk is less, one row is more, or the prefill took too long."""
    rows = learnt(decode_s, row_s).rows(MOST)
    wanted = (MAX_DECODE_SLOWDOWN - 1) * decode_s / row_s
    least = decode_s / ((SLOWEST - 1) * row_s)
    assert rows in (1, MOST) or wanted - 1 < rows <= wanted or least <= rows < least + 1


@pytest.mark.parametrize("held_s", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("row_s", [2e-5, 2e-4, 2e-3])
def test_a_prefill_takes_no_longer_than_it_may(held_s: float, row_s: float) -> None:
    """Beside decoding, with steps held back, it gets at least 1 ÷ SLOWEST of its rate alone."""
    decode_s = 0.02
    rows = learnt(decode_s, row_s, held_s).rows(MOST)
    each_s = (held_s + decode_s + rows * row_s) / rows
    assert each_s <= SLOWEST * row_s * 1.001 or rows == MOST


def test_noise_makes_no_row_free() -> None:
    """A step with prefill that was faster than one without proves nothing."""
    budget = learnt(0.02, 1e-4)
    for _ in range(50):
        budget.measured(4, 64, 0.015)
    assert budget.beside_s >= 0.25 * budget.alone_s * 0.999


def test_rows_that_cost_more_beside_others_are_fewer() -> None:
    """What is learnt beside decoding counts, not the rate alone."""
    found = []
    for beside_s in (1e-4, 1.2e-4):
        budget = learnt(0.02, 2e-4)
        for _ in range(50):
            budget.measured(4, 32, 0.02 + 32 * beside_s)
        found.append(budget.rows(MOST))
    assert found[1] < found[0]


@pytest.mark.parametrize("depth", [2, 10, 80])
@pytest.mark.parametrize("row_s", [1e-5, 1e-4, 1e-3, 1e-2])
def test_a_chunk_through_some_of_the_blocks_costs_what_few_rows_through_all_would(depth: int, row_s: float) -> None:
    """Within a block; it is no less than SLICED_ROWS high unless one block of that is too much already."""
    budget, decode_s = learnt(0.02, row_s), 0.02
    rows = budget.rows(MOST, depth)
    blocks = budget.blocks(rows, depth)
    assert 1 <= blocks <= depth
    assert rows >= SLICED_ROWS or blocks == 1
    wanted, least = (MAX_DECODE_SLOWDOWN - 1) * decode_s / row_s, decode_s / ((SLOWEST - 1) * row_s)
    cost = rows * blocks / depth
    assert (rows, blocks) == (MOST, depth) or cost <= max(wanted, least + rows / depth) * 1.001 or cost * depth <= 1
    assert cost >= min(least, MOST) * 0.999 or blocks == depth


def test_decoding_that_slows_down_by_itself_is_noticed() -> None:
    """Now and then a step goes without the prefill that is under way, and tells what decoding takes now."""
    desk, plain, now = taught(depth=10), 0, 1.03
    desk.add("long", "a", 5000, now=now)
    for _ in range(64):
        desk.add("decode", "b", 1, now=now)
        batch = desk.queue.next_batch(now)
        plain += "long" not in batch.sessions
        assert taken(batch)["decode"] == 1
        desk.finish(batch, now + 0.04)
        now += 0.05
    assert plain == 4
    assert desk.queue.budget.decode_s > 0.03


def taught(depth: int = 1) -> QueueDesk:
    """A queue that has measured both kinds of steps; the session "decode" has left at 1.02."""
    desk = QueueDesk(depth=depth)
    desk.add("long", "a", 64, now=0.0)
    desk.step(0.0, 0.064)
    for began_at in (0.5, 1.0):
        desk.add("decode", "b", 1, now=began_at)
        desk.step(began_at, 0.02)
    return desk


def test_prefill_beside_decoding_is_rationed() -> None:
    """Seven rows of a millisecond each make a step of 20 ms a third longer."""
    desk = taught()
    desk.add("long", "a", 500, now=1.03)
    desk.add("decode", "b", 1, now=1.03)
    assert desk.step(1.03) == {"decode": 1, "long": 7}


def test_prefill_is_rationed_while_a_session_is_about_to_come_back() -> None:
    """A whole chunk would make the one wait that is between two tokens."""
    desk = taught()
    desk.add("long", "a", 500, now=1.03)
    assert desk.step(1.03) == {"long": 7}


def test_prefill_alone_gets_whole_chunks() -> None:
    """Also when those who decoded have ended, or have not been seen for long."""
    closed, silent = taught(), taught()
    closed.queue.forget("decode")
    for desk, now in ((closed, 1.03), (silent, 5.0)):
        desk.add("long", "a", 500, now=now)
        assert desk.step(now) == {"long": 64}
