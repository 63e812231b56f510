"""A worker's outlet: cuts outputs into frames and publishes them on every edge of its stage.

After a crash the frame in hand is computed again. What of it is out already is known from the
ledger - items published and dropped on an edge, less those emitted by counted frames - and skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ItemError
from ..policy.batching import FRAME_BYTES, FRAME_NS, fair_share, frame_items
from ..transport import counters
from ..transport.counters import Row, SeatCounters
from ..transport.frame import Payload, Tag, encode, encode_frames
from ..transport.producer import Producer
from .ordering import EdgeOrder

if TYPE_CHECKING:
    from ..stats import DeadLetter

_NO_EDGE_FLUSH = 256
"""Outputs that are kept, at most, where they go nowhere."""

_REFRESH_FRAMES = 16

_MOST_TEXT = 20_000
_LETTER_BYTES = 1 << 18
"""Characters of each text of a dead letter that is too large, and bytes it may take then."""

_NAP_S = 0.0005
"""Time to wait for credits while the consumers' service time is unknown, in seconds."""


class Edge:
    """One connection out of a process; `order` says how it keeps source order, if it must.

    No frame has more than `most_items`, if that is given.
    """

    def __init__(
        self,
        producer: Producer,
        drop_on_full: bool,
        order: EdgeOrder | None = None,
        most_items: int | None = None,
    ) -> None:
        layout = producer.channel.layout
        self.producer = producer
        self.drop_on_full = drop_on_full
        self.order = order
        most = min(layout.hand_words * layout.unit, most_items or layout.buffer_items)
        self._share = min(most, fair_share(layout.buffer_items, layout.consumers))
        self._half = min(most, fair_share(layout.buffer_items, 1))
        self.frame_bytes = min(FRAME_BYTES, fair_share(layout.buffer_bytes, layout.consumers))
        self.frame_items = 1
        self.nap_s = _NAP_S
        self.skip = 0
        self._sent = 0
        self._item_bytes = 0.0

    def adapt(self, payload: Payload) -> bool:
        """Learn from a frame that was sent how large the next ones should be.

        Returns whether it has looked.
        """
        heavy = payload.size > 2 * payload.items * self._item_bytes
        look = self._sent % _REFRESH_FRAMES == 0 or self.frame_items == 1 or heavy
        if look:
            self._item_bytes = payload.size / max(1, payload.items)
            service = self.producer.consumer_service_ns()
            self.frame_items = frame_items(
                service, self._share, self._half, self._item_bytes, self.frame_bytes
            )
            if service:
                self.nap_s = min(FRAME_NS, self.frame_items * service) * 0.5e-9
        self._sent += 1
        return look


