"""Pipelines that between them use every part of the protocol, and what each must give.

Functions are defined inside others, so that they travel by value: workers import nothing for them.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import mpipe

NEVER = 10**9
"""For `max_crashes`: deaths that the test causes are not the item's fault."""

DEADLINE_S = 120.0
"""A run that takes longer hangs, in seconds."""


@dataclass(frozen=True)
class Scenario:
    """A pipeline and its results for the source items 0 to n - 1.

    `is_right(results, letters, n)` gets the results in the order they came and the items of the
    dead letters. The source ends when `quiet` items in a row have brought no kill; `most` keeps it
    short, so that there are many ends of runs. `own_deaths` is how many workers are killed by the
    functions of stages.
    """

    name: str
    pipeline: mpipe.Pipeline
    is_right: Callable[[list[Any], list[Any], int], bool]
    ordered: bool = False
    quiet: int = 300
    most: int = NEVER
    own_deaths: int = 0

    def run(self, items: Iterable[int]) -> Any:
        """Start it; its results as they come."""
        return self.pipeline.run(items, deadline=DEADLINE_S, ordered=self.ordered)


def exactly(expected: Callable[[int], Iterable[Any]]) -> Callable[..., bool]:
    """Every source item's results once, in any order, and no dead letters."""

    def is_right(results: list[Any], letters: list[Any], n: int) -> bool:
        return not letters and Counter(results) == Counter(y for x in range(n) for y in expected(x))

    return is_right


def pipeline(*stages: tuple[str, str, Any, dict[str, Any]]) -> mpipe.Pipeline:
    """A chain of stages, each its kind, name, function and options."""
    built = mpipe.Pipeline()
    for kind, name, fn, options in stages:
        getattr(built, f"add_{kind}")(name, fn, **{"max_crashes": NEVER, **options})
    for (_, source, *_), (_, target, *_) in pairwise(stages):
        built.connect(source, target)
    return built


def chain(workers: int, buffer_size: int) -> mpipe.Pipeline:
    options = {"workers": workers, "buffer_size": buffer_size}
    return pipeline(
        ("stage", "split", lambda x: [x, x + 1] if x % 3 else None, options),
        ("filter", "odd", lambda x: x % 2, options),
        ("map", "minus", lambda x: -x, options),
    )


def chained(x: int) -> list[int]:
    return [-y for y in (x, x + 1) if y % 2] if x % 3 else []


def shared_processes() -> mpipe.Pipeline:
    """Three stages that the same workers run, one that has its own, two that share others."""

    def both(x: int) -> Any:
        return iter([x, -x]) if x % 5 == 0 else [x, -x]

    return pipeline(
        ("map", "twice", lambda x: 2 * x, {}),
        ("map", "minus", lambda x: 1 - x, {}),
        ("stage", "both", both, {}),
        ("filter", "some", lambda x: x % 3, {"workers": 2, "buffer_size": 10}),
        ("map", "last", lambda x: (x,), {}),
        ("filter", "any", lambda x: True, {}),
    )


def went_through(x: int) -> list[tuple[int]]:
    return [(y,) for y in (1 - 2 * x, 2 * x - 1) if y % 3]


def trickle() -> mpipe.Pipeline:
    """A slow first stage, so that most credits are free and workers wait for input; they make way
    for new ones all the time."""

    def slow(x: int) -> list[int]:
        time.sleep(0.002)
        return [x, x + 1] if x % 3 else [x]

    options = {"workers": 2, "buffer_size": 5}
    return pipeline(
        ("stage", "slow", slow, options),
        ("map", "minus", lambda x: -x, {**options, "max_items": 7}),
    )


def diamond() -> mpipe.Pipeline:
    """Fan-out, then fan-in, through small buffers."""
    built = mpipe.Pipeline()
    options: dict[str, Any] = {"max_crashes": NEVER, "workers": 2, "buffer_size": 3}
    built.add_map("first", lambda x: x, **options)
    built.add_map("left", lambda x: ("left", x), **options)
    built.add_stage("right", lambda x: (("right", x),) * (x % 3), **options)
    built.add_map("last", lambda x: x, **options)
    for edge in (("first", "left"), ("first", "right"), ("left", "last"), ("right", "last")):
        built.connect(*edge)
    return built


def expansion() -> mpipe.Pipeline:
    """A generator whose outputs fill many frames."""

    def burst(x: int) -> Iterator[int]:
        yield from range(x, x + 700)

    options = {"workers": 2, "buffer_size": 64}
    return pipeline(
        ("stage", "burst", burst, options), ("filter", "some", lambda x: x % 50 == 0, options)
    )


