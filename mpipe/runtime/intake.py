"""Where a worker's frames come from, one at a time: straight from its channel, or from a backlog.

Most workers handle a frame where it lies and release it when it is counted. See `backlog` for those
that cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..transport import counters
from ..transport.consumer import Consumer
from ..transport.counters import SeatCounters
from ..transport.frame import Header
from ..transport.token import END


class Work(NamedTuple):
    """A frame to be handled; `id` names it to whoever counts it."""

    id: int
    header: Header
    load: Callable[[], Sequence[Any]]


class Intake(Protocol):
    """Gives frames one at a time; the one in hand must be done before the next is taken."""

    ended: bool
    """Whether there will be no more."""

    @property
    def has_uncounted(self) -> bool:
        """Whether something was taken, and handled or passed over, that is not counted yet."""

    @property
    def reached(self) -> int:
        """The frame up to which all is handled, as `Work.id` names it."""

    def take(self) -> Work | None:
        """The next frame, None if there is none now, or no more."""

    def wait(self) -> None:
        """Wait until `take` may find something."""

    def done(self) -> None:
        """The frame in hand was handled; it is kept until it is counted."""

    def prepare(self) -> None:
        """All that was handled is about to be counted."""

    def counted(self, settled: int) -> None:
        """It is counted now, if `settled` is 0; else so many items of the frame in hand are."""


class Direct:
    """Frames as they come from the channel; satisfies `Intake`."""

    has_uncounted = False

    def __init__(self, consumer: Consumer, seat: SeatCounters) -> None:
        self.ended = False
        self._consumer = consumer
        self._seat = seat

    @property
    def reached(self) -> int:
        return self._consumer.token

    def take(self) -> Work | None:
        consumer = self._consumer
        while consumer.token or consumer.take():
            if consumer.token == END:
                self.ended = True
                return None
            if header := consumer.claim():
                token = consumer.token
                if not self._seat.is_committed(token):
                    self._seat.put(counters.HOLDING, header.items)
                    return Work(token, header, consumer.load)
                consumer.release()
        return None

    def wait(self) -> None:
        self._consumer.wait_take()

    def done(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def counted(self, settled: int) -> None:
        if settled:
            self._seat.put(counters.HOLDING, self._consumer.header.items - settled)
        elif not self.ended:
            self._consumer.release()
            self._seat.put(counters.HOLDING, 0)
