"""The row stream's rule against every order of events that a network can produce."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.wire.messages import From, Have, Rewind, Rows
from shoal.wire.stream import Cursor, Receiver, Sender, Taken

LINKS = 3
Row = tuple[int, int, int]  # (epoch written in, position, serial number): what a real row's bytes stand for


class Party:
    """A hop: a receiver whose rows are at once the rows that it sends."""

    def __init__(self) -> None:
        self.receiver, self.sender = Receiver(), Sender()
        self.cursor = Cursor(self.sender)
        self.rows: list[Row] = []

    def truncate(self, position: int | None) -> None:
        """Follow the receiver's truncation with everything behind it."""
        if position is not None:
            del self.rows[position:]
            self.sender.rewind(self.receiver.epoch, position)

    def take(self, verdict: Taken, rows: list[Row]) -> None:
        """Take the new part of a frame."""
        self.truncate(verdict.truncate_to)
        new = rows[verdict.skip :]
        self.rows += new
        self.sender.append(len(new))


class RowStream(RuleBasedStateMachine):
    """A client, two hops and the client again; frames may be lost, late, repeated or reordered."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        """Fresh parties without links."""
        self.random = random.Random(seed)
        self.serial = 0
        self.root, self.hops, self.sink = Sender(), [Party() for _ in range(LINKS - 1)], Party()
        self.root_cursor = Cursor(self.root)
        self.written: list[Row] = []
        self.history: dict[int, list[Row]] = {0: self.written}
        self.told: list[tuple[int, Rewind]] = []
        self.generation = [0] * LINKS
        self.wires: list[list[tuple[int, bool, object, list[Row]]]] = [[] for _ in range(LINKS)]
        for link in range(LINKS):
            self.connect(link)

    def sender(self, link: int) -> Sender:
        """Who sends on a link."""
        return self.root if link == 0 else self.hops[link - 1].sender

    def cursor(self, link: int) -> Cursor:
        """A link's place in what its sender has."""
        return self.root_cursor if link == 0 else self.hops[link - 1].cursor

    def receiver(self, link: int) -> Party:
        """Who receives on a link."""
        return [*self.hops, self.sink][link]

    def source(self, link: int) -> list[Row]:
        """The rows that a link's sender keeps."""
        return self.written if link == 0 else self.hops[link - 1].rows

    def post(self, link: int, forward: bool, message: object, rows: list[Row] | None = None) -> None:
        """Put a message on the wire of the present generation."""
        self.wires[link].append((self.generation[link], forward, message, rows or []))

    def connect(self, link: int) -> None:
        """A new connection: the receiver says what it has; what is on the old one is still about."""
        self.generation[link] += 1
        self.cursor(link).attach()
        self.post(link, False, self.receiver(link).receiver.attach())

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        """The client appends rows."""
        for _ in range(count):
            self.written.append((self.root.epoch, len(self.written), self.serial))
            self.serial += 1
        self.root.append(count)

    @rule(data=st.data(), told=st.sets(st.integers(0, LINKS - 1)), count=st.integers(0, 5))
    def rewind(self, data: st.DataObject, told: set[int], count: int) -> None:
        """The client takes rows back and writes others; some parties are told on their control channel."""
        position = data.draw(st.integers(0, len(self.written)))
        self.written = self.written[:position]
        self.root.rewind(self.root.epoch + 1, position)
        self.history[self.root.epoch] = self.written
        for index in told:
            self.tell(index)
        self.write(count)

    @rule(index=st.integers(0, LINKS - 1))
    def tell(self, index: int) -> None:
        """The client says on a control channel what that party has missed; it may arrive later."""
        since = self.receiver(index).receiver.epoch
        base = self.root.least(since)
        if base is not None:
            self.told.append((index, Rewind(self.root.epoch, base, since)))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """A party hears on its control channel of a rewind, in any order."""
        index, message = self.told.pop(data.draw(st.integers(0, len(self.told) - 1)))
        party = self.receiver(index)
        party.truncate(party.receiver.on_rewind(message))

    @rule(link=st.integers(0, LINKS - 1), limit=st.integers(1, 4))
    def pump(self, link: int, limit: int) -> None:
        """A sender answers and sends at most one frame."""
        sender, cursor = self.sender(link), self.cursor(link)
        answer = cursor.answer()
        if answer is not None:
            self.post(link, True, answer)
        position = cursor.ready
        if position is not None:
            count = min(limit, sender.end - position)
            after = cursor.sent(count)
            rows = self.source(link)[position : position + count]
            self.post(link, True, Rows(sender.epoch, position, count, after), rows)

    @precondition(lambda self: any(self.wires))
    @rule(data=st.data(), reorder=st.booleans(), repeat=st.booleans(), lose=st.booleans())
    def deliver(self, data: st.DataObject, reorder: bool, repeat: bool, lose: bool) -> None:
        """A message arrives: in or out of order, perhaps again, perhaps not at all."""
        link = data.draw(st.sampled_from([i for i, wire in enumerate(self.wires) if wire]))
        index = data.draw(st.integers(0, len(self.wires[link]) - 1)) if reorder else 0
        message = self.wires[link][index] if repeat else self.wires[link].pop(index)
        if not lose:
            self.arrive(link, *message)

    def arrive(self, link: int, generation: int, forward: bool, message: object, rows: list[Row]) -> None:
        """One message at its receiver; connections of an older generation are closed, so theirs are dropped."""
        if generation != self.generation[link]:
            return
        party = self.receiver(link)
        if isinstance(message, Have):
            self.cursor(link).on_have(message)
        elif isinstance(message, From):
            party.truncate(party.receiver.on_from(message))
        elif isinstance(message, Rows):
            verdict = party.receiver.on_rows(message)
            if isinstance(verdict, Taken):
                party.take(verdict, rows)
            elif verdict is not None:
                self.post(link, False, verdict)

    @rule()
    def calm(self) -> None:
        """For a while the network does what it should."""
        for link in range(LINKS):
            for _ in range(3):
                self.pump(link, 4)
                self.drain(link)

    @rule(link=st.integers(0, LINKS - 1), limit=st.integers(1, 3))
    def swallow(self, link: int, limit: int) -> None:
        """One frame vanishes unnoticed, and what follows it arrives."""
        self.drain(link)
        self.pump(link, limit)
        self.wires[link].clear()
        self.pump(link, limit)
        self.drain(link)

    def drain(self, link: int) -> None:
        """Everything on a link arrives, in order."""
        wire, self.wires[link] = self.wires[link], []
        for message in wire:
            self.arrive(link, *message)

    @rule(link=st.integers(0, LINKS - 1))
    def reconnect(self, link: int) -> None:
        """A connection breaks and comes back."""
        self.connect(link)

    @rule(index=st.integers(0, LINKS - 2))
    def replace(self, index: int) -> None:
        """A hop dies; a substitute with nothing takes its place."""
        self.hops[index] = Party()
        self.connect(index)
        self.connect(index + 1)

    @invariant()
    def nobody_holds_a_wrong_row(self) -> None:
        """What a party holds as of an epoch is a beginning of what the client had written in that epoch."""
        for link in range(LINKS):
            party = self.receiver(link)
            assert len(party.rows) == party.receiver.position
            truth = self.history[party.receiver.epoch]
            assert party.rows == truth[: len(party.rows)]

    def teardown(self) -> None:
        """Once the faults end, everybody has everything."""
        if not hasattr(self, "wires"):
            return
        self.wires = [[] for _ in range(LINKS)]
        for link in range(LINKS):
            self.connect(link)
        for _ in range(20 + len(self.written)):
            for link in range(LINKS):
                self.pump(link, 4)
                self.drain(link)
        assert all(self.receiver(link).rows == self.written for link in range(LINKS))


RowStream.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
TestRowStream = RowStream.TestCase