def wide() -> mpipe.Pipeline:
    """Frames with hundreds of credits, whose items are timed together; a few fail."""

    def same(x: int) -> Any:
        if x % 97 == 5:
            raise ValueError("bad item")
        return iter([x]) if x % 97 == 6 else [x]

    options = {"workers": 1, "buffer_size": 4000, "on_error": "skip"}
    return pipeline(
        ("stage", "many", lambda x: range(x, x + 40).__iter__(), options),
        ("stage", "same", same, options),
    )


def few_bytes(drop_on_full: bool) -> mpipe.Pipeline:
    """Items that take many credits for their bytes, and more than there are."""
    options: dict[str, Any] = {"workers": 2, "buffer_size": 6, "buffer_bytes": 60_000}
    return pipeline(
        ("map", "fill", lambda x: (x, bytes(x % 7 * 12_000)), options),
        ("map", "empty", lambda item: item[0], {"drop_on_full": drop_on_full, **options}),
    )


def some_of_them(results: list[Any], letters: list[Any], n: int) -> bool:
    return not letters and len(set(results)) == len(results) and set(results) <= set(range(n))


def dropping() -> mpipe.Pipeline:
    """What finds the buffer full is dropped."""
    return pipeline(
        ("stage", "three", lambda x: [(x, 0), (x, 1), (x, 2)], {"workers": 2, "buffer_size": 20}),
        ("map", "slow", lambda x: x, {"workers": 2, "buffer_size": 4, "drop_on_full": True}),
    )


def each_at_most_once(results: list[Any], letters: list[Any], n: int) -> bool:
    once = len(set(results)) == len(results)
    return not letters and once and set(results) <= {(x, i) for x in range(n) for i in range(3)}


def failing(on_error: str) -> mpipe.Pipeline:
    """Items fail midway through their outputs, or for a time, or with an output that cannot travel,
    or cannot travel themselves any more when they fail."""
    seen: set[int] = set()

    def work(x: int) -> Iterator[Any]:
        yield ["first", x]
        if x % 7 == 2:
            yield (i for i in ())  # generators cannot be pickled
        if x % 5 == 1:
            raise ValueError("bad item")
        if x % 17 == 8 and x not in seen:
            seen.add(x)
            raise ValueError("not yet")
        yield ["second", x]

    def listed(item: list[Any]) -> list[Any]:
        name, x = item
        if x % 11 == 3:
            item.append(i for i in ())
            raise KeyError("worse")
        return [(name, x), (i for i in ())] if x % 13 == 4 else [(name, x)]

    options = {"workers": 2, "buffer_size": 10, "on_error": on_error, "timeout": DEADLINE_S}
    return pipeline(
        ("stage", "work", work, {"retries": 1, **options}), ("stage", "listed", listed, options)
    )


def failed(x: int) -> tuple[list[Any], list[Any]]:
    """Results, and dead letters, of source item x in `failing`."""
    passed, letters = [("first", x)], []
    if x % 5 == 1 or x % 7 == 2:
        letters.append(x)
    else:
        passed.append(("second", x))
    if x % 11 == 3:
        return [], letters + [None for _ in passed]
    if x % 13 == 4:
        letters += passed
    return passed, letters


def failed_rightly(with_letters: bool) -> Callable[..., bool]:
    def is_right(results: list[Any], letters: list[Any], n: int) -> bool:
        outcomes = [failed(x) for x in range(n)]
        lost = Counter(y for _, lost in outcomes for y in lost) if with_letters else Counter()
        found = Counter(tuple(y) if isinstance(y, list) else y for y in letters)
        return found == lost and Counter(results) == Counter(
            y for passed, _ in outcomes for y in passed
        )

    return is_right


def breaking() -> mpipe.Pipeline:
    """A circuit breaker that failures and deaths trip all the time."""

    def work(x: int) -> list[int]:
        if x % 4 == 1:
            raise ValueError("bad item")
        return [x]

    breaker = mpipe.CircuitBreaker(
        window=10, min_calls=5, open_for=0.002, max_open_for=0.01, probes=2
    )
    options = {"workers": 2, "buffer_size": 5, "on_error": "dead_letter", "retries": 1}
    return pipeline(("stage", "work", work, {"breaker": breaker, **options}))


def broke_rightly(results: list[Any], letters: list[Any], n: int) -> bool:
    bad = [x for x in range(n) if x % 4 == 1]
    return sorted(letters) == bad and sorted([*results, *bad]) == list(range(n))


