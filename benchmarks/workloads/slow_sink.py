"""A fast source before a slow stage: what piles up, and where?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import Stage, Workload

SLOW_S = 0.001
ITEM_BYTES = 1024


def pass_on(item: bytes) -> bytes:
    return item


def slow(item: bytes) -> int:
    time.sleep(SLOW_S)
    return int.from_bytes(item[:8], "big")


def payloads(items: int, scale: int) -> Iterator[bytes]:
    filler = bytes(ITEM_BYTES - 8)
    return (number.to_bytes(8, "big") + filler for number in range(items))


WORKLOAD = Workload(
    title="Memory with a slow sink",
    says="Items of 1 KiB through a stage that passes them on and one that takes 1 ms each.",
    stages=(Stage("pass", pass_on), Stage("slow", slow)),
    source=payloads,
    items=400_000,
    measure="memory",
    turns=1,
)
