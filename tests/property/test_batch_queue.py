"""What the queue keeps for any traffic: bounds, order, progress, fairness; each wanted row comes out once."""

from __future__ import annotations

from collections import Counter
from itertools import chain, repeat

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.engine.batch_queue import DECODE_ROWS, PREFILL_CHUNK_ROWS, Batch, BatchQueue, Limits
from shoal.protocol.rows import Rows
from tests.support.queue_desk import QueueDesk, taken

limits = st.tuples(st.integers(1, 40), st.integers(2, 80)).map(lambda bounds: Limits(*bounds))
arrivals = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 60)), max_size=4)
drops = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 100)), max_size=2)
traffics = st.lists(st.tuples(arrivals, drops), max_size=6)


def most(bounds: Limits) -> int:
    """The decoding rows that fit beside a prefill."""
    return bounds.max_step_rows - min(bounds.prefill_chunk_rows, bounds.max_step_rows // 2)


Traffic = list[tuple[list[tuple[int, int, int]], list[tuple[int, int]]]]


@given(limits, traffics)
def test_bounds_and_progress_under_any_traffic(bounds: Limits, traffic: Traffic) -> None:
    """Each step is within its budget and useful; rows are neither lost nor invented; both kinds move."""
    desk = QueueDesk(bounds)
    left: Counter[str] = Counter()
    for step, (added, dropped) in enumerate(chain(traffic, repeat(([], [])))):
        for client, number, rows in added:
            desk.add(f"{client}.{number}", f"{client}", rows)
            left[f"{client}.{number}"] += rows
        for session, keep in dropped:
            name = f"{session // 4}.{session % 4}"
            desk.keep(name, keep)
            left[name] = min(left[name], keep)
        assert desk.queue.queued_rows == left.total()
        desk.queue._mixed_steps = 0  # else one step in so many would go without the prefill
        rows_of = desk.step()
        assert sum(rows_of.values()) <= bounds.max_step_rows
        assert all(0 < rows <= left[session] for session, rows in rows_of.items())
        prefill = {session for session in left if left[session] > DECODE_ROWS}
        decode = {session for session in left if 0 < left[session] <= DECODE_ROWS}
        room = min(
            bounds.prefill_chunk_rows,
            bounds.max_step_rows - sum(rows_of[session] for session in decode & set(rows_of)),
        )
        picked = sum(rows_of[session] for session in prefill & set(rows_of))
        assert picked == min(room, sum(left[name] for name in prefill))
        assert [session in prefill for session in rows_of] == sorted(session in prefill for session in rows_of)
        assert not prefill or prefill & set(rows_of)
        assert not decode or decode & set(rows_of)
        left.subtract(rows_of)
        if step >= len(traffic) and not left.total():
            break
    assert desk.queue.queued_rows == 0
    assert desk.step() == {}


@given(limits, st.lists(st.integers(1, DECODE_ROWS), min_size=1, max_size=30), st.booleans())
def test_no_decoding_client_starves(bounds: Limits, sizes: list[int], prefilling: bool) -> None:
    """Clients that ask again as soon as they are served wait no longer than one round of all of them."""
    desk = QueueDesk(bounds)
    waited = dict.fromkeys(range(len(sizes)), 0)
    for client, rows in enumerate(sizes):
        desk.add(f"{client}", f"{client}", rows)
    if prefilling:
        desk.add("long", "other", 50_000)
    budget = most(bounds) if prefilling else bounds.max_step_rows
    for _ in range(100):
        rows_of = desk.step()
        for client in range(len(sizes)):
            waited[client] = 0 if f"{client}" in rows_of else waited[client] + 1
            if f"{client}" in rows_of:
                desk.add(f"{client}", f"{client}", rows_of[f"{client}"])
        assert max(waited.values()) <= -(-sum(sizes) // budget)


@given(limits, st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_prefilling_clients_get_equal_shares(bounds: Limits, sessions: list[int]) -> None:
    """While all have more than enough, no client is ever more than a row ahead, whatever its number of sessions."""
    desk = QueueDesk(bounds)
    for client, count in enumerate(sessions):
        for number in range(count):
            desk.add(f"{client}.{number}", f"{client}", 1500)
    rows = Counter({f"{client}": 0 for client in range(len(sessions))})
    for _ in range(30):
        for session, count in desk.step().items():
            rows[session.split(".")[0]] += count
        assert max(rows.values()) - min(rows.values()) <= 1


@given(limits, st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_decoding_clients_are_served_once_before_any_is_served_twice(bounds: Limits, sessions: list[int]) -> None:
    """Within a step that is too small for all, a client's second session comes after every client's first."""
    desk = QueueDesk(bounds)
    for client, count in enumerate(sessions):
        for number in range(count):
            desk.add(f"{client}.{number}", f"{client}", 1)
    served = Counter(session.split(".")[0] for session in desk.step())
    for client, count in enumerate(sessions):
        assert served[f"{client}"] >= min(count, max(served.values()) - 1)


timed_steps = st.lists(st.tuples(st.sets(st.integers(0, 5)), st.floats(1e-4, 1.0), st.floats(0.0, 1.0)), max_size=40)


@given(limits, timed_steps)
def test_whatever_steps_take_prefill_moves_and_waits_end(
    bounds: Limits, steps: list[tuple[set[int], float, float]]
) -> None:
    """With any measured times: prefill has a row in every step and never more than a chunk, all that decodes fits beside it,
    and a step that waits for company begins after the longest wait at the latest."""
    desk, now = QueueDesk(bounds), 0.0
    waiting: set[int] = set()
    desk.add("long", "other", 60_000, now=now)
    for arrived, elapsed_s, pause_s in steps:
        for client in arrived - waiting:  # a session that decodes brings a row when it has got the last one
            desk.add(f"{client}", f"{client}", 1, now=now)
        waiting |= arrived
        wait_s = desk.queue.wait_s(now)
        assert wait_s is not None
        assert 0 <= wait_s <= desk.queue.delay.limit_s + 1e-9
        now += wait_s
        assert desk.queue.wait_s(now + 1e-9) == 0
        rows_of = desk.step(now, elapsed_s)
        if "long" in rows_of:  # now and then a step that decodes goes without it
            assert 1 <= rows_of.pop("long") <= bounds.prefill_chunk_rows
        assert rows_of or not waiting
        waiting -= set(map(int, rows_of))
        now += elapsed_s + pause_s


DEPTH = 3
NAMES = ["0.0", "0.1", "1.0", "2.0"]
names = st.sampled_from(NAMES)


class QueueMachine(RuleBasedStateMachine):
    """A queue between sessions that submit, rewind and close at any time, and steps that end, pause or fail.

    A row is a pair: its position, and a number that no other row has. `wanted` holds, for each session, the rows that it has
    submitted, has not taken back and has not got.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = BatchQueue(Limits(max_queued_rows=500), DEPTH)
        self.now = 0.0
        self.drawn = 0
        self.positions: dict[str, int] = {}
        self.wanted: dict[str, list[tuple[int, int]]] = {}
        self.out: Batch | None = None
        self.newest: list[Rows] = []
        budget = self.queue.budget  # as after steps in which a chunk beside decoding goes through one block at a time
        budget.decode_s, budget.alone_s, budget.beside_s = 0.001, 4e-5, 4e-5
        for session in NAMES:
            self.open(session, background=False)

    @rule(session=names, background=st.booleans())
    def open(self, session: str, background: bool) -> None:
        """A session that is not there."""
        if session not in self.positions:
            self.queue.open(session, session[0], background)
            self.positions[session], self.wanted[session] = 0, []

    @rule(session=names, background=st.booleans())
    def set_background(self, session: str, background: bool) -> None:
        """It stands by, or does so no more."""
        self.queue.set_background(session, background)

    @rule(session=names, count=st.sampled_from([1, 1, 1, 3, 20, 40]))
    def submit(self, session: str, count: int) -> None:
        """Rows that follow."""
        if session in self.positions and self.queue.queued_rows + count <= 500:
            first = self.positions[session]
            rows = [(first + index, self.drawn + index) for index in range(count)]
            self.drawn += count
            self.queue.submit(Rows(session, first, rows), self.now)
            self.positions[session] += count
            self.wanted[session] += rows

    @rule(session=names, back=st.sampled_from([0, 1, 2, 2, 5, 30, 80]))
    def rewind(self, session: str, back: int) -> None:
        """Rows are taken back, wherever they are."""
        if session in self.positions:
            self._rewind(session, max(0, self.positions[session] - back))

    @precondition(lambda self: bool(self.newest))
    @rule(index=st.integers(0, 3), keep=st.sampled_from([0, 1, 2, 20]))
    def rewind_what_was_picked(self, index: int, keep: int) -> None:
        """Rows of the newest batch are taken back: they run, pause, or were computed."""
        rows = self.newest[index % len(self.newest)]
        if rows.position + keep <= self.positions.get(rows.session, -1):
            self._rewind(rows.session, rows.position + keep)

    def _rewind(self, session: str, position: int) -> None:
        self.positions[session] = position
        self.wanted[session] = [row for row in self.wanted[session] if row[0] < position]
        self.queue.rewind(session, position)

    @rule(session=names)
    def forget(self, session: str) -> None:
        """It is closed; not while a batch is out that a session of the same name could be taken for later."""
        self.queue.forget(session)
        if self.positions.pop(session, None) is not None:
            del self.wanted[session]

    @precondition(lambda self: self.out is None)
    @rule(pause_s=st.sampled_from([0.0, 0.0, 0.01, 2.0]))
    def begin(self, pause_s: float) -> None:
        """A step, after the wait for company if there are rows."""
        self.now += pause_s
        wait_s = self.queue.wait_s(self.now)
        self.now += wait_s or 0.0
        self.out = batch = self.queue.next_batch(self.now)
        self.newest = batch.rows
        assert (wait_s is None) == (not batch.rows)
        assert batch.num_rows == sum(rows.num_rows for rows in batch.rows) <= self.queue.limits.max_step_rows
        prefill = {name: rows for name, rows in taken(batch).items() if name not in batch.decoding}
        assert sum(prefill.values()) <= PREFILL_CHUNK_ROWS + DECODE_ROWS
        for rows in batch.rows:
            assert set(rows.hidden_states) <= set(self.wanted[rows.session])

    @precondition(lambda self: self.out is not None)
    @rule(elapsed_s=st.sampled_from([1e-4, 1e-3, 3e-3, 0.5]))
    def end(self, elapsed_s: float) -> None:
        """The step ends; rows that pause have no outputs yet."""
        batch, self.out = self.out, None
        assert batch is not None
        self.now += elapsed_s
        outputs = [[] if rows.session in batch.pauses else rows.hidden_states for rows in batch.rows]
        self.queue.finish(batch, outputs, self.now)

    @precondition(lambda self: self.out is not None)
    @rule(guilty=st.sets(names, max_size=2))
    def fail(self, guilty: set[str]) -> None:
        """The step fails, and each session is tried alone; the guilty are closed."""
        batch, self.out = self.out, None
        assert batch is not None
        for part in self.queue.split(batch):
            (session,) = part.sessions
            assert not part.pauses
            if session in guilty:
                self.forget(session)
            else:
                self.queue.finish(
                    part._replace(began_at=self.now), [rows.hidden_states for rows in part.rows], self.now
                )

    @rule()
    def take(self) -> None:
        """The next output is the first row that is still wanted of its session, and those behind it."""
        output = self.queue.take_output()
        if output is not None:
            rows, trace = output
            assert rows.num_rows
            assert rows.hidden_states[0][0] == rows.position
            got, self.wanted[rows.session] = (
                self.wanted[rows.session][: rows.num_rows],
                self.wanted[rows.session][rows.num_rows :],
            )
            assert rows.hidden_states == got
            assert trace.queue_s >= -1e-9
            assert trace.compute_s >= 0

    @invariant()
    def rows_that_wait_are_counted(self) -> None:
        """Never more than are wanted, never fewer than none."""
        assert 0 <= self.queue.queued_rows <= sum(map(len, self.wanted.values()))

    def teardown(self) -> None:
        """When sessions do nothing more each wanted row comes out, within a bounded number of steps."""
        if self.out is not None:
            self.end(0.1)
        for _ in range(600):
            if self.queue.wait_s(self.now) is None:
                break
            self.begin(0.0)
            self.end(0.1)
        for _ in range(sum(map(len, self.wanted.values()))):
            self.take()
        assert not any(self.wanted.values())
        assert self.queue.take_output() is None


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
