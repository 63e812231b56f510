"""Items of about 100 us of pure Python."""

from . import Stage, Workload
from .cpu import about_equal, calibrated, work

WORKLOAD = Workload(
    title="100 us items",
    says="A loop over small integers for about 100 us an item, on two workers.",
    stages=(Stage("work", work, workers=2),),
    source=about_equal,
    scale=calibrated(100),
    items=30_000,
    batches=(16, 128),
    turns=5,
)
