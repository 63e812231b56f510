"""Items of about 10 us of pure Python."""

from . import Stage, Workload
from .cpu import about_equal, calibrated, work

WORKLOAD = Workload(
    title="10 us items",
    says="A loop over small integers for about 10 us an item, on two workers.",
    stages=(Stage("work", work, workers=2),),
    source=about_equal,
    scale=calibrated(10),
    items=250_000,
    batches=(128, 1024),
    turns=5,
)
