"""The queue's policy by examples; tests/property/test_batch_queue.py has what holds always."""

from __future__ import annotations

from collections import Counter

import pytest

from shoal.engine.batch_queue import BatchQueue, Limits
from shoal.errors import ProtocolError, ServerFull, UsageError
from shoal.protocol.messages import RowsFrame
from shoal.protocol.rows import Rows
from tests.support.queue_desk import QueueDesk, taken


def test_decode_goes_first_and_prefill_gets_its_chunk() -> None:
    """A step holds every decoding session's row and one chunk of the prefill."""
    desk = QueueDesk()
    desk.add("long", "a", 1000)
    for index in range(5):
        desk.add(f"short {index}", "b", 1)
    rows = desk.step()
    assert list(rows) == [*(f"short {index}" for index in range(5)), "long"]
    assert rows["long"] == desk.queue.limits.prefill_chunk_rows


def test_a_prefill_alone_is_cut_as_well() -> None:
    """A session that decodes is between two tokens and comes back before a whole prompt is through."""
    desk = QueueDesk()
    desk.add("long", "a", 150)
    assert [desk.step() for _ in range(4)] == [{"long": 64}, {"long": 64}, {"long": 22}, {}]


def test_many_sessions_get_no_more_than_one() -> None:
    """Two clients that prefill share the budget, however many sessions each has."""
    desk = QueueDesk(Limits(prefill_chunk_rows=64, max_step_rows=64))
    for index in range(10):
        desk.add(f"many {index}", "many", 640)
    desk.add("one", "one", 640)
    rows: Counter[str] = Counter()
    for _ in range(10):
        for session, num_rows in desk.step().items():
            rows[session.split()[0]] += num_rows
    assert rows == {"many": 320, "one": 320}


def test_short_prompts_share_a_step() -> None:
    """What one session does not need goes to the next, of the same client too."""
    desk = QueueDesk(Limits(prefill_chunk_rows=128))
    for index in range(6):
        desk.add(f"short {index}", "gateway", 20)
    desk.add("long", "other", 500)
    assert desk.step() == {"short 0": 20, "short 1": 20, "short 2": 20, "short 3": 4, "long": 64}
    assert desk.step() == {"short 4": 20, "short 5": 20, "short 3": 16, "long": 72}


def test_what_a_short_prompt_leaves_goes_to_a_long_one() -> None:
    """Also when the long one is first in turn."""
    desk = QueueDesk()
    desk.add("long", "a", 500)
    desk.add("short", "b", 20)
    assert desk.step() == {"short": 20, "long": 44}


def test_a_clients_prefills_take_turns() -> None:
    """A session that was served stands behind the client's others."""
    desk = QueueDesk(Limits(prefill_chunk_rows=10))
    for name in "ab":
        desk.add(name, "client", 40)
    assert [session for _ in range(4) for session in desk.step()] == ["a", "b", "a", "b"]


def test_a_client_that_comes_back_at_once_waits_for_the_others() -> None:
    """When a step holds one row, three clients that decode get it in turn."""
    desk = QueueDesk(Limits(prefill_chunk_rows=1, max_step_rows=2))
    for name in "abc":
        desk.add(name, name, 2)
    order = []
    for _ in range(6):
        (session,) = desk.step()
        order.append(session)
        desk.add(session, session, 2)
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_a_full_queue_refuses_with_a_time() -> None:
    """The time is what half of the queue takes at the measured rate."""
    desk = QueueDesk(Limits(max_queued_rows=100))
    desk.add("a", "a", 80)
    desk.queue.stats.prefill_rows_per_s = 10.0
    with pytest.raises(ServerFull) as caught:
        desk.add("b", "b", 21)
    assert caught.value.retry_after == pytest.approx(4)
    assert desk.queue.queued_rows == 80


