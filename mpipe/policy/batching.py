"""How many items a frame should carry; pure arithmetic.

A frame holds as many items as its consumer handles in a few milliseconds, so that the cost of a
hand-over is spread over many cheap items and an expensive item travels alone. It never holds more
than its share of the buffer, so that each worker can have one frame in hand and one waiting.
"""

from __future__ import annotations

FRAME_NS = 5_000_000
"""Service time that a full frame should take its consumer, in nanoseconds."""

FRAME_BYTES = 1 << 20
"""Size beyond which a frame is sent as it is, in bytes."""


def fair_share(buffer_items: int, consumers: int) -> int:
    """Most items a frame may take of a buffer of `buffer_items` that feeds `consumers` workers."""
    return max(1, buffer_items // (2 * consumers))


def frame_items(service_ns: float, share: int, item_bytes: float) -> int:
    """Items for a frame, from the consumer's mean service time and the mean size of an item.

    An unknown service time (0) gives frames of one item, so that it is soon known.
    """
    if service_ns <= 0:
        return 1
    by_time = FRAME_NS / service_ns
    by_size = FRAME_BYTES / item_bytes if item_bytes > 0 else by_time
    return int(max(1, min(by_time, by_size, share)))
