"""The caller's end of the source stages: cuts pushed items into frames and sends them.

The caller is the only producer of these channels, so how many credits are free can only grow while
it looks: items that go to several stages are sent to all of them or, when one is full, to none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..plan import Plan
from ..policy.batching import pause_s
from ..runtime.emitter import Edge
from ..transport.channel import Channel
from ..transport.frame import Tag, encode, encode_all
from ..transport.producer import Producer

_UNKNOWN_S = 0.002
"""Rest of a source while the service time of busy consumers is unknown, in seconds."""


class Wait(NamedTuple):
    """Wait until one of the descriptors is readable, or so many seconds (None: as you like)."""

    fds: list[int]
    seconds: float | None


class Source:
    """Sends items to one or more of the stages without a predecessor."""

    def __init__(self, plan: Plan, channels: Sequence[Channel]) -> None:
        self._edges = {}
        for name in plan.graph.sources:
            stage = plan.index[name]
            producer = Producer(channels[stage], 0)
            self._edges[name] = Edge(producer, plan.graph.stages[stage].drop_on_full)
        self.pushed = 0
        """Items accepted so far: the number of the next source item."""

    def frame_items(self, targets: Sequence[str]) -> int:
        """How many items the next frame should have."""
        return max(self._edges[name].frame_items for name in targets)

    def is_idle(self, targets: Sequence[str]) -> bool:
        """Whether a target's queue is empty, so that a part-filled frame should go at once."""
        return any(not self._edges[name].producer.channel.ready.waiting() for name in targets)

    def send(
        self, items: Sequence[Any], targets: Sequence[str], max_item_bytes: int, patient: bool
    ) -> int | Wait:
        """Send a frame of the first items to all targets, as far as there is room in each.

        Returns how many items are settled, or what to wait for before the next try; when `patient`
        that may be more room than there is for a few. Raises `frame.Unsendable` before anything
        is sent.
        """
        edges = [self._edges[name] for name in targets]
        count = min(len(items), self.frame_items(targets))
        for edge in edges:
            if not edge.drop_on_full:
                got = edge.producer.acquire(count)
                if not got:
                    return Wait([edge.producer.channel.free.fds.read_now], None)
                if got < count and patient and edge.producer.consumers_are_busy():
                    return Wait([], edge.nap_s)
                count = got
        payload = encode_all(items[:count], max_item_bytes)[0]
        count = payload.items
        now = time.perf_counter_ns()
        tag = Tag(now, now, self.pushed, count, 1)
        for edge in edges:
            got = edge.producer.acquire(count)
            if got:
                part = payload if got == count else encode(items[:got], max_item_bytes)
                edge.producer.publish(part, tag._replace(span=got))
                edge.adapt(part)
            edge.producer.drop(count - got)
        self.pushed += count
        return count

    def pause_s(self, targets: Sequence[str]) -> float:
        """How long a source may rest, in seconds, because all targets have enough to do."""
        return min(_pause_s(self._edges[name].producer) for name in targets)

    def recover(self) -> None:
        """After an exception from outside (Ctrl-C) somewhere in `send`: finish what it began."""
        for edge in self._edges.values():
            edge.producer.recover()


def _pause_s(producer: Producer) -> float:
    channel, layout = producer.channel, producer.channel.layout
    service_ns = producer.consumer_service_ns()
    if not service_ns:  # more frames of one item each would only make it harder
        return _UNKNOWN_S if producer.consumers_are_busy() else 0.0
    queued = layout.buffer_items - channel.free.waiting() * layout.unit
    return pause_s(queued, layout.buffer_items, service_ns, layout.consumers)
