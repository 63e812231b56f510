"""Where everything lies in a channel's shared-memory file; offsets only, no behaviour.

    words   | current token of each slot                    written by whoever owns the slot
            | how many bytes of each slot's spill may be in memory              by the same
            | one block per consumer seat: in hand, spare, credited, ...         by that seat
            | one block per producer seat: intent, published, dropped, hand      by that seat
    slots   | SLOT_BYTES each: header, riders, payload if it fits
    spills  | `spill_bytes` each (sparse): the payload of a frame that does not fit its slot

Words are 64 bits, aligned, stored and loaded whole. Only pages that were touched cost memory.
"""

from __future__ import annotations

from functools import cached_property

PAGE = 4096

SLOT_BYTES = 1 << 16

MAX_CREDITS = 1024
"""Most credits of a channel: so many tokens fit a 64 KiB pipe however they are written to it."""

MAX_FRAME_CREDITS = 480
"""Most credits of a frame: their tokens go through a pipe in one atomic write (PIPE_BUF)."""

# Words of a consumer's block.
IN_HAND, SPARE, CREDITED, RETURNED, RETURN_ATTEMPT, SERVICE_NS = range(6)
CONSUMER_WORDS = 8

# Words of a producer's block; the hand follows.
INTENT, PUBLISHED, DROPPED, RETURNING, BASE, BASE_OF, CARRIER = range(7)
HAND = 7


class ChannelLayout:
    """Sizes of one channel and the offsets that follow from them.

    The queue holds `credits` credits, each of which stands for `unit` items and `credit_bytes`
    bytes. There is a slot for each credit, and one for each of the `consumers`: its spare, which it
    gives back for the frame it takes.
    """

    def __init__(
        self,
        buffer_items: int,
        consumers: int,
        producers: int,
        max_item_bytes: int,
        buffer_bytes: int = 1 << 62,
    ) -> None:
        self.buffer_items = buffer_items
        self.consumers = consumers
        self.producers = producers
        self.max_item_bytes = max_item_bytes
        self.buffer_bytes = buffer_bytes

    @cached_property
    def unit(self) -> int:
        """Items per credit."""
        return -(-self.buffer_items // MAX_CREDITS)

    @cached_property
    def credits(self) -> int:
        return self.buffer_items // self.unit

    @cached_property
    def credit_bytes(self) -> int:
        """Bytes per credit."""
        return max(1, self.buffer_bytes // self.credits)

    @cached_property
    def slots(self) -> int:
        return self.credits + self.consumers

    @cached_property
    def hand_words(self) -> int:
        return min(self.credits, MAX_FRAME_CREDITS)

    def touched(self, slot: int) -> int:
        """Index of the word that says how much of a slot's spill may be in memory, in bytes."""
        return self.slots + slot

    def consumer(self, seat: int) -> int:
        """Index of the first word of a consumer's block."""
        return 2 * self.slots + seat * CONSUMER_WORDS

    def producer(self, seat: int) -> int:
        """Index of the first word of a producer's block."""
        return self.consumer(self.consumers) + seat * (HAND + self.hand_words)

    @property
    def words_bytes(self) -> int:
        return _pages(self.producer(self.producers) * 8)

    @property
    def slots_bytes(self) -> int:
        return self.slots * SLOT_BYTES

    @property
    def spill_bytes(self) -> int:
        """Room for one frame's payload: the largest item, and tables beside it."""
        return _pages(self.max_item_bytes + (1 << 20))

    def spill(self, slot: int) -> int:
        """Offset of a slot's spill in the file, in bytes."""
        return self.words_bytes + self.slots_bytes + slot * self.spill_bytes

    @property
    def file_bytes(self) -> int:
        return self.spill(self.slots)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
