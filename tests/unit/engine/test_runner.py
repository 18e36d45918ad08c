"""The runner: what it refuses, what it leaves behind, and ragged batches over parts of its span."""

from __future__ import annotations

import msgspec
import pytest
import torch

from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.errors import GrantExceeded, ServerFull, SpanError
from shoal.kv.cache import KVCache
from shoal.kv.prefix import PrefixCache
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig, cache_positions
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import random_blocks, torch_runner

CONFIG = BlockConfig(40, 4, 2, 10, 64, 1e-5, RopeConfig())
SPAN = Span(3, 6)
INPUTS = numbers(1, 100, 40)


@pytest.fixture
def runner() -> Runner:
    """Three blocks and room for two sessions or so."""
    return torch_runner(CONFIG, SPAN, random_blocks(CONFIG, 3), KVCache(CONFIG.cache_shape, 18), tile=4)


def test_steps_continue_where_the_last_one_ended(runner: Runner) -> None:
    """Chunks of one session come out as in one go, in fp32 and the shape that went in."""
    runner.open("a", SPAN, 100)
    runner.open("b", SPAN, 100)
    whole = runner.step([Rows("a", 0, INPUTS)])[0]
    parts = [runner.step([Rows("b", at, INPUTS[at : at + 30])])[0] for at in (0, 30, 60, 90)]
    assert whole.shape == INPUTS.shape
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat(parts), whole)


def test_sessions_over_parts_of_the_span_share_a_step(runner: Runner) -> None:
    """What goes through 3:6 is what goes through 3:4, then 4:6, in batches with others."""
    runner.open("all", SPAN, 20)
    runner.open("first", Span(3, 4), 20)
    runner.open("rest", Span(4, 6), 20)
    rows = INPUTS[:20]
    whole, first = runner.step([Rows("all", 0, rows), Rows("first", 0, rows)])
    rest = runner.step([Rows("rest", 0, first)])[0]
    assert torch.equal(rest, whole)


def test_outputs_do_not_alias_inputs_or_each_other(runner: Runner) -> None:
    """A caller may keep what it got while it goes on."""
    runner.open("a", SPAN, 100)
    given = INPUTS[:2].clone()
    first = runner.step([Rows("a", 0, given)])[0]
    kept = first.clone()
    runner.step([Rows("a", 2, INPUTS[2:4])])
    assert torch.equal(first, kept)
    assert torch.equal(given, INPUTS[:2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Rows("nobody", 0, INPUTS[:1]), "no session nobody"),
        (Rows("a", 9, INPUTS[:1]), "do not continue 10"),
        (Rows("a", 11, INPUTS[:1]), "do not continue 10"),
        (Rows("a", 10, INPUTS[:0]), "not .n, 40. in float32"),
        (Rows("a", 10, INPUTS[0]), "not .n, 40. in float32"),
        (Rows("a", 10, INPUTS[:1, :39]), "not .n, 40. in float32"),
        (Rows("a", 10, INPUTS[:1].double()), "not .n, 40. in float32"),
        (Rows("a", 10, INPUTS[:3] / 0), "not finite"),
        (Rows("b", 0, INPUTS[:1]), "do not continue 5"),
    ],
)
def test_a_wrong_entry_changes_nothing_for_anybody(runner: Runner, rows: Rows, message: str) -> None:
    """The step fails, and afterwards both sessions go on as if it had never been tried."""
    outputs = []
    for fails in (True, False):
        for session in "ab":
            runner.open(session, SPAN, 100)
        runner.step([Rows("a", 0, INPUTS[:10])])
        if fails:
            with pytest.raises(ValueError, match=message):
                runner.step([Rows("b", 0, INPUTS[:5]), rows])
            assert runner.cache.pages["b"].num_tokens == 0
            assert runner.cache.pages["a"].num_tokens == 10
        outputs.append(runner.step([Rows("a", 10, INPUTS[10:12]), Rows("b", 0, INPUTS[:5])]))
        for session in "ab":
            runner.close(session)
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_no_more_rows_than_granted(runner: Runner) -> None:
    """The grant is a hard limit, and asking for more leaves the session as it was."""
    runner.open("a", SPAN, 70)
    runner.step([Rows("a", 0, INPUTS[:69])])
    with pytest.raises(GrantExceeded, match="70"):
        runner.step([Rows("a", 69, INPUTS[:2])])
    assert runner.step([Rows("a", 69, INPUTS[69:70])])[0].shape == (1, 40)


