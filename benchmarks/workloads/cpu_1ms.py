"""Items of about 1 ms of pure Python."""

from . import Stage, Workload
from .cpu import about_equal, calibrated, work

WORKLOAD = Workload(
    title="1 ms items",
    says="A loop over small integers for about 1 ms an item, on two workers.",
    stages=(Stage("work", work, workers=2),),
    source=about_equal,
    scale=calibrated(1000),
    items=6_000,
    batches=(1, 8),
    turns=5,
)
