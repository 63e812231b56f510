"""The caller's end of a channel that it reads: results, or dead letters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from traceback import clear_frames
from typing import Any, NamedTuple

from ..errors import MPipeError
from ..runtime.wording import describe_frame, one_line
from ..transport.channel import Channel, ChannelFds
from ..transport.consumer import Consumer
from ..transport.frame import Header
from ..transport.token import END


class Unreadable(MPipeError):
    """A frame is corrupted, or cannot be unpickled."""


class Frame(NamedTuple):
    """One that was read; `items` gives each item once, also to who reads on after an exception."""

    token: int
    header: Header
    items: Iterator[Any]


class Inbox:
    """Reads frames of what the stages `names` send; `what` that is, for errors.

    Items own their memory: the slot is free before they are handed out.

    An exception from outside (Ctrl-C) may come at any step: the next call carries on.
    """

    def __init__(self, fds: ChannelFds, what: str, names: Sequence[str]) -> None:
        self._what = f"{what} of stage {' or '.join(map(repr, names))}"
        self.fd = fds.ready.read_now
        self.frames: deque[Frame] = deque()
        """Those that were read; who has taken all items of one removes it."""
        self.ended = False
        self.was_full = False
        """Whether somebody had to wait for room in here, as far as was seen."""
        self._channel = Channel(fds)
        self._consumer = Consumer(self._channel, 0, copy=True)
        self._consumer.report_service(1)  # one reader: frames as large as they come

    def load(self, more: bool = False) -> bool:
        """Read a frame unless there is one, or `more` are wanted; sets `ended` at the last.

        Returns whether that has changed anything. Raises `Unreadable`, however often it is tried.
        """
        consumer, frames = self._consumer, self.frames
        self.was_full = self.was_full or self.full
        try:
            if frames and consumer.token == frames[-1].token:  # an exception came in between
                consumer.release()
            while (more or not frames) and not self.ended and (consumer.token or consumer.take()):
                if consumer.token == END:
                    self.ended = True
                elif read := self._read():
                    header, items = read
                    frames.append(Frame(consumer.token, header, iter(items)))
                    consumer.release()
                    return True
        except BaseException:
            consumer.recover()
            raise
        return False

    def _read(self) -> tuple[Header, Sequence[Any]] | None:
        """The frame in hand; None if its token was a double.

        It is tried twice, for what a signal handler raises in the middle of this is not its fault.
        """
        consumer = self._consumer
        try:
            header = consumer.claim()
            return (header, consumer.load()) if header else None
        except Exception as error:
            clear_frames(error.__traceback__)  # which hold the payload's memory
            consumer.recover()
            self._check_readable()
            raise

    def _check_readable(self) -> None:
        header, consumer = None, self._consumer
        try:
            header = consumer.claim()
            if header is not None:
                consumer.load()
        except Exception as error:
            clear_frames(error.__traceback__)
            what = str(error)
            if header is not None:
                what = f"could not unpickle {describe_frame(header.tag)}: {one_line(error)}"
            raise Unreadable(f"{self._what}: {what}") from error

    @property
    def full(self) -> bool:
        """Whether who sends to the caller has to wait for it."""
        return not self._channel.free.waiting()

    def close(self) -> None:
        """Unmap."""
        self._channel.close()
