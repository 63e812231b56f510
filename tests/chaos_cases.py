"""Random pipelines for the chaos runs, each as it follows from a number, its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from crashpoints import Mode
from functions import Bursts, Divides, Fails, Heavy, Keeps, Shift, Work

import mpipe

NEVER = 10**9
"""For `max_crashes`: here a death is not the item's fault."""

NO_LIMIT_S = 10_000.0
"""For `timeout`: with one, workers say which item they are at."""

SPAWN_RARITY = 50
"""One run of so many makes its workers as fresh interpreters, which takes long."""


@dataclass
class Case:
    """One run; `simple` computes the same without a state."""

    pipeline: mpipe.Pipeline
    simple: mpipe.Pipeline
    ordered: bool
    start_method: str
    most_items: int
    mode: Mode
    shortest: int
    """Mean of the workers' shortest lives, in what `mode` says."""
    calm_s: float
    """Mean time from one kill or stop from outside to the next, at first, in seconds."""
    rest_s: float
    """How long the source rests before each item, in seconds."""
    kind: type[int]
    """Of the source's items, which are light, or of very different weights."""

    @property
    def drops(self) -> bool:
        return any(stage.drop_on_full for stage in self.pipeline.graph.stages)

    @property
    def keeps_order(self) -> bool:
        """Whether the order of the results is known."""
        return self.ordered and self.pipeline.graph.stages == self.simple.graph.stages


def make_case(seed: int) -> Case:
    chance = random.Random(seed)
    pipeline, simple = mpipe.Pipeline(f"chaos {seed}"), mpipe.Pipeline("simple")
    spawns = chance.randrange(SPAWN_RARITY) == 0
    count = chance.randint(1, 2 if spawns else 5)
    for number in range(count):
        _add_stage(chance, f"s{number}", pipeline, simple)
    for edge in sorted(_edges(chance, count)):
        pipeline.connect(*edge)
        simple.connect(*edge)
    mode = chance.choice([Mode.INSTRUCTIONS, Mode.MICROSECONDS])
    low, high = (300, 1_000) if mode is Mode.INSTRUCTIONS else (200, 1_000)
    breaks = any(stage.breaker for stage in pipeline.graph.stages)  # a bad item takes ten tries
    bursts = any(isinstance(stage.fn, Bursts) for stage in simple.graph.stages)
    return Case(
        pipeline,
        simple,
        ordered=chance.random() < 0.25,
        start_method="spawn" if spawns else "fork",
        most_items=int(_between(chance, 20, 200 if spawns or bursts else 2_000)),
        mode=mode,
        shortest=int(_between(chance, low, high)) * (10 if spawns else 1),
        calm_s=_between(chance, 0.01, 0.3) * (10 if breaks else 1) + 10.0 * spawns,
        rest_s=chance.choice([0.0, 0.0, 0.0, 0.001, 0.005]),
        kind=chance.choice([int, int, Heavy]),
    )


def _between(chance: random.Random, low: float, high: float) -> float:
    """A number of any order of magnitude in between."""
    return low * (high / low) ** chance.random()


def _add_stage(
    chance: random.Random, name: str, pipeline: mpipe.Pipeline, simple: mpipe.Pipeline
) -> None:
    salt = chance.randrange(100)
    options = _options(chance)
    kind = chance.choice(["flat", "flat", "bursts", "map", "filter", "fails", "keeps"])
    if chance.random() < 0.5 and kind in ("flat", "bursts", "map", "filter"):
        options = {"max_crashes": NEVER}  # it may share processes
    if kind == "bursts" and any(isinstance(stage.fn, Bursts) for stage in simple.graph.stages):
        kind = "map"  # two would make too many items
    if kind == "flat":
        work = Work(salt, chance.choice(["list", "tuple", "generator"]), chance.choice([2, 4]))
        pipeline.add_stage(name, work, **options)
    elif kind == "bursts":
        pipeline.add_stage(name, Bursts(salt), **options)
    elif kind == "map":
        pipeline.add_map(name, Shift(salt), **options)
    elif kind == "filter":
        pipeline.add_filter(name, Divides(salt), **options)
    elif kind == "fails":
        options.update(on_error=chance.choice(["skip", "dead_letter"]), retries=salt % 2)
        if chance.random() < 0.5:  # deaths trip it all the time
            pauses = {"open_for": 0.002, "max_open_for": 0.02, "probes": chance.randint(1, 5)}
            options["breaker"] = mpipe.CircuitBreaker(0.5, window=20, min_calls=5, **pauses)
        pipeline.add_stage(name, Fails(salt), **options)
    else:
        pipeline.add_stage(name, Keeps, **options)
    if kind == "keeps":
        simple.add_map(name, Shift(0), **options)
    else:
        simple._add(name, pipeline.graph.stages[-1].fn, pipeline.graph.stages[-1].kind, options)


def _options(chance: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        "workers": chance.randint(1, 4),
        "buffer_size": int(_between(chance, 1, 200)),
        "buffer_bytes": int(_between(chance, 20_000, 1 << 23)),
        "drop_on_full": chance.random() < 0.05,
        "max_crashes": NEVER,
        "max_items": chance.choice([None] * 9 + [50]),
        "timeout": chance.choice([None] * 5 + [NO_LIMIT_S]),
    }
    if chance.random() < 0.15:
        options.update(workers=1, ordered=True)
    return options


def _edges(chance: random.Random, count: int) -> set[tuple[str, str]]:
    """Forward edges that leave no stage alone."""
    edges = set()
    for number in range(1, count):
        for other in chance.sample(range(number), k=min(number, chance.choice([1, 1, 2]))):
            edges.add((f"s{other}", f"s{number}"))
    return edges
