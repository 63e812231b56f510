"""How a process keeps source order on one connection: it numbers what it sends, and marks ends."""

from __future__ import annotations

from collections.abc import Sequence

from ..policy.reorder import Place
from ..transport.frame import Tag
from ..transport.gaps import GapPipe


class EdgeOrder:
    """One connection, on a way to somebody who sees things in source order.

    The routes into its source are numbered on from `first_route` at its target. `marks` are the
    pipes of all who see order and are reached by it, each with what a route's number grows by from
    this connection's target to there.
    """

    def __init__(self, first_route: int, marks: Sequence[tuple[GapPipe, int]]) -> None:
        self._first_route = first_route
        self._marks = marks

    def tag(self, tag: Tag, offset: int, items: int, last: bool) -> Tag:
        """The tag of a frame of so many items, the first of which is output number `offset`."""
        route, path = tag.route + self._first_route, (*tag.path, offset, items, int(last))
        return tag._replace(route=route, path=path)

    @property
    def can_mark(self) -> bool:
        """Whether `mark` would not have to wait."""
        return all(pipe.has_room for pipe, _ in self._marks)

    def mark(self, place: Place) -> None:
        """Say that nothing comes at `place`, past all stages on the way."""
        for pipe, more in self._marks:
            pipe.put(place._replace(route=place.route + more))