def test_rows_that_were_taken_back_are_not_picked() -> None:
    """A rewind keeps the first of the rows that wait, a close none."""
    desk = QueueDesk()
    desk.add("a", "x", 10)
    desk.add("b", "x", 10)
    desk.keep("a", 3)
    desk.queue.forget("b")
    desk.queue.forget("c")
    assert desk.step() == {"a": 3}
    assert desk.queue.queued_rows == 0
    assert desk.step() == {}


def test_what_cannot_be_is_refused() -> None:
    """No rows, a gap, a session that is not open, a step without room."""
    queue = BatchQueue()
    queue.open("a", "a")
    with pytest.raises(ValueError, match="0 rows"):
        queue.submit(Rows("a", 0, []), 0.0)
    with pytest.raises(ProtocolError, match="do not follow"):
        queue.submit(Rows("a", 1, [1]), 0.0)
    with pytest.raises(ProtocolError, match="do not follow"):
        queue.submit(Rows("b", 0, [0]), 0.0)
    for limits in (Limits(0), Limits(1, 1), Limits(1, 2, 0)):
        with pytest.raises(UsageError):
            BatchQueue(limits)


def test_rows_of_a_frame_stay_together_with_it() -> None:
    """Steps that cut or join frames give outputs that belong to one frame each, with what the step took."""
    queue = BatchQueue(Limits(prefill_chunk_rows=12))
    queue.open("a", "a")
    frames = [RowsFrame(1, 0, 10, 0), RowsFrame(1, 10, 10, 0)]
    for frame in frames:
        rows = range(frame.position, frame.position + frame.count)
        queue.submit(Rows("a", frame.position, rows, frame, received_at=7.0), 1.0)
    outputs = []
    for began_at in (2.0, 5.0):
        batch = queue.next_batch(began_at)
        queue.finish(batch, [rows.hidden_states for rows in batch.rows], began_at + 1)
        while (output := queue.take_output()) is not None:
            outputs.append(output)
    assert [(rows.position, rows.num_rows, rows.frame) for rows, _ in outputs] == [
        (0, 10, frames[0]),
        (10, 2, frames[1]),
        (12, 8, frames[1]),
    ]
    traces = [(trace.received_at, trace.queue_s, trace.compute_s, trace.batch_rows) for _, trace in outputs]
    assert traces == [(7.0, 1.0, 1.0, 12), (7.0, 1.0, 1.0, 12), (7.0, 4.0, 1.0, 8)]


def test_no_time_in_a_trace_is_less_than_nothing() -> None:
    """Rows that are computed the moment they come have waited 0 s, however the clock's numbers are rounded."""
    began_at, ended_at = 0.01, 0.08
    assert ended_at - (ended_at - began_at) < began_at
    queue = BatchQueue()
    queue.open("a", "a")
    queue.submit(Rows("a", 0, range(1), RowsFrame(1, 0, 1, 0), received_at=7.0), began_at)
    batch = queue.next_batch(began_at)
    queue.finish(batch, [range(1)], ended_at)
    output = queue.take_output()
    assert output is not None
    assert output[1].queue_s == 0.0


def test_sessions_in_the_background_get_a_few_rows_beside_others() -> None:
    """The whole step when no other has any, and their share like others when they come to the front."""
    desk = QueueDesk()
    desk.queue.open("standby", "b", background=True)
    desk.queue.submit(Rows("standby", 0, range(300)), 0.0)
    desk.add("decode", "a", 1)
    assert desk.step() == {"decode": 1, "standby": 8}
    assert desk.step() == {"standby": 64}
    desk.queue.set_background("standby", False)
    desk.queue.set_background("nobody", True)
    desk.add("long", "a", 100)
    assert desk.step() == {"long": 32, "standby": 32}


