"""Items of which a few take very long: how well is the work spread?"""

import random
from collections.abc import Iterator

from . import Stage, Workload
from .cpu import calibrated, work


def mixed(items: int, scale: int) -> Iterator[int]:
    """One item in twenty takes forty times as long; one of these comes near the end."""
    draw = random.Random(7)
    for i in range(items):
        yield scale * (40 if draw.random() < 0.05 or i == items - 20 else 1) + i % 7


WORKLOAD = Workload(
    title="Skewed items",
    says="1 ms an item, but 40 ms for one in twenty, in no order, on two workers. Beside the "
    "ideal, of which each process takes the next item that none has taken, it shows the makespan.",
    stages=(Stage("work", work, workers=2),),
    source=mixed,
    scale=calibrated(1000),
    items=1_000,
    equal=False,
)