POISON = (3, 40)
POISONED = range(10**9, 10**9 + 10)
"""What poison gives: numbers that no source comes to."""
POISON_DEATHS = 200
"""More than the lines at which a worker has an item that is not poison in hand."""


def poison() -> mpipe.Pipeline:
    """Items that kill their workers, midway through outputs for two stages."""

    def work(x: int) -> Iterator[int]:
        yield x
        if x in POISON:
            for y in POISONED:
                yield y
                time.sleep(0.0003)
            os.kill(os.getpid(), signal.SIGKILL)
        yield -x

    options: dict[str, Any] = {"workers": 2, "buffer_size": 10, "max_crashes": NEVER}
    built = mpipe.Pipeline()
    built.add_stage(
        "work", work, **{**options, "on_error": "dead_letter", "max_crashes": POISON_DEATHS}
    )
    built.add_map("left", lambda x: ("left", x), **options)
    built.add_map("right", lambda x: ("right", x), **options)
    return built.connect("work", "left").connect("work", "right")


def without_poison(results: list[Any], letters: list[Any], n: int) -> bool:
    """What the poison gave before it was failed is out, or not; all else is exact."""
    got = Counter(y for y in results if y[1] not in (*POISONED, *POISON))
    spared = [x for x in range(n) if x not in POISON]
    wanted = Counter((way, y) for x in spared for y in (x, -x) for way in ("left", "right"))
    rest = Counter(results) - got
    return sorted(letters) == list(POISON) and got == wanted and max(rest.values()) <= 2


def in_order() -> mpipe.Pipeline:
    """Results in source order through expansion and shrinking, with gaps where items failed."""

    def work(x: int) -> list[int]:
        if x % 9 == 4:
            raise ValueError("a gap")
        return [-x] * (x % 3)

    options = {"workers": 2, "buffer_size": 20, "on_error": "skip"}
    return pipeline(("stage", "work", work, options), ("map", "pair", lambda x: (x, x), options))


def ordered(results: list[Any], letters: list[Any], n: int) -> bool:
    return results == [(-x, -x) for x in range(n) for _ in range(x % 3) if x % 9 != 4]


def seen_in_order(drop_on_full: bool) -> mpipe.Pipeline:
    """An ordered stage behind two ways that meet."""
    options: dict[str, Any] = {"max_crashes": NEVER, "workers": 2, "buffer_size": 4}
    built = mpipe.Pipeline()
    built.add_stage("two", lambda x: [2 * x, 2 * x + 1], **options)
    built.add_filter("left", lambda x: x % 3, drop_on_full=drop_on_full, **options)
    built.add_map("right", lambda x: -x, **options)
    options["workers"] = 1
    built.add_map("seen", lambda x: x, ordered=True, drop_on_full=drop_on_full, **options)
    for edge in (("two", "left"), ("two", "right"), ("left", "seen"), ("right", "seen")):
        built.connect(*edge)
    return built


def seen(n: int) -> list[int]:
    pairs = [(2 * x, 2 * x + 1) for x in range(n)]
    return [y for a, b in pairs for y in (*(z for z in (a, b) if z % 3), -a, -b)]


def saw_all(results: list[Any], letters: list[Any], n: int) -> bool:
    return results == seen(n)


def saw_some(results: list[Any], letters: list[Any], n: int) -> bool:
    everything = iter(seen(n))
    return all(x in everything for x in results)


