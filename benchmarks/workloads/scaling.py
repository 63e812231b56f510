"""Items of about 1 ms on more and more workers."""

import machine

from . import Stage, Workload
from .cpu import about_equal, calibrated, work


def counts(cores: int) -> tuple[int, ...]:
    """Powers of two up to twice the cores, and the cores."""
    powers = {1 << i for i in range(cores.bit_length() + 1)}
    return tuple(sorted({n for n in powers if n <= 2 * cores} | {cores}))


WORKLOAD = Workload(
    title="Speed-up over workers",
    says="A loop over small integers for about 1 ms an item, on one worker up to two a core.",
    stages=(Stage("work", work),),
    source=about_equal,
    scale=calibrated(1000),
    items=2_000,
    batches=(8,),
    workers=counts(machine.cores()),
    turns=1,
)
