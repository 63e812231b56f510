"""Frames out of a store that survives its worker: for order, and for state.

An `ordered` stage must hold what came early; a stage with a `snapshot` must see frames again after
a crash, with the state it had then. Both take frames out of their slots into the seat's store, so
the channel is free for the frame that is waited for.

What counts is the root of the store that goes with the counters' row, so it is switched together
with them: how many frames were handled, where the state lies, and the place that comes next.

Invariant: a record before the place in force is not needed; any other one was not counted. A frame
is added before its token is let go; a replacement that finds it in both does not add it again.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..policy.reorder import Place, Reorder
from ..transport import counters
from ..transport.consumer import Consumer
from ..transport.counters import SeatCounters
from ..transport.frame import Header, Tag, owned, read_items
from ..transport.gaps import GapPipe
from ..transport.store import Record, Store
from ..transport.token import END, work_id
from .intake import Work

_FRAME, _GAP, _STATE = range(3)


class _Kept(NamedTuple):
    record: Record
    header: Header


class Backlog:
    """Satisfies `intake.Intake`. In source order if `routes` is given, else as frames arrive.

    `routes` is the number of routes into the stage; `gaps` tells where nothing comes.
    """

    def __init__(
        self,
        consumer: Consumer,
        seat: SeatCounters,
        store: Store,
        routes: int | None = None,
        gaps: GapPipe | None = None,
    ) -> None:
        self.ended = False
        self.held_bytes = 0
        """Size of the frames that are held or kept."""
        self.state: bytes | None = None
        """The state as of the last commit."""
        self._consumer = consumer
        self._seat = seat
        self._store = store
        self._gaps = gaps
        self._by_arrival = routes is None
        self._input_ended = False
        self._done, self._state_at, *at = store.root(seat.row_number) or (0, 0, 0)
        self._order: Reorder[_Kept] = Reorder(routes or 1, self._forget, at)
        self._handled_to = at
        self._in_hand: _Kept | None = None
        self._uncounted: list[_Kept] = []
        self._states: list[Record] = []
        self._holding = 0
        self._arrived = self._done
        self._recover()

    def _recover(self) -> None:
        tokens = set()
        for record in self._store.recover():
            if record.kind == _STATE:
                self._states.append(record)
            else:
                tokens.add(record.token)
                self._arrived = max(self._arrived, record.number + 1)
                self._keep(record)
        self._free_old_states()
        for record in self._states:
            self.state = bytes(self._store.read(record))
        if self._consumer.token not in (0, END) and self._consumer.claim() is not None:
            if self._consumer.token in tokens:
                self._consumer.release()
            else:
                self._add_frame()

    # Frames.

    @property
    def has_uncounted(self) -> bool:
        return bool(self._uncounted)

    @property
    def uncounted_frames(self) -> int:
        """How many frames, and marks, are kept until they are counted."""
        return len(self._uncounted)

    @property
    def reached(self) -> int:
        return work_id(self._done)

    def take(self) -> Work | None:
        while True:
            kept = self._order.pop(at_end=self._input_ended)
            if kept is None:
                if self._input_ended:
                    self.ended = True
                    return None
                if not self._admit():
                    self._tell()  # a dead worker may not have come to that
                    return None
            elif kept.record.kind == _GAP:
                self._uncounted.append(kept)
                self._handled_to = self._order.at
            else:
                self._in_hand = kept
                self._tell()
                return Work(work_id(self._done + 1), kept.header, self._load)

    def _load(self) -> Sequence[Any]:
        kept = self._in_hand
        assert kept is not None
        payload = self._store.read(kept.record)[kept.header.packed_bytes :]
        return read_items(kept.header, owned(kept.header, payload))

    def _admit(self) -> bool:
        """Take something off the pipes into the store, if there is anything."""
        if self._admit_gaps():
            return True
        consumer = self._consumer
        while consumer.token or consumer.take():
            if consumer.token == END:
                self._admit_gaps()  # all of them were sent before the end was
                self._input_ended = True
                return True
            if consumer.claim() is not None:
                self._add_frame()
                return True
        return False

    def _add_frame(self) -> None:
        header = self._consumer.header
        parts: list[bytes | memoryview] = [header.pack(), self._consumer.payload()]
        record = self._store.add(parts, _FRAME, self._arrived, self._consumer.token)
        self._arrived += 1
        self._consumer.release()
        self._keep(record)

    def _admit_gaps(self) -> bool:
        gaps, landing, found = self._gaps, self._store.landing, False
        while gaps is not None and ((place := gaps.landed(landing)) or gaps.take(landing)):
            if place is not None:
                tag = Tag(0, 0, place.origin, place.span, 0, place.route, place.path)
                header = Header(0, 0, 0, 0, 0, 0, tag)
                self._keep(self._store.add([header.pack()], _GAP))
                gaps.clear(landing)
                found = True
        return found

    def _keep(self, record: Record) -> None:
        header = Header.unpack(self._store.read(record))
        place = Place(record.number, 1, 0, ()) if self._by_arrival else header.tag.place
        self._holding += header.items
        self.held_bytes += header.payload_bytes
        self._order.add(place, _Kept(record, header))
        self._tell()

    def _forget(self, kept: _Kept) -> None:
        self._holding -= kept.header.items
        self.held_bytes -= kept.header.payload_bytes
        self._store.free(kept.record)

    def _tell(self) -> None:
        """For stats, and for the source, which must not be too far ahead."""
        self._seat.put(counters.HOLDING, self._holding)
        self._seat.put(counters.HELD_BYTES, self.held_bytes)
        self._seat.put(counters.NEXT, self._order.at[0])

    def wait(self) -> None:
        if self._gaps is None:
            self._consumer.wait_take()
            return
        poll = select.poll()
        for fd in (self._consumer.channel.ready.fds.read_now, self._gaps.fd):
            poll.register(fd, select.POLLIN)
        poll.poll()

    def done(self) -> None:
        assert self._in_hand is not None
        self._uncounted.append(self._in_hand)
        self._in_hand = None
        self._handled_to = self._order.at
        self._done += 1

    # What is switched with the counters.

    def keep_state(self, state: bytes) -> None:
        """From the next commit on, this is the state."""
        record = self._store.add([state], _STATE)
        self._states.append(record)
        self._state_at = record.offset

    def prepare(self) -> None:
        row = 1 - self._seat.row_number
        self._store.put_root(row, (self._done, self._state_at, *self._handled_to))

    def counted(self, settled: int) -> None:
        self._seat.put(counters.HOLDING, self._holding - settled)
        if settled:
            return
        for kept in self._uncounted:
            self._forget(kept)
        self._uncounted.clear()
        self._free_old_states()
        self._tell()

    def _free_old_states(self) -> None:
        """All but the one that the root in force names; a crash may leave one that none does."""
        for record in self._states:
            if record.offset != self._state_at:
                self._store.free(record)
        self._states = [record for record in self._states if record.offset == self._state_at]
