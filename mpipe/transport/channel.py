"""A channel: a bounded queue of items in front of one pool of workers.

        producers                                    consumers
      take credits  <------- free pipe <--------  return credits
      fill the slot                               (one spare + the riders)
      put the token  ------> ready pipe ------->  take the frame

A token in the free pipe is a credit for `unit` items and `credit_bytes` bytes; the queue can never
hold more than there are credits for, except one frame. A frame takes the credits for its items, or
those for its bytes if they are more: its first token says in which slot it lies, the others ride
along in its header. A consumer gives as many credits back the moment it
takes the frame, with its spare slot in place of the one it now holds; when it is done, that slot
becomes its spare. The protocol in full, with its recovery, is docs/protocol.md.
"""

from __future__ import annotations

import os
from array import array
from typing import NamedTuple

from . import memory
from .layout import SLOT_BYTES, SPARE, ChannelLayout
from .memory import Area
from .pipe import PipeFds, TokenPipe, create_pipe, room_for
from .token import END, first_token


class ChannelFds(NamedTuple):
    """What a process needs to open a channel: sizes and inherited descriptors."""

    layout: ChannelLayout
    file: int
    free: PipeFds
    ready: PipeFds

    def all(self) -> tuple[int, ...]:
        return (self.file, *self.free.all(), *self.ready.all())


def create_channel(layout: ChannelLayout) -> ChannelFds:
    """Make a channel whose every credit is free; the caller closes the descriptors."""
    opened: list[int] = []
    try:
        file = memory.create_file(layout.file_bytes)
        opened.append(file)
        free = create_pipe(room_for(layout.slots))
        opened.extend(free.all())
        ready = create_pipe(room_for(layout.slots))
        opened.extend(ready.all())
        fds = ChannelFds(layout, file, free, ready)
        _fill(fds)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return fds


def _fill(fds: ChannelFds) -> None:
    layout = fds.layout
    tokens = [first_token(slot) for slot in range(layout.slots)]
    with Channel(fds) as channel:
        for slot, token in enumerate(tokens):
            channel.words[slot] = token
        for seat in range(layout.consumers):
            channel.words[layout.consumer(seat) + SPARE] = tokens[layout.credits + seat]
        os.write(fds.free.write, array("Q", tokens[: layout.credits]))


class Channel:
    """One process's mapping of a channel. Payload memory is mapped only when it is used."""

    def __init__(self, fds: ChannelFds) -> None:
        self.fds = fds
        self.layout = fds.layout
        self._words = memory.map_shared(fds.file, fds.layout.words_bytes)
        self.words = memory.words(self._words)
        self._raw = memoryview(self._words)
        self.free = TokenPipe(fds.free, self._raw)
        self.ready = TokenPipe(fds.ready, self._raw)
        layout, file = fds.layout, fds.file
        self._slots = Area(file, layout.words_bytes, SLOT_BYTES, layout.slots)
        self.spills = Area(file, layout.spill(0), layout.spill_bytes, layout.slots)
        """Each slot's memory for a large payload."""

    def slot(self, slot: int) -> memoryview:
        """The slot's memory: header, riders, small payload."""
        return self._slots.part(slot, SLOT_BYTES)

    def put_ends(self) -> None:
        """Tell every consumer that there is no more input. Once, when all producers are done."""
        self.ready.put(array("Q", [END] * self.layout.consumers).tobytes())

    def close(self) -> None:
        """Unmap; must not be used while frames of this process are in hand."""
        memory.unmap(self._words, self.words, self._raw)
        self._slots.close()
        self.spills.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
