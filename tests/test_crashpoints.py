"""A worker may die before any line of the protocol, and its replacement too: nothing is lost,
nothing comes twice, every count is exact, and no run hangs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from crashpoints import Mode, Table, crashing
from reference import assert_conserved
from scenarios import SCENARIOS, Scenario

MOST_RUNS = 3
"""What is reached only now and then may need more than one run."""

EVERY = 6
"""Of so many steps one is followed by all deaths of the replacement."""

PAIRS = list(SCENARIOS)[:13]
"""Scenarios in which replacements die, too; those after them take too long for each test run."""


class Source:
    """Numbers, until deaths have ceased; `count` is how many there were."""

    def __init__(self, table: Table, quiet: int, most: int) -> None:
        self.count = 0
        self._table = table
        self._quiet, self._most = quiet, most

    def __iter__(self) -> Iterator[int]:
        kills, quiet = -1, 0
        while quiet < self._quiet and self.count < self._most:
            yield self.count
            self.count += 1
            quiet = quiet + 1 if self._table.kills == kills else 0
            kills = self._table.kills


def run_once(scenario: Scenario, table: Table) -> int:
    """Run a scenario under the table's deaths and check all; returns how many there were."""
    table.begin()
    before = table.kills
    source = Source(table, scenario.quiet, scenario.most)
    outputs = scenario.run(source)
    results = list(outputs)
    letters = [letter.item for letter in outputs.dead_letters()]
    stats = outputs.stats()
    assert scenario.is_right(results, letters, source.count)
    assert_conserved(stats, scenario.pipeline)
    assert stats.state == "drained"
    assert not any(stage.in_flight or stage.queued for stage in stats.stages.values())
    deaths = table.kills - before
    restarts = sum(stage.restarts for stage in stats.stages.values())
    assert restarts <= deaths + scenario.own_deaths, "some died by themselves"
    return deaths


def run_through(scenario: Scenario, table: Table, most_runs: int) -> None:
    """Run it until there is nothing new to die at."""
    while most_runs and run_once(scenario, table):
        most_runs -= 1


@cache
def died_at(name: str) -> set[str]:
    """Let workers die before every line that they come by; returns the lines."""
    with crashing(Mode.LINES) as table:
        run_through(SCENARIOS[name], table, MOST_RUNS)
        return table.killed_at


@pytest.mark.parametrize("name", SCENARIOS)
def test_workers_may_die_before_every_line_one_after_the_other(name: str) -> None:
    assert len(died_at(name)) > 300


@pytest.mark.parametrize("name", PAIRS)
def test_a_worker_may_die_after_any_step_and_its_replacement_too(name: str) -> None:
    with crashing(Mode.STEPS) as table:
        turn = list(SCENARIOS).index(name)
        for point in range(len(table.names)):
            table.single[point] = (point + turn) % EVERY > 0
        run_through(SCENARIOS[name], table, MOST_RUNS)
        assert sum(table.pairs) > 50
