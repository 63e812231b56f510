"""One item every two milliseconds through three stages that do nothing: how late does it arrive?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import Stage, Workload

PERIOD_S = 0.002


Sent = tuple[int, int]
"""The number of an item, and when it was handed out, in nanoseconds."""


def pass_on(item: Sent) -> Sent:
    return item


def clock(items: int, scale: int) -> Iterator[Sent]:
    due = time.perf_counter()
    for number in range(items):
        due += PERIOD_S
        time.sleep(max(0.0, due - time.perf_counter()))
        yield number, time.perf_counter_ns()


def delay_ns(item: Sent) -> Sent:
    number, sent = item
    return number, time.perf_counter_ns() - sent


WORKLOAD = Workload(
    title="Latency of a trickle",
    says="One item every 2 ms through three stages of one worker each that pass it on.",
    stages=(Stage("one", pass_on), Stage("two", pass_on), Stage("three", pass_on)),
    source=clock,
    items=1_200,
    keep=delay_ns,
    measure="latency",
)