def test_opening_checks_room_and_blocks(runner: Runner) -> None:
    """Blocks that are not held, and tokens that do not fit, are refused."""
    for span in (Span(2, 4), Span(5, 7), Span(4, 4)):
        with pytest.raises(SpanError):
            runner.open("a", span, 10)
    runner.open("a", SPAN, 300)
    with pytest.raises(ServerFull):
        runner.open("b", SPAN, 100)
    runner.open("b", SPAN, 64)
    runner.close("a")
    runner.close("a")
    runner.open("a", SPAN, 300)


def test_going_back_and_on(runner: Runner) -> None:
    """After a truncation the same rows give the same bits, and a truncation beyond the end does nothing."""
    runner.open("a", SPAN, 100)
    whole = runner.step([Rows("a", 0, INPUTS[:90])])[0]
    runner.truncate("a", 95)
    runner.truncate("a", 66)
    runner.step([Rows("a", 66, -INPUTS[:20])])
    runner.truncate("a", 66)
    assert torch.equal(runner.step([Rows("a", 66, INPUTS[66:90])])[0], whole[66:])


def test_blocks_and_span_must_agree() -> None:
    """A runner with too few blocks for its span is a mistake."""
    with pytest.raises(ValueError, match="2 blocks"):
        torch_runner(CONFIG, SPAN, random_blocks(CONFIG, 2), KVCache(CONFIG.cache_shape, 18), tile=4)


def test_a_failed_step_is_no_loss_to_those_who_share() -> None:
    """A session in the middle of a page computes again what a neighbour's rows had spoilt, and its page is found afterwards."""
    cache = KVCache(CONFIG.cache_shape, 40, max_shared=4)
    prefixes = PrefixCache(cache.pages, CONFIG.hidden_size, cache_positions((CONFIG.rope,)))
    runner = torch_runner(CONFIG, SPAN, random_blocks(CONFIG, 3), cache, 4, prefixes)
    for session in "abc":
        runner.open(session, SPAN, 100)
    first = runner.step([Rows("a", 0, INPUTS[:30])])[0]
    with pytest.raises(ValueError, match="finite"):
        runner.step([Rows("a", 30, INPUTS[30:70]), Rows("b", 0, INPUTS[:3] / 0)])
    rest = runner.step([Rows("a", 30, INPUTS[30:70])])[0]
    assert runner.found_rows == 0
    again = runner.step([Rows("c", 0, INPUTS[:64])])[0]
    assert runner.found_rows == 64
    assert torch.equal(again, torch.cat([first, rest])[:64])


def test_angles_that_follow_the_grant_are_shared_only_among_equal_grants() -> None:
    """Where rope is stretched by what a session was granted, another grant makes another computation of the same rows."""
    rope = RopeConfig(kind="dynamic", factor=2.0, original_max_positions=32)
    config = msgspec.structs.replace(CONFIG, rope=rope)
    cache, blocks = KVCache(config.cache_shape, 40, max_shared=8), random_blocks(config, 3)
    prefixes = PrefixCache(cache.pages, config.hidden_size, cache_positions((rope,)))
    runner = torch_runner(config, SPAN, blocks, cache, 4, prefixes)
    for session, granted, found in (("a", 100, 0), ("b", 200, 0), ("c", 200, 64), ("d", 100, 64)):
        runner.open(session, SPAN, granted)
        outputs = runner.step([Rows(session, 0, INPUTS)])[0]
        assert runner.found_rows == found
        alone = torch_runner(config, SPAN, blocks, KVCache(config.cache_shape, 20), 4)
        alone.open(session, SPAN, granted)
        assert torch.equal(outputs, alone.step([Rows(session, 0, INPUTS)])[0])
        if session in "bc":
            runner.close(session)


