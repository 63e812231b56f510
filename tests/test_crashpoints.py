"""A worker may die before any line of the protocol, and its replacement too: nothing is lost,
nothing comes twice, every count is exact, and no run hangs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest
from crashpoints import Mode, Table, crashing, points
from reference import assert_conserved
from scenarios import SCENARIOS, Scenario

MOST_RUNS = 3
"""What is reached only now and then may need more than one run."""

EVERY = 6
"""Of so many steps one is followed by all deaths of the replacement."""

PAIRS = list(SCENARIOS)[:16]
"""Scenarios in which replacements die, too; those after them take too long for each test run."""

NOT_IN_WORKERS = r"""
    EdgeOrder\.can_mark | own_memory | ChannelFds\.all | create_channel | _fill
    | Channel\.put_ends | Channel\.(close|__enter__|__exit__)
    | Board\.(put|refuse|refused|close|.*coordinator_cpu.*) | idle_and_blocked
    | create_gap_pipe | GapPipe\.has_room | GateFds\.all | create_gate
    | SharedGate\.(close|facts|put_.*|counted|rung|hear|holds_permit|withdraw_permits)
    | create_file | unmap | Area\.close | PipeFds\.all | create_pipe | _make_room | room_for
    | first_token | Store\.close | Producer\.holds_credits | Producer\.trim | _(reduce|make)_cached
    | heed | go_on | _go_on | _dropped | _repeat
"""
"""Functions that the caller or the coordinator runs; or a worker, but only with `max_memory`, where
a function keeps a cache, or when it is beginning, or ending already."""

ABSTRACT = r"(Gate|Intake|Outlet|Rejects|Watch)\.\w+"
"""What protocol classes declare."""

FAILS_THE_RUN = r"""
    check_result | _pack_cause | Worker\.(_load|failure) | _stop | run_worker | describe_frame
    | Host\.(open|close|snapshot|restore) | Kernel\.(finish|_give_up) | Worker\.open
    | Wear\.(check|add) | encode | encode\.in_band | read_header | _map | Area\._map_whole
    | Area\.discard | Area\.part
"""
"""Where lines that nobody died at come before an exception that ends the run or its start, or
where there is no memory: what comes then is not exact, and `test_failures` has it."""

SELDOM = """
    runtime/apply.py:_map.many: raise StopIteration
    runtime/backlog.py:Backlog.counted: return
    runtime/gate.py:WorkerGate._ring: break
    runtime/kernel.py:Kernel._hand_on: except (Exception, SystemExit) as error:
    runtime/kernel.py:Kernel._hand_on: self._broken = error
    runtime/kernel.py:Kernel._retry: raise error
    runtime/wording.py:one_line: return f"WorkerDied: {error.args[0]}"
    runtime/wording.py:one_line: except Exception:
    runtime/wording.py:one_line: message = "its message cannot be had"
    transport/frame.py:encode_frames: most = max(1, payload.items * frame_bytes // payload.size)
    transport/frame.py:encode_frames: for first in range(done, done + payload.items, most):
    transport/frame.py:encode_frames: part = items[first : min(first + most, done + payload.items)]
    transport/frame.py:encode_frames: at = start + first
    transport/frame.py:encode_frames: payloads += encode_frames(part, max_bytes, frame_bytes, at)
    transport/producer.py:Producer.acquire: self._empty_hand()
    transport/producer.py:Producer._wait_for_credits: time.sleep(ROOM_S)
    transport/producer.py:Producer._choose_carrier: carrier += 1
"""
"""Lines reached only by a rare turn of events, or by what no scenario does."""


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
    stages = list(stats.stages.values())
    restarts = sum(stages[pool].restarts for pool in outputs._engine._plan.pools)
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


def test_somebody_died_at_every_line_but_those_listed() -> None:
    died = set().union(*map(died_at, SCENARIOS))
    excused = re.compile("|".join([NOT_IN_WORKERS, ABSTRACT, FAILS_THE_RUN]), re.VERBOSE)
    seldom = {line.strip() for line in SELDOM.strip().splitlines()}
    spared = [
        name
        for name in points().names
        if name not in died | seldom and not excused.fullmatch(name.split(":")[1])
    ]
    assert not spared
