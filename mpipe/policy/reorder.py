"""Putting frames back into source order; pure logic over the places that their tags name.

A place is a list of ranges: the source items that a frame derives from, then, for each stage on its
way, the range that it is among all outputs of the frame before, and whether that range is the last.
Ranges at each level are dense, so what comes next is always known, whatever was lost on the way:
items that a stage drops are not numbered, and the end of the outputs is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Generic, NamedTuple, TypeVar

Held = TypeVar("Held")
Key = tuple[int, ...]

FINAL = 1 << 62
"""From here on, origins stand for what seats emit in `finish()`: after all that has a source."""


class Place(NamedTuple):
    """Where a frame stands in source order.

    `origin` and `span` are the range of source items, `route` the number of the way it came;
    `path` holds three numbers for each stage it has passed: offset, span, and 1 if it is the last.
    """

    origin: int
    span: int
    route: int
    path: tuple[int, ...]

    @property
    def key(self) -> Key:
        """Sorts places in source order."""
        return _trimmed((self.origin, self.route, *self.path[::3]))


class Reorder(Generic[Held]):
    """Holds what came early until everything before it is there.

    `at` is the place that comes next, as a key; `routes` how many ways lead here. `passed(held)` is
    told of what comes a second time and is to be thrown away.
    """

    def __init__(
        self, routes: int, passed: Callable[[Held], object], at: Sequence[int] = (0,)
    ) -> None:
        self.at: list[int] = list(at)
        self._routes = routes
        self._passed = passed
        self._heap: list[tuple[Key, int, Place, Held]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, place: Place, held: Held) -> None:
        """Take what stands at `place`."""
        self._added += 1  # orders equal keys, so that places and values are never compared
        heappush(self._heap, (place.key, self._added, place, held))

    def pop(self, at_end: bool = False) -> Held | None:
        """What comes next, if it is there; `at_end`: nothing more comes, so whatever is first."""
        at = _trimmed(tuple(self.at))
        while self._heap:
            key, _, place, held = self._heap[0]
            if key > at and not at_end:
                return None
            heappop(self._heap)
            if key >= at:
                self._advance(place)
                return held
            self._passed(held)
        return None

    def _advance(self, place: Place) -> None:
        """The place after this one: up one level for each range that is the last of its level."""
        offsets, path = list(place.path[::3]), list(place.path)
        while path:
            offset, span, last = path[-3:]
            offsets[-1] = offset + span
            if not last:
                self.at = [place.origin, place.route, *offsets]
                return
            del path[-3:], offsets[-1]
        if place.route + 1 < self._routes and place.origin < FINAL:
            self.at = [place.origin, place.route + 1]
        else:
            self.at = [place.origin + max(1, place.span)]


def _trimmed(key: Key) -> Key:
    """Without zeros at the end: what is not said of a place is 0."""
    end = len(key)
    while end and not key[end - 1]:
        end -= 1
    return key[:end]