class Emitter:
    """Satisfies `Outlet` and `Rejects` for the worker whose counters are `seat`."""

    def __init__(
        self,
        seat: SeatCounters,
        edges: list[Edge],
        dead_letters: Edge | None,
        max_item_bytes: int,
        log: Callable[[str], None],
        is_map: bool,
    ) -> None:
        self.waited_ns = 0
        self.flush_items = 1 if edges else _NO_EDGE_FLUSH
        self.log = log
        self._seat = seat
        self._edges = edges
        self._dead_letters = dead_letters
        self._letters_to_skip = 0
        self._max_item_bytes = max_item_bytes
        self._is_map = is_map
        self._frame_bytes = min((edge.frame_bytes for edge in edges), default=FRAME_BYTES)
        self._is_tracked = any(edge.order for edge in edges)
        self._source = Tag(0, 0, 0, 0, 0)
        self._work = self._first = self._upto = 0
        self._is_replay = False

    def begin(self, source: Tag, work: int, first: int = 0) -> None:
        """The outputs to come derive from the frame `work`, tagged `source`.

        The first of the items that are handled next is number `first` in the frame.
        """
        self._source, self._work, self._first = source, work, first
        if self._is_tracked:
            for edge in self._edges:
                edge.producer.begin(work)

    def resume(self, row: Row) -> None:
        """Skip what a dead worker published of frames that are not counted in `row` yet."""
        for edge in self._edges:
            edge.skip = edge.producer.published + edge.producer.dropped - row.emitted
        if self._dead_letters is not None:
            letters = self._dead_letters.producer.published
            self._letters_to_skip = letters - row.dead_lettered
        self._is_replay = True

    @property
    def is_replay(self) -> bool:
        """Whether something is out already of what is yet to be handled."""
        if self._is_replay:
            letters = self._letters_to_skip > 0
            self._is_replay = letters or any(edge.skip for edge in self._edges)
        return self._is_replay

    def emit(self, outputs: list[Any], items: range, last: bool) -> None:
        if not (outputs or (last and self._is_tracked)):
            return
        self._upto = self._first + items.stop
        frames: dict[int, list[Payload]] = {}
        for edge in self._edges:  # everything is encoded before anything is sent
            if edge.frame_items not in frames:
                frames[edge.frame_items] = self._encode(outputs, edge.frame_items)
        tag = self._tag(items, self._is_map and len(outputs) == len(items))
        for edge in self._edges:
            start = 0
            for payload in frames[edge.frame_items]:
                end = start + payload.items
                ends = last and end == len(outputs)
                if payload.items == len(outputs):
                    self._send(edge, outputs, payload, tag, ends)
                else:
                    part = part_of(tag, start, payload.items)
                    self._send(edge, outputs[start:end], payload, part, ends)
                start = end
            if last and not outputs and edge.order is not None:
                self._mark_end(edge, tag)

    def _tag(self, items: range, exact: bool) -> Tag:
        """The tag of what derives from some items of the frame in hand."""
        source, now = self._source, time.perf_counter_ns()
        if source.exact and not self._is_tracked:
            return Tag(now, source.born_ns, source.origin + items.start, len(items), exact)
        return source._replace(put_ns=now, exact=0)

    def _encode(self, outputs: list[Any], size: int) -> list[Payload]:
        limits = self._max_item_bytes, self._frame_bytes
        if 0 < len(outputs) <= size:
            return encode_frames(outputs, *limits)
        payloads: list[Payload] = []
        for start in range(0, len(outputs), size):
            payloads += encode_frames(outputs[start : start + size], *limits, start)
        return payloads

    def _send(self, edge: Edge, items: list[Any], payload: Payload, tag: Tag, last: bool) -> None:
        """Publish what of `items` is not out yet, in as many frames as the credits dictate."""
        start = min(edge.skip, len(items))
        edge.skip -= start
        if start < len(items):
            self._seat.reach(self._work, self._upto, self.is_replay)
        producer, order, item_bytes = edge.producer, edge.order, payload.size / len(items)
        while start < len(items):
            want = len(items) - start
            got = self._acquire(edge, want, int(want * item_bytes))
            if not got:
                producer.drop(want)
                break
            if got < len(items):
                payload = encode(items[start : start + got], self._max_item_bytes)
            part = part_of(tag, start, got)
            start += got
            if order is not None:
                ends = last and start == len(items)
                part = order.tag(part, producer.offset, got, ends)
                last = last and not ends
            producer.publish(payload, part)
            if edge.adapt(payload):
                self.flush_items = max(edge.frame_items for edge in self._edges)
        if last and order is not None:
            self._mark_end(edge, tag)

    def _mark_end(self, edge: Edge, tag: Tag) -> None:
        """Say that nothing more comes of the frame in hand; doing so twice does no harm."""
        producer, order = edge.producer, edge.order
        assert order is not None
        end = order.tag(tag, producer.offset, 0, last=True)
        if self._acquire(edge, 1, 0):
            producer.publish(encode([], self._max_item_bytes), end)
        else:
            order.mark(end.place)

    def abandon(self) -> int:
        """The item to come gives nothing more; what of it is out on some edge counts as emitted.

        What another edge has not had of that is dropped there. So the ledger is whole again, also
        if this process dies in here.
        """
        out = max((edge.skip for edge in self._edges), default=0)
        for edge in self._edges:
            edge.producer.drop(out - edge.skip)
            edge.skip = 0
        return out

    def _acquire(self, edge: Edge, items: int, size: int) -> int:
        """Credits for a good part of the items, `size` bytes in all; for at least one, or drop."""
        producer = edge.producer
        got = producer.acquire(items, size)
        if edge.drop_on_full and not got:
            producer.give_back()  # too few for an item, but others may need them
        if edge.drop_on_full or got == items:
            return got
        began = time.perf_counter_ns()
        self._seat.enter(counters.BLOCKED)
        got = producer.gather(items, size, edge.nap_s)
        self._seat.enter(counters.BUSY)
        self.waited_ns += time.perf_counter_ns() - began
        return got

    def dead_letter(self, letter: DeadLetter, index: int) -> None:
        edge = self._dead_letters
        assert edge is not None
        if self._letters_to_skip > 0:
            self._letters_to_skip -= 1
            return
        self._seat.reach(self._work, self._first + index + 1, self.is_replay)
        payload = encode_letter(letter, self._max_item_bytes)
        if self._acquire(edge, 1, payload.size):
            edge.producer.publish(payload, self._source)


def encode_letter(letter: DeadLetter, max_item_bytes: int) -> Payload:
    """A dead letter as a frame, without its item where that cannot travel, its texts cut then."""
    try:
        return encode([letter], max_item_bytes)
    except ItemError as error:
        from dataclasses import replace  # see `preload`

        note = f"{letter.error[:_MOST_TEXT]} (the item is lost: {str(error)[:_MOST_TEXT]})"
        trace = letter.traceback[-_MOST_TEXT:]
        cut = replace(letter, item=None, error=note, traceback=trace)
        return encode([cut], max(max_item_bytes, _LETTER_BYTES))


def part_of(tag: Tag, start: int, items: int) -> Tag:
    """The tag of a part of a frame."""
    if not tag.exact or items == tag.span:
        return tag
    return tag._replace(origin=tag.origin + start, span=items)
