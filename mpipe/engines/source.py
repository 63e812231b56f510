"""The caller's end of the source stages: cuts pushed items into frames and sends them.

The caller is the only producer of these channels, so how many credits are free can only grow while
it looks: items that go to several stages are sent to all of them or, when one is full, to none.

Who sees source order must not fall too far behind, for what comes early waits there: the source
stops when it does. Items that one of several stages does not get are marked as missing on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..policy.batching import pause_s
from ..policy.reorder import Place
from ..routes import CALLER
from ..runtime.emitter import Edge
from ..runtime.spec import RunSpec
from ..transport.channel import Channel
from ..transport.frame import Payload, Tag, Unsendable, encode, encode_all, is_heavy
from ..transport.producer import ROOM_S, Producer

_UNKNOWN_S = 0.002
"""Rest of a source while the service time of busy consumers is unknown, in seconds."""


class Wait(NamedTuple):
    """Wait until one of the descriptors is readable, or so many seconds (None: as you like)."""

    fds: list[int]
    seconds: float | None


BEHIND_S = 0.002
"""Rest of a source while somebody who sees source order is too far behind, in seconds."""

WINDOW = 4096
"""Source items by which the source may be ahead of source order, beside twice all buffers."""

HELD_BYTES = 1 << 26
"""What may be held there, waiting for earlier items, before the source stops; in bytes."""

Progress = Callable[[], tuple[int, int]]
"""Of somebody who sees source order: which source item comes next, and how many bytes wait."""


class _Batch(NamedTuple):
    """Items that are sent together: what is noted before, so that it can be taken up again.

    `before` has what was published and dropped at each target, `number` is the first item's, and
    `skipped` says how many are numbered though no stage gets them.
    """

    items: Sequence[Any]
    payload: Payload | None
    max_item_bytes: int
    before: dict[str, tuple[int, int]]
    number: int
    skipped: int
    ahead: bool


class Source:
    """Sends items to one or more of the stages without a predecessor.

    `orders` tell how far those are who see source order.
    """

    def __init__(
        self, spec: RunSpec, channels: Mapping[int, Channel], orders: Sequence[Progress]
    ) -> None:
        plan = spec.plan
        self._edges, self._caps = {}, {}
        for name in plan.graph.sources:
            stage = plan.place[name]
            producer = Producer(channels[stage], 0)
            to, order = plan.graph.stages[stage], spec.order_of(CALLER, name)
            self._edges[name] = Edge(producer, to.drop_on_full, order, to.max_items)
            if to.max_items is not None:
                self._caps[name] = to.max_items
        self._orders = orders
        self._window = WINDOW + 2 * sum(stage.buffer_size for stage in plan.graph.stages)
        self._one_by_one = spec.routes.one_by_one
        self.pushed = 0
        """Items accepted so far: the number of the next source item."""
        self._encoded: tuple[Sequence[Any], Payload] | None = None
        self._under_way: _Batch | None = None
        self.is_whole = True
        """Whether no exception from outside has left anything undone; else call `mend`."""

    def frame_items(self, targets: Sequence[str]) -> int:
        """How many items the next frame should have."""
        if self._one_by_one:
            return 1
        if len(targets) == 1:
            return self._edges[targets[0]].frame_items
        edges = [self._edges[name] for name in targets]
        waited_for = [edge.frame_items for edge in edges if not edge.drop_on_full]
        most = min(waited_for) if waited_for else max(edge.frame_items for edge in edges)
        return min([most, *(self._caps[name] for name in targets if name in self._caps)])

    def is_idle(self, targets: Sequence[str]) -> bool:
        """Whether a target's queue is empty, so that a part-filled frame should go at once."""
        return any(not self._edges[name].producer.channel.ready.waiting() for name in targets)

    def send(
        self, items: Sequence[Any], targets: Sequence[str], max_item_bytes: int, all_at_once: bool
    ) -> int | Wait:
        """Send a frame's worth of items to all targets, as far as there is room in each.

        Returns how many items are settled, or what to wait for before the next try; with
        `all_at_once` that may be room for all of them. Raises `frame.Unsendable` before anything is
        sent.
        """
        if not self.is_whole:
            self.mend()
        self.is_whole = False
        try:
            settled = self._send(items, targets, max_item_bytes, all_at_once)
        except Unsendable:
            self.is_whole = True
            raise
        self.is_whole = True
        return settled

    def _send(
        self, items: Sequence[Any], targets: Sequence[str], max_item_bytes: int, all_at_once: bool
    ) -> int | Wait:
        edges = [self._edges[name] for name in targets if not self._edges[name].drop_on_full]
        ahead = self.is_ahead
        if not self.can_mark or (edges and ahead):
            return Wait([], BEHIND_S)
        payload = self._encode(items, targets, max_item_bytes)
        while (room := _room(edges, payload.items, payload.size, all_at_once)) != payload.items:
            if isinstance(room, Wait):
                return room
            payload = encode(items[:room], max_item_bytes)  # perhaps the larger ones: look again
        self._encoded = None
        items, before = items[: payload.items], {}
        for name in targets:
            producer = self._edges[name].producer
            before[name] = producer.published, producer.dropped
        self._under_way = _Batch(items, payload, max_item_bytes, before, self.pushed, 0, ahead)
        self._carry_out(self._under_way, self._offer)
        return payload.items

    def _encode(self, items: Sequence[Any], targets: Sequence[str], max_item_bytes: int) -> Payload:
        """As many of the first items as one frame may hold; pickled once for all looks for room."""
        if self._encoded is not None and self._encoded[0] is items:
            return self._encoded[1]
        payload = encode_all(items, max_item_bytes)[0]
        if payload.items > 1:
            frame_bytes = min(self._edges[name].frame_bytes for name in targets)
            while is_heavy(payload, frame_bytes):
                payload = encode(items[: payload.items // 2], max_item_bytes)
        self._encoded = items, payload
        return payload

    def skip(self) -> None:
        """Count an item that cannot be sent to any stage; `can_mark` must be true."""
        self.is_whole = False
        self._under_way = _Batch([], None, 0, {}, self.pushed, 1, False)
        self._carry_out(self._under_way, self._offer)
        self.is_whole = True

    def _carry_out(self, batch: _Batch, offer: Callable[[str, _Batch], int]) -> None:
        """`offer` a batch to its targets and number its items.

        Marks what any stage has got and another one has not as missing on its way.
        """
        accepted = dict.fromkeys(self._edges, 0)
        for name in batch.before:
            accepted[name] = offer(name, batch)
        count = max(batch.skipped, *accepted.values())
        for name, got in accepted.items():
            order = self._edges[name].order
            if order is not None and got < count:
                order.mark(Place(batch.number + got, count - got, 0, (0, 0, 1)))
        self.pushed = batch.number + count
        self._under_way = None

    def _offer(self, name: str, batch: _Batch) -> int:
        """Publish a batch to one stage; returns what is in.

        What there is no room for is dropped, if the stage says so; else `_room` has seen to it.
        """
        edge, items, payload = self._edges[name], batch.items, batch.payload
        assert payload is not None
        got = 0 if batch.ahead else edge.producer.acquire(len(items), payload.size)
        if not edge.drop_on_full:
            got = len(items)
        if got:
            part = payload if got == len(items) else encode(items[:got], batch.max_item_bytes)
            edge.producer.trim(got, part.size)  # what a larger frame was waiting with
            now = time.perf_counter_ns()
            edge.producer.publish(part, Tag(now, now, batch.number, got, 1))
            edge.adapt(part)
        edge.producer.drop(len(items) - got)
        return got

    def _finish(self, name: str, batch: _Batch) -> int:
        """As `_offer`, when that may have been interrupted anywhere, or not have begun."""
        producer, (published, dropped) = self._edges[name].producer, batch.before[name]
        if (producer.published, producer.dropped) == (published, dropped):
            return self._offer(name, batch)
        got = producer.published - published
        producer.drop(len(batch.items) - got - (producer.dropped - dropped))
        return got

    @property
    def can_mark(self) -> bool:
        """Whether marks can be sent without waiting."""
        return all(edge.order is None or edge.order.can_mark for edge in self._edges.values())

    @property
    def is_ahead(self) -> bool:
        """Whether somebody who sees source order is too far behind for more input."""
        for progress in self._orders:
            following, held = progress()
            if self.pushed - following >= self._window or held >= HELD_BYTES:
                return True
        return False

    def pause_s(self, targets: Sequence[str]) -> float:
        """How long a source may rest, in seconds, because all targets have enough to do."""
        return min(_pause_s(self._edges[name]) for name in targets)

    def mend(self) -> None:
        """Finish what an exception from outside (Ctrl-C) interrupted: a batch is sent or not."""
        if self.is_whole:
            return
        for edge in self._edges.values():
            edge.producer.recover()
        self._encoded = None
        batch = self._under_way
        if batch is not None and (batch.skipped or self._has_begun(batch)):
            self._carry_out(batch, self._finish)
        self._under_way = None
        self.is_whole = True

    def _has_begun(self, batch: _Batch) -> bool:
        sent = ((self._edges[name].producer, before) for name, before in batch.before.items())
        return any((end.published, end.dropped) != before for end, before in sent)


def _room(edges: Sequence[Edge], items: int, size: int, all_at_once: bool) -> int | Wait:
    """For how many of the items, `size` bytes in all, there is room in front of all `edges`.

    `all_at_once` waits for more while the consumers have enough to do.
    """
    for edge in edges:
        producer = edge.producer
        got = producer.acquire(items, size)
        if not got:
            fds = [producer.channel.free.fds.read_now] if producer.can_take_more else []
            return Wait(fds, ROOM_S if producer.holds_credits else None)
        if got < items and all_at_once and producer.consumers_are_busy():
            return Wait([], edge.nap_s)
        items, size = got, size * got // items
    return items


def _pause_s(edge: Edge) -> float:
    producer = edge.producer
    channel, layout = producer.channel, producer.channel.layout
    service_ns = producer.consumer_service_ns()
    if not service_ns:  # more frames of one item each would only make it harder
        return _UNKNOWN_S if producer.consumers_are_busy() else 0.0
    taken = layout.credits - channel.free.waiting()
    queued = min(taken * layout.unit, channel.ready.waiting() * edge.frame_items)
    return pause_s(taken / layout.credits, queued, service_ns, layout.consumers)
