"""What the processes of a run are told: plain values, inherited descriptors, opaque functions."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..transport.channel import ChannelFds


@dataclass(frozen=True)
class RunSpec:
    """One run. The plan's stages carry no functions: `functions[i]` is stage i's, pickled.

    `channels[i]` stands in front of stage i, `results` and `dead_letters` in front of the caller.
    Workers tell the coordinator of errors through `reports`, which it reads from `reports_in`.
    """

    plan: Plan
    functions: tuple[bytes, ...]
    channels: tuple[ChannelFds, ...]
    results: ChannelFds | None
    dead_letters: ChannelFds | None
    board: int
    reports: int
    reports_in: int
    start_method: str
    max_item_bytes: int
    ordered_results: bool

    def channel_descriptors(self) -> tuple[int, ...]:
        """Those of the channels and the board."""
        channels = [*self.channels, self.results, self.dead_letters]
        fds = [fd for channel in channels if channel is not None for fd in channel.all()]
        return (*fds, self.board)

    def descriptors(self) -> tuple[int, ...]:
        """All that a worker inherits."""
        return (*self.channel_descriptors(), self.reports)
