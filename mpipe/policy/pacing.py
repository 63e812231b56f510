"""How often to take a snapshot: after each frame, unless that costs too much."""

from __future__ import annotations

COST_SHARE = 0.05
"""Share of the time that snapshots may take, while frames can be kept instead."""

MOST_FRAMES = 256
MOST_BYTES = 1 << 26
"""Frames, and their bytes, that may be kept for one snapshot."""


class SnapshotPace:
    """Decides when the next snapshot is due; times are nanoseconds of the same clock."""

    def __init__(self) -> None:
        self._cost_ns = 0
        self._ended_ns = 0

    def is_due(self, now_ns: int, frames: int, held_bytes: int) -> bool:
        """Whether to take one now that so many frames are kept."""
        if frames >= MOST_FRAMES or held_bytes >= MOST_BYTES:
            return True
        return (now_ns - self._ended_ns) * COST_SHARE >= self._cost_ns

    def took(self, began_ns: int, ended_ns: int) -> None:
        """A snapshot was taken."""
        self._cost_ns, self._ended_ns = ended_ns - began_ns, ended_ns
