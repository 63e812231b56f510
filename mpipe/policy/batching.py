"""How many items a frame should carry; pure arithmetic.

A frame holds as many items as its consumer handles in some milliseconds, so that the cost of a
hand-over is spread over many cheap items and an expensive item travels alone. It holds no more than
its share of the buffer, so that each worker can have one frame in hand and one waiting; unless that
is so little work that handing it over takes longer: then fewer workers do more.
"""

from __future__ import annotations

FRAME_NS = 20_000_000
"""Service time that a full frame should take its consumer at most, in nanoseconds."""

LEAST_FRAME_NS = 200_000
"""Service time that a frame should take, whatever its share, as long as there can be two frames."""

FRAME_BYTES = 1 << 18
"""Size beyond which a frame is sent as it is, in bytes."""

LEAST_PAUSE_S, MOST_PAUSE_S = 0.005, 0.05
"""Bounds of a source's rest, in seconds: a shorter one is not worth it."""


def fair_share(buffer_items: int, consumers: int) -> int:
    """Most items a frame may take of a buffer of `buffer_items` that feeds `consumers` workers."""
    return max(1, buffer_items // (2 * consumers))


def credits_for(items: int, size: int, unit: int, credit_bytes: int) -> int:
    """Credits that a frame costs: each stands for `unit` items and for `credit_bytes` bytes."""
    return max(-(-items // unit), -(-size // credit_bytes))


def items_for(credits: int, items: int, size: int, unit: int, credit_bytes: int) -> int:
    """How many of the items, `size` bytes in all, so many credits pay for."""
    by_number, room = min(items, credits * unit), credits * credit_bytes
    return by_number if size <= room else min(by_number, items * room // size)


def frame_items(
    service_ns: float, share: int, half: int, item_bytes: float, frame_bytes: int = FRAME_BYTES
) -> int:
    """Items for a frame, from the consumer's mean service time and the mean size of an item.

    `share` is its share of the buffer, `half` that of one of two frames. A power of two, so that
    small changes of the means do not change it: credits come back a frame at a time. An unknown
    service time (0) gives frames of one item, so that it is soon known.
    """
    if service_ns <= 0:
        return 1
    by_share = max(share, min(half, LEAST_FRAME_NS / service_ns))
    by_time = FRAME_NS / service_ns
    by_size = frame_bytes / item_bytes if item_bytes > 0 else by_time
    most = int(max(1, min(by_time, by_size, by_share)))
    return 1 << most.bit_length() - 1


def pause_s(full: float, queued: int, service_ns: float, consumers: int) -> float:
    """How long a source may rest while `queued` items wait in front of the consumers, in seconds.

    Not at all, unless three quarters of the buffer are `full` (0 to 1) and that is work for a
    while. Then it fills the buffer in bursts, instead of being woken for each frame that leaves it.
    """
    if full < 0.75:
        return 0.0
    rest = queued * service_ns * 1e-9 / consumers / 4
    return min(rest, MOST_PAUSE_S) if rest >= LEAST_PAUSE_S else 0.0