class Sums(mpipe.Stage):
    """Emits running sums, which depend on every item before, and the last one at the end."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def setup(self) -> None:
        self.total = 0

    def process(self, item: int) -> list[int]:
        self.total += item
        return [self.total] if item % 3 else []

    def finish(self) -> list[str]:
        return [f"last {self.total}", "bad", "end"]

    def snapshot(self) -> tuple[int, bytes]:
        return self.total, bytes(self.padding)

    def restore(self, state: tuple[int, bytes]) -> None:
        self.total, _ = state


def with_state(workers: int, padding: int, ordered: bool) -> mpipe.Pipeline:
    """State in the middle; one of the items that come from `finish` fails."""

    def again(x: int | str) -> int | str:
        if x == "bad":
            raise ValueError("bad item")
        return x

    options: dict[str, Any] = {"buffer_size": 10, "on_error": "skip"}
    return pipeline(
        ("map", "same", lambda x: x, {"workers": 2, **options}),
        ("stage", "sums", Sums(padding), {"workers": workers, "ordered": ordered, **options}),
        ("map", "again", again, {"workers": 1, **options}),
    )


def summed_in_order(results: list[Any], letters: list[Any], n: int) -> bool:
    totals = list(accumulate(range(n), initial=0))
    return results == [*(totals[x + 1] for x in range(n) if x % 3), f"last {totals[-1]}", "end"]


def summed(results: list[Any], letters: list[Any], n: int) -> bool:
    """By several workers: only the sum of their sums is known."""
    sums = [x for x in results if isinstance(x, int)]
    lasts = [int(x[5:]) for x in results if isinstance(x, str) and x != "end"]
    is_whole = len(sums) == sum(x % 3 > 0 for x in range(n)) and sum(lasts) == sum(range(n))
    return is_whole and len(lasts) == results.count("end") == 2


def arrays() -> mpipe.Pipeline:
    """Items of all sizes, some of which are kept or travel with what needs cloudpickle."""
    kept: list[Any] = []

    def make(x: int) -> list[Any]:
        import numpy as np

        sizes = [100, 1_000, 10_000, (12 << 20) // 8 if x == 51 else 30_000]
        return [(x, np.full(sizes[x % 4], x), bytes(100_000 if x % 3 == 0 else 10))]

    def change(item: Any) -> list[Any]:
        x, array, filler = item
        kept[:] = [array] if x % 5 == 0 else []
        array += 1
        return [(array, x, (lambda: 1) if x % 10 == 1 else filler)]

    def check(item: Any) -> list[Any]:
        array, x, _ = item
        return [x] if (array == x + 1).all() else []

    options = {"workers": 2, "buffer_size": 4, "buffer_bytes": 1 << 20}
    return pipeline(
        ("stage", "make", make, options),
        ("stage", "change", change, options),
        ("stage", "check", check, options),
    )


def with_setup() -> mpipe.Pipeline:
    """Stages that are set up and torn down, in many workers that soon end."""

    class Adds(mpipe.Stage):
        def setup(self) -> None:
            self.term = 1

        def process(self, item: int) -> list[int]:
            return [item + self.term]

    class Outputs(tuple):
        pass

    options = {"workers": 6, "buffer_size": 6}
    return pipeline(
        ("stage", "one", Adds, options), ("stage", "two", lambda x: Outputs([x]), options)
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("chain", chain(2, 10), exactly(chained)),
        Scenario("shared processes", shared_processes(), exactly(went_through)),
        Scenario(
            "shared processes, in order",
            shared_processes(),
            lambda results, letters, n: results == [y for x in range(n) for y in went_through(x)],
            ordered=True,
        ),
        Scenario("one slot, many workers", chain(4, 1), exactly(chained)),
        Scenario(
            "trickle", trickle(), exactly(lambda x: [-x, -x - 1] if x % 3 else [-x]), quiet=100
        ),
        Scenario(
            "fan-out and fan-in",
            diamond(),
            exactly(lambda x: [("left", x)] + [("right", x)] * (x % 3)),
        ),
        Scenario(
            "expansion",
            expansion(),
            exactly(lambda x: [y for y in range(x, x + 700) if y % 50 == 0]),
            quiet=20,
        ),
        Scenario(
            "wide frames",
            wide(),
            exactly(lambda x: [y for y in range(x, x + 40) if y % 97 != 5]),
        ),
        Scenario("few bytes", few_bytes(drop_on_full=False), exactly(lambda x: [x])),
        Scenario("few bytes, drop on full", few_bytes(drop_on_full=True), some_of_them),
        Scenario("drop on full", dropping(), each_at_most_once),
        Scenario("dead letters", failing("dead_letter"), failed_rightly(True)),
        Scenario("skipped items", failing("skip"), failed_rightly(False)),
        Scenario("circuit breaker", breaking(), broke_rightly, quiet=100),
        Scenario("poison", poison(), without_poison, own_deaths=len(POISON) * POISON_DEATHS),
        Scenario("results in order", in_order(), ordered, ordered=True),
        Scenario("ordered stage", seen_in_order(drop_on_full=False), saw_all),
        Scenario("ordered stage, drop on full", seen_in_order(drop_on_full=True), saw_some),
        Scenario("state", with_state(2, 0, ordered=False), summed),
        Scenario("state in order", with_state(1, 0, ordered=True), summed_in_order),
        Scenario("large state", with_state(1, 300_000, ordered=True), summed_in_order),
        Scenario("ends with state", with_state(2, 0, ordered=False), summed, most=10),
        Scenario("arrays", arrays(), exactly(lambda x: [x])),
        Scenario("ends", with_setup(), exactly(lambda x: [x + 1]), most=10),
    )
}
