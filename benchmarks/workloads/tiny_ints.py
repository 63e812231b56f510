"""Items that cost next to nothing: what is left is the cost of shipping them."""

from collections.abc import Iterable

from . import Stage, Workload


def add_one(item: int) -> int:
    return item + 1


def numbers(items: int, scale: int) -> Iterable[int]:
    return range(items)


WORKLOAD = Workload(
    title="Tiny ints",
    says="`item + 1`, on two workers: the cost of shipping an item, and nothing else.",
    stages=(Stage("add", add_one, workers=2),),
    source=numbers,
    items=5_000_000,
    batches=(1000, 10_000),
)