def test_a_prefill_between_two_blocks_leaves_out_all_others() -> None:
    """Room is kept for a chunk of it; sessions that decode are picked as ever."""
    desk = QueueDesk(Limits(prefill_chunk_rows=16, max_step_rows=24), depth=4)
    queue = desk.queue
    queue.budget.decode_s, queue.budget.alone_s, queue.budget.beside_s = 0.001, 1e-4, 1e-4
    for name in ("prompt", "other"):
        desk.add(name, name, 40)
    desk.add("decode", "client", 1)
    batch = queue.next_batch(0.0)
    assert taken(batch) == {"decode": 1, "prompt": 7, "other": 7}
    assert batch.pauses == {"prompt": 1, "other": 1}
    desk.finish(batch, 0.0)
    for number in range(6):
        desk.add(f"decode {number}", f"client {number}", 4)
    batch = queue.next_batch(0.0)
    rows = taken(batch)
    assert batch.pauses == {"prompt": 2, "other": 2}
    assert (rows.pop("prompt"), rows.pop("other")) == (7, 7)
    assert sum(rows.values()) == 12
    desk.finish(batch, 0.0)
    queue.rewind("other", 3)
    queue.forget("prompt")
    for number in range(6):
        queue.forget(f"decode {number}")
    batch = queue.next_batch(0.0)
    assert (taken(batch), batch.pauses) == ({"other": 3}, {})


def test_a_batch_that_failed_is_split_into_what_is_still_wanted() -> None:
    """Each session alone and through all blocks; what was taken back meanwhile is left out."""
    desk = QueueDesk(depth=4)
    desk.queue.budget.decode_s, desk.queue.budget.alone_s, desk.queue.budget.beside_s = 0.001, 4e-5, 4e-5
    desk.add("prompt", "p", 40)
    for name in "abc":
        desk.add(name, name, 4)
    batch = desk.queue.next_batch(0.0)
    assert batch.pauses == {"prompt": 1}
    desk.queue.rewind("a", 1)
    desk.queue.rewind("b", 0)
    desk.queue.forget("c")
    parts = desk.queue.split(batch)
    assert [(taken(part), part.pauses, part.decode_rows) for part in parts] == [
        ({"a": 1}, {}, 1),
        ({"prompt": 32}, {}, 0),
    ]
    for part in parts:
        desk.queue.finish(part, [rows.hidden_states for rows in part.rows], 1.0)
    outputs = [desk.queue.take_output() for _ in range(3)]
    assert [output and (output[0].session, list(output[0].hidden_states)) for output in outputs] == [
        ("a", [0]),
        ("prompt", list(range(32))),
        None,
    ]


def test_a_step_waits_for_sessions_that_are_due() -> None:
    """From when it could begin; the wait belongs to the batch. Without rows there is nothing to wait for."""
    desk = QueueDesk()
    assert desk.queue.wait_s(0.0) is None
    for began_at in (1.0, 2.0):
        for name in "ab":
            desk.add(name, name, 1, began_at)
        desk.step(began_at, 0.1)
    desk.add("a", "a", 1, 3.0)
    assert desk.queue.wait_s(3.0) == pytest.approx(0.05)
    assert desk.queue.wait_s(3.04) == pytest.approx(0.01)
    assert desk.queue.wait_s(3.06) == 0
    assert desk.queue.next_batch(3.06).held_s == pytest.approx(0.06)
    assert desk.queue.wait_s(3.07) is None


def test_a_short_step_of_a_session_that_is_alone() -> None:
    """One session's few rows, once steps are known to be short, and no other session that is about to come back."""
    desk = QueueDesk()
    assert not desk.queue.is_short_and_alone(0.0)
    desk.add("a", "a", 1, 0.0)
    assert not desk.queue.is_short_and_alone(0.0)
    desk.step(0.0, 0.001)
    desk.add("a", "a", 1, 0.002)
    assert desk.queue.is_short_and_alone(0.002)
    desk.add("b", "a", 1, 0.002)
    assert not desk.queue.is_short_and_alone(0.002)
    desk.queue.forget("b")
    desk.add("a", "a", 20, 0.002)
    assert not desk.queue.is_short_and_alone(0.002)
