"""The row stream's rule against every order of events that a network can produce."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.protocol.messages import ReceivedUpTo, ResumeFrom, Rewind, RowsFrame
from shoal.protocol.row_stream import Cursor, Receiver, Sender, Taken

LINKS = 3
FOLLOWING = LINKS
"""The link to whoever follows a hop: the second one out of the party before it."""

Row = tuple[int, int, int]  # (epoch written in, position, serial number): what a real row's bytes stand for


class Party:
    """A hop: a receiver whose rows are at once the rows that it sends."""

    def __init__(self) -> None:
        self.receiver, self.sender = Receiver(), Sender()
        self.cursor, self.to_follower = Cursor(self.sender), Cursor(self.sender)
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
    """A client, two hops and the client again, perhaps with somebody who follows a hop: gets the same rows and sends nothing.

    Frames may be lost, late, repeated or reordered.
    """

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        """Fresh parties without links."""
        self.random = random.Random(seed)
        self.serial = 0
        self.root, self.hops, self.sink = Sender(), [Party() for _ in range(LINKS - 1)], Party()
        self.root_cursors = Cursor(self.root), Cursor(self.root)
        self.follower: Party | None = None
        self.followed = 0
        self.written: list[Row] = []
        self.history: dict[int, list[Row]] = {0: self.written}
        self.told: list[tuple[int, Rewind]] = []
        self.generation = [0] * (LINKS + 1)
        self.wires: list[list[tuple[int, bool, object, list[Row]]]] = [[] for _ in range(LINKS + 1)]
        for link in range(LINKS):
            self.connect(link)

    @property
    def links(self) -> range:
        """Those that there are now."""
        return range(LINKS + (self.follower is not None))

    def place(self, link: int) -> int:
        """Where on the route a link is: the one to a follower lies beside the one to the hop that is followed."""
        return self.followed if link == FOLLOWING else link

    def sender(self, link: int) -> Sender:
        """Who sends on a link."""
        place = self.place(link)
        return self.root if place == 0 else self.hops[place - 1].sender

    def cursor(self, link: int) -> Cursor:
        """A link's place in what its sender has."""
        place = self.place(link)
        cursors = self.root_cursors if place == 0 else (self.hops[place - 1].cursor, self.hops[place - 1].to_follower)
        return cursors[link == FOLLOWING]

    def receiver(self, link: int) -> Party:
        """Who receives on a link."""
        if link == FOLLOWING:
            assert self.follower is not None
            return self.follower
        return [*self.hops, self.sink][link]

    def source(self, link: int) -> list[Row]:
        """The rows that a link's sender keeps."""
        place = self.place(link)
        return self.written if place == 0 else self.hops[place - 1].rows

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

    @rule(data=st.data(), told=st.sets(st.integers(0, FOLLOWING)), count=st.integers(0, 5))
    def rewind(self, data: st.DataObject, told: set[int], count: int) -> None:
        """The client takes rows back and writes others; some parties are told on their control channel."""
        position = data.draw(st.integers(0, len(self.written)))
        self.written = self.written[:position]
        self.root.rewind(self.root.epoch + 1, position)
        self.history[self.root.epoch] = self.written
        for index in told:
            self.tell(index)
        self.write(count)

    @rule(index=st.integers(0, FOLLOWING))
    def tell(self, index: int) -> None:
        """The client says on a control channel what that party has missed; it may arrive later."""
        if index not in self.links:
            return
        since = self.receiver(index).receiver.epoch
        base = self.root.least(since)
        if base is not None:
            self.told.append((index, Rewind(self.root.epoch, base, since)))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        """A party hears on its control channel of a rewind, in any order."""
        index, message = self.told.pop(data.draw(st.integers(0, len(self.told) - 1)))
        if index not in self.links:
            return
        party = self.receiver(index)
        party.truncate(party.receiver.on_rewind(message))

    @rule(link=st.integers(0, FOLLOWING), limit=st.integers(1, 4))
    def pump(self, link: int, limit: int) -> None:
        """A sender answers and sends at most one frame."""
        if link not in self.links:
            return
        sender, cursor = self.sender(link), self.cursor(link)
        answer = cursor.answer()
        if answer is not None:
            self.post(link, True, answer)
        position = cursor.ready
        if position is not None:
            count = min(limit, sender.end - position)
            after = cursor.sent(count)
            rows = self.source(link)[position : position + count]
            self.post(link, True, RowsFrame(sender.epoch, position, count, after), rows)

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
        if isinstance(message, ReceivedUpTo):
            self.cursor(link).on_have(message)
        elif isinstance(message, ResumeFrom):
            party.truncate(party.receiver.on_from(message))
        elif isinstance(message, RowsFrame):
            verdict = party.receiver.on_rows(message)
            if isinstance(verdict, Taken):
                party.take(verdict, rows)
            elif verdict is not None:
                self.post(link, False, verdict)

    @rule()
    def calm(self) -> None:
        """For a while the network does what it should."""
        for link in self.links:
            for _ in range(3):
                self.pump(link, 4)
                self.drain(link)

    @rule(link=st.integers(0, FOLLOWING), limit=st.integers(1, 3))
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

    @rule(link=st.integers(0, FOLLOWING))
    def reconnect(self, link: int) -> None:
        """A connection breaks and comes back."""
        if link in self.links:
            self.connect(link)

    @rule(index=st.integers(0, LINKS - 2))
    def replace(self, index: int) -> None:
        """A hop dies; a substitute with nothing takes its place."""
        self.take_place(index, Party())

    def take_place(self, index: int, party: Party) -> None:
        """From now on this party is at that place; who followed there or was fed from there gets a new connection."""
        self.hops[index] = party
        self.connect(index)
        self.connect(index + 1)
        if self.follower is not None and self.followed == index + 1:
            self.connect(FOLLOWING)

    @rule(index=st.integers(0, LINKS - 2))
    def follow(self, index: int) -> None:
        """Somebody with nothing begins to follow a hop; who followed one before is let go."""
        self.leave()
        self.follower, self.followed = Party(), index
        self.connect(FOLLOWING)

    @precondition(lambda self: self.follower is not None)
    @rule()
    def leave(self) -> None:
        """Nobody follows any more."""
        if self.follower is not None:
            self.cursor(FOLLOWING).attach()
            self.follower = None
            self.generation[FOLLOWING] += 1
            self.wires[FOLLOWING].clear()
            self.told = [(index, message) for index, message in self.told if index != FOLLOWING]

    @precondition(lambda self: self.follower is not None)
    @rule(caught_up=st.booleans(), keep_old=st.booleans())
    def promote(self, caught_up: bool, keep_old: bool) -> None:
        """Whoever follows takes the place over: behind, as when the hop died, or not, as when it leaves or follows in turn."""
        follower, place = self.follower, self.followed
        assert follower is not None
        if caught_up and self.sender(FOLLOWING).epoch >= follower.receiver.epoch:  # else it waits for its sender
            self.connect(FOLLOWING)
            for _ in range(2 + len(self.source(FOLLOWING))):  # which may not know of a rewind yet
                self.pump(FOLLOWING, 4)
                self.drain(FOLLOWING)
            assert follower.rows[: len(self.source(FOLLOWING))] == self.source(FOLLOWING)
        old = self.hops[place]
        self.leave()
        self.take_place(place, follower)
        if keep_old:
            self.follower, self.followed = old, place
            self.connect(FOLLOWING)

    @invariant()
    def nobody_holds_a_wrong_row(self) -> None:
        """What a party holds as of an epoch is a beginning of what the client had written in that epoch."""
        for link in self.links:
            party = self.receiver(link)
            assert len(party.rows) == party.receiver.position
            truth = self.history[party.receiver.epoch]
            assert party.rows == truth[: len(party.rows)]

    def teardown(self) -> None:
        """Once the faults end, everybody has everything."""
        if not hasattr(self, "wires"):
            return
        self.wires = [[] for _ in range(LINKS + 1)]
        for link in self.links:
            self.connect(link)
        for _ in range(20 + len(self.written)):
            for link in self.links:
                self.pump(link, 4)
                self.drain(link)
        assert all(self.receiver(link).rows == self.written for link in self.links)


RowStream.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
TestRowStream = RowStream.TestCase
