"""The consuming end of a channel: takes frames, returns credits, recovers what a crash left.

For each frame, in order:

    1. take: the kernel moves the token into the word "in hand"
    2. verify it if its attempt is above 0; a double is thrown away
    3. give the spare slot and the riders their next serial, and put them to the free pipe
    4. credited = token
    5. load the items; the worker handles them and commits its counters
    6. spare = token: the slot of the frame that is done is the new spare
    7. in hand = 0

Invariant: as for the producer; and the seat owns one slot beside the frame in hand, its spare,
except between 3 and 6. So the queue's credits are whole again the moment a frame leaves it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

from . import frame
from .channel import Channel
from .layout import CREDITED, IN_HAND, PAGE, RETURN_ATTEMPT, RETURNED, SERVICE_NS, SPARE
from .token import (
    ATTEMPT_MASK,
    ATTEMPT_ONE,
    END,
    SERIAL_ONE,
    SLOT_MASK,
    attempt,
    commit,
    from_bytes,
    plain,
    successors,
    to_bytes,
)

RETAINED_BYTES = 1 << 26
"""Memory that a channel's spills may keep beside what its buffer may hold, in bytes."""

ZERO_COPY_BYTES = 1 << 16
"""Payloads from this size on are mapped rather than copied when they hold arrays."""


class Consumer:
    """Seat number `seat` of those that consume from `channel`.

    With `copy` the items own their memory; else their arrays are views that end with `release`.
    """

    def __init__(self, channel: Channel, seat: int, copy: bool = False) -> None:
        self.channel = channel
        self._words = channel.words
        self._block = channel.layout.consumer(seat)
        self._copy = copy
        self._recovering = False
        self._header: frame.Header | None = None
        self._payload_start = 0
        self._mapping: mmap.mmap | None = None
        self._most_touched = channel.layout.buffer_bytes + RETAINED_BYTES

    @property
    def token(self) -> int:
        """The token in hand, 0 for none, `END` at the end of input."""
        return self._words[self._block + IN_HAND]

    def take(self) -> bool:
        """Take a frame's token into the empty hand, if there is one."""
        return self.channel.ready.take(self._block + IN_HAND) > 0

    def wait_take(self) -> None:
        """Take a frame's token into the empty hand; blocks until there is one."""
        self.channel.ready.wait_take(self._block + IN_HAND)

    def claim(self) -> frame.Header | None:
        """Make the frame in hand ours and return its credits; None if its token was a double."""
        words, block = self._words, self._block
        token = words[block + IN_HAND]
        if token & ATTEMPT_MASK:
            genuine = self._is_genuine(token)
            token = plain(token) if genuine else 0
            words[block + IN_HAND] = token
            if not genuine:
                return None
        slot = self.channel.slot(token & SLOT_MASK)
        header, riders, self._payload_start = frame.read_header(slot, token)
        if words[block + CREDITED] != token:
            self._return_credits(words[block + SPARE], riders)
            words[block + CREDITED] = token
        if words[block + RETURN_ATTEMPT]:
            words[block + RETURNED] = 0
            words[block + RETURN_ATTEMPT] = 0
        self._recovering = False
        self._header = header
        return header

    def _return_credits(self, spare: int, riders: bytes) -> None:
        if self._recovering:
            self._return_doubtful([spare, *from_bytes(riders)])
            return
        following = spare + SERIAL_ONE
        credits = following.to_bytes(8, "little")
        if riders:
            credits += successors(riders)
            commit(self._words, credits)
        else:
            self._words[following & SLOT_MASK] = following
        self.channel.free.put(credits)

    @property
    def header(self) -> frame.Header:
        """That of the claimed frame."""
        assert self._header is not None
        return self._header

    def load(self) -> Sequence[Any]:
        """The items of the claimed frame."""
        header = self.header
        size = header.payload_bytes
        if header.spilled and header.buffers and size >= ZERO_COPY_BYTES and not self._copy:
            self._mapping = self.channel.spills.private(self.token & SLOT_MASK, size)
            return frame.read_items(header, memoryview(self._mapping))
        return frame.read_items(header, frame.owned(header, self.payload()))

    def payload(self) -> memoryview:
        """The claimed frame's payload where it lies."""
        header, start = self.header, self._payload_start
        slot = self._words[self._block + IN_HAND] & SLOT_MASK
        if header.spilled:
            return self.channel.spills.part(slot, header.payload_bytes)
        return self.channel.slot(slot)[start : start + header.payload_bytes]

    def release(self) -> None:
        """The frame in hand is done; its slot becomes the spare."""
        words, block, header = self._words, self._block, self._header
        token = words[block + IN_HAND]
        if self._mapping is not None:
            _let_go(self._mapping)
            self._mapping = None
        if header is not None and header.spilled:
            self._limit_spills(token & SLOT_MASK)
        self._header, self._payload_start = None, 0
        words[block + SPARE] = token
        words[block + IN_HAND] = 0

    def _limit_spills(self, slot: int) -> None:
        """Give the memory of the slot's spill back, if all that spills keep is too much."""
        layout, words = self.channel.layout, self._words
        touched = layout.touched(0)
        if sum(words[touched : touched + layout.slots].tolist()) > self._most_touched:
            self.channel.spills.discard(slot, words[touched + slot])
            words[touched + slot] = 0

    def report_service(self, mean_ns: int) -> None:
        """Tell the producers the mean service time of an item, in nanoseconds."""
        self._words[self._block + SERVICE_NS] = max(1, mean_ns)

    # Recovery, by the process that takes the seat over.

    def recover(self) -> int:
        """Look at what is in hand: returns its token, 0 for nothing, `END`. Then `claim` it."""
        words, block = self._words, self._block
        if words[block + SPARE] == words[block + IN_HAND]:  # died between steps 6 and 7
            words[block + IN_HAND] = 0
        self._recovering = words[block + IN_HAND] not in (0, END)
        return words[block + IN_HAND]

    def _return_doubtful(self, tokens: list[int]) -> None:
        """As `_return_credits`, when some of them may have been returned by a dead process.

        One by one, and those that are out for sure are noted: however often we die in here, there
        is at most one more double in the pipe for each death. Else they could fill it.
        """
        words, block = self._words, self._block
        words[block + RETURN_ATTEMPT] += ATTEMPT_ONE
        for index in range(words[block + RETURNED], len(tokens)):
            token = tokens[index]
            following, current = token + SERIAL_ONE, words[token & SLOT_MASK]
            if current == token:
                words[token & SLOT_MASK] = following
                self.channel.free.put(to_bytes([following]))
            elif current == following:
                self.channel.free.put(to_bytes([following | words[block + RETURN_ATTEMPT]]))
            words[block + RETURNED] = index + 1

    def _is_genuine(self, token: int) -> bool:
        """Whether no earlier attempt of `token` was taken: pipes are first-in-first-out.

        Each hand is looked at before the spare, the order in which a token moves between them.
        """
        words, layout = self._words, self.channel.layout
        slot = token & SLOT_MASK
        if words[slot] != plain(token):
            return False
        for seat in range(layout.consumers):
            for place in (IN_HAND, SPARE):
                other = words[layout.consumer(seat) + place]
                if plain(other) == plain(token) and attempt(other) < attempt(token):
                    return False
        return words[slot] == plain(token)


def _let_go(mapping: mmap.mmap) -> None:
    """Unmap; if user code kept an array, make its memory this process's own before the slot goes.

    Storing into each page of a private mapping copies it, so what was kept stays as it is.
    """
    try:
        mapping.close()
    except BufferError:
        mapping[::PAGE] = mapping[::PAGE]
