"""Lines of JSON, each with several orders: parse, enrich, aggregate; two, one and one workers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from . import Stage, Workload

PRODUCTS = {
    f"p{i:03}": {"price": 100 + 37 * i % 900, "category": f"c{i % 12}", "weight": i % 50}
    for i in range(500)
}
RATES = {"eur": 108, "usd": 100, "gbp": 127, "jpy": 1}


def lines(items: int, scale: int) -> Iterator[str]:
    """As many lines, each with three to seven orders of one to six positions."""
    draw = random.Random(11)
    made = [_line(draw, i) for i in range(min(items, 500))]
    return (made[i % len(made)] for i in range(items))


def _line(draw: random.Random, number: int) -> str:
    orders = [
        {
            "id": 1000 * number + k,
            "customer": {"id": draw.randrange(10_000), "country": draw.choice("ABCDEFGH")},
            "currency": draw.choice(list(RATES)),
            "positions": [
                {"product": f"p{draw.randrange(500):03}", "quantity": draw.randrange(1, 9)}
                for _ in range(draw.randrange(1, 7))
            ],
            "note": "x" * draw.randrange(60),
        }
        for k in range(draw.randrange(3, 8))
    ]
    return json.dumps({"shop": number % 40, "orders": orders})


def parse(line: str) -> list[dict[str, Any]]:
    """One record for each order of a line."""
    known = json.loads(line)
    return [{**order, "shop": known["shop"]} for order in known["orders"]]


def enrich(order: dict[str, Any]) -> dict[str, Any]:
    """Look up products, convert currencies."""
    rate = RATES[order["currency"]]
    for position in order["positions"]:
        product = PRODUCTS[position["product"]]
        position["category"] = product["category"]
        position["weight"] = product["weight"] * position["quantity"]
        position["cents"] = product["price"] * position["quantity"] * rate
    return order


def aggregate(order: dict[str, Any]) -> tuple[int, str, int, int, int]:
    """The sums of an order."""
    positions = order["positions"]
    return (
        order["id"],
        order["customer"]["country"],
        len(positions),
        sum(position["weight"] for position in positions),
        sum(position["cents"] for position in positions),
    )


WORKLOAD = Workload(
    title="JSON records",
    says="Lines of JSON through parse (one record for each of about five orders), enrich and "
    "aggregate, on two, one and one workers: little work, so that shipping decides.",
    stages=(
        Stage("parse", parse, workers=2, many=True),
        Stage("enrich", enrich),
        Stage("aggregate", aggregate),
    ),
    source=lines,
    items=80_000,
    batches=(16, 128),
)
