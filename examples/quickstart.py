"""Three stages, each on processes of its own: parse orders, price them, report the large ones."""

from __future__ import annotations

from collections.abc import Callable

import mpipe
from mpipe.cli import health

PRICES = {"apple": 0.25, "melon": 1.75, "saffron": 3.2}


def enrich(order: list[str]) -> list[tuple[str, float]]:
    fruit, amount = order
    return [(fruit, int(amount) * PRICES[fruit])]


def report_above(limit: float) -> Callable[[tuple[str, float]], None]:
    def report(order: tuple[str, float]) -> None:
        fruit, cost = order
        if cost > limit:
            print(f"large order: {fruit} for {cost:,.2f}", flush=True)

    return report


p = mpipe.Pipeline("orders")
p.add_stage("parse", lambda line: [line.split(",")], workers=4, buffer_size=100)
p.add_stage("enrich", enrich, workers=2, buffer_size=50)
p.add_stage("sink", report_above(3190), workers=1, buffer_size=10)
p.connect("parse", "enrich")
p.connect("enrich", "sink")

with p.start() as run:
    for amount in range(1000):
        for fruit in PRICES:
            run.push(f"{fruit},{amount}")  # blocks while the buffer is full
    stats = run.drain()

health.show(stats)