def test_rows_pause_between_blocks_while_others_go_through(runner: Runner) -> None:
    """They have no outputs before the last block; theirs and everybody's are what they would be without pauses."""
    runner.open("whole", SPAN, 30)
    (whole,) = runner.step([Rows("whole", 0, INPUTS[:30])])
    runner.close("whole")
    runner.open("a", SPAN, 30)
    runner.open("b", SPAN, 30)
    rows = Rows("a", 0, INPUTS[:20])
    for position, stop in enumerate([1, 1, 2]):  # the second goes no further than the first
        nothing, other = runner.step([rows, Rows("b", position, INPUTS[position : position + 1])], {"a": stop})
        assert nothing.shape == (0, 40)
        assert torch.equal(other, whole[position : position + 1])
    through, other = runner.step([rows, Rows("b", 3, INPUTS[3:4])])
    assert torch.equal(through, whole[:20])
    assert torch.equal(other, whole[3:4])
    assert torch.equal(runner.step([Rows("a", 20, INPUTS[20:30])])[0], whole[20:])


def test_what_is_taken_back_of_rows_under_way_takes_all_of_them(runner: Runner) -> None:
    """They begin anew; what comes after them may go, and closing leaves nothing."""
    runner.open("a", SPAN, 40)
    (whole,) = runner.step([Rows("a", 0, INPUTS[:40])])
    runner.truncate("a", 5)
    under_way = Rows("a", 5, INPUTS[5:25])
    runner.step([under_way], {"a": 1})
    runner.truncate("a", 25)  # nothing of it
    with pytest.raises(ValueError, match="15 rows do not go on where 20 paused"):
        runner.step([under_way.ending_at(20)])
    runner.step([under_way], {"a": 1})  # the mistake has taken them back too
    runner.truncate("a", 20)
    assert torch.equal(runner.step([Rows("a", 5, INPUTS[5:20])])[0], whole[5:20])
    runner.step([Rows("a", 20, INPUTS[20:40])], {"a": 2})
    runner.close("a")
    runner.open("a", SPAN, 40)
    assert torch.equal(runner.step([Rows("a", 0, INPUTS[:40])])[0], whole)


def test_rows_under_way_are_found_and_kept_like_others() -> None:
    """The pages before them are taken from the cache when they begin, theirs are shared when they are through."""
    cache = KVCache(CONFIG.cache_shape, 24, max_shared=4)
    prefixes = PrefixCache(cache.pages, 40, cache_positions((CONFIG.rope,)))
    runner = torch_runner(CONFIG, SPAN, random_blocks(CONFIG, 3), cache, 4, prefixes)
    runner.open("a", SPAN, 100)
    (whole,) = runner.step([Rows("a", 0, INPUTS)])
    runner.open("b", SPAN, 100)
    rows = Rows("b", 0, INPUTS)
    assert runner.step([rows], {"b": 1})[0].shape[0] == 0
    assert runner.found_rows == 64
    assert torch.equal(runner.step([rows])[0], whole)
    assert runner.found_rows == 0


def test_a_sessions_entries_that_follow_one_another_are_one(runner: Runner) -> None:
    """Outputs come for each entry, and none for any of them while they pause; what does not follow is refused."""
    runner.open("a", SPAN, 40)
    runner.open("b", SPAN, 40)
    (whole,) = runner.step([Rows("b", 0, INPUTS[:40])])
    entries = [Rows("a", 0, INPUTS[:1]), Rows("a", 1, INPUTS[1:20]), Rows("a", 20, INPUTS[20:40])]
    assert [len(output) for output in runner.step(entries, {"a": 1})] == [0, 0, 0]
    outputs = runner.step(entries)
    assert [len(output) for output in outputs] == [1, 19, 20]
    assert torch.equal(torch.cat(outputs), whole)
    runner.truncate("a", 0)
    runner.truncate("b", 0)
    with pytest.raises(ValueError, match="3 do not continue 1"):
        runner.step([Rows("a", 0, INPUTS[:1]), Rows("a", 3, INPUTS[3:4])])
    with pytest.raises(ValueError, match="stand together"):
        runner.step([Rows("a", 0, INPUTS[:1]), Rows("b", 0, INPUTS[:1]), Rows("a", 1, INPUTS[1:2])])
