"""The caller's end of a channel that it reads: results, or dead letters."""

from __future__ import annotations

from typing import Any

from ..transport.channel import Channel, ChannelFds
from ..transport.consumer import Consumer
from ..transport.frame import Header
from ..transport.token import END


class Inbox:
    """Reads frames. Items own their memory: the slot is free before they are handed out."""

    def __init__(self, fds: ChannelFds) -> None:
        self.fd = fds.ready.read_now
        self.ended = False
        self.was_full = False
        """Whether somebody had to wait for room in here, as far as was seen."""
        self._channel = Channel(fds)
        self._consumer = Consumer(self._channel, 0, copy=True)
        self._consumer.report_service(1)  # one reader: frames as large as they come

    def take(self) -> tuple[Header, list[Any]] | None:
        """The next frame, if there is one; sets `ended` when there will be no more."""
        consumer = self._consumer
        self.was_full = self.was_full or self.full
        try:
            while not self.ended and (consumer.token or consumer.take()):
                if consumer.token == END:
                    self.ended = True
                elif header := consumer.claim():
                    items = consumer.load()
                    consumer.release()
                    return header, items
        except BaseException:  # Ctrl-C anywhere in here: the next call carries on
            consumer.recover()
            raise
        return None

    @property
    def full(self) -> bool:
        """Whether who sends to the caller has to wait for it."""
        return not self._channel.free.waiting()

    def close(self) -> None:
        """Unmap."""
        self._channel.close()
