"""Signals in the caller: a handler that raises loses and doubles nothing; one that calls the run
does not wait for the call that it interrupts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
from helpers import assert_gone, wait_until
from interrupts import Interrupt, at_line, each_line

import mpipe
from mpipe.engines import standby
from mpipe.engines.link import Link
from mpipe.engines.standby import Child
from mpipe.runtime import control
from mpipe.transport.descriptors import socket_pair


@contextmanager
def reading(run: mpipe.Run) -> Iterator[list[Any]]:
    """Read a run's results in a thread; they are complete when the block is left."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(run.results()))
    thread.start()
    yield got
    thread.join()


def identity(x: int) -> int:
    return x


def push_for_ever(run: mpipe.Run, pushed: list[int]) -> None:
    while True:
        run.push(len(pushed))
        pushed.append(len(pushed))
        run.stats()


def test_wherever_an_exception_comes_in_push_some_first_items_are_in_each_once() -> None:
    pipeline = mpipe.Pipeline().add_map("a", identity, workers=1).add_map("b", identity, workers=1)
    pipeline.add_map("both", identity, workers=1).connect("a", "both").connect("b", "both")
    run = pipeline.start(results=True)
    with reading(run) as got:

        def push(number: int) -> bool:
            batch = 3 * number
            try:
                with at_line(number):
                    run.push(batch, batch + 1, batch + 2)
            except Interrupt:
                return True
            return False

        lines = each_line(push)
        stats = run.drain()
    assert lines > 100
    both = sorted(got)
    assert both[::2] == both[1::2]  # each item once from each of the two stages, or from none
    accepted = set(both)
    for number in range(1, lines + 1):
        items = [3 * number + i in accepted for i in range(3)]
        assert items == sorted(items, reverse=True)
    assert {edge.received for edge in stats.edges[:2]} == {len(accepted)}
    assert all(stage.processed == stage.received for stage in stats.stages.values())


def test_wherever_an_exception_comes_in_push_ordered_and_dropping_stages_agree_on_what_is_in() -> (
    None
):
    pipeline = mpipe.Pipeline().add_map("keep", identity, workers=1)
    pipeline.add_map("drop", identity, workers=1, buffer_size=1, drop_on_full=True)
    pipeline.add_map("order", identity, workers=1, ordered=True)
    pipeline.connect("keep", "order").connect("drop", "order")
    run = pipeline.start(results=True)
    with reading(run) as got:

        def push(number: int) -> bool:
            try:
                with at_line(number):
                    run.push(2 * number, 2 * number + 1)
            except Interrupt:
                return True
            return False

        each_line(push)
        stats = run.drain()
    assert got == sorted(got)
    edges = {(edge.source, edge.target): edge for edge in stats.edges}
    kept, dropping = edges[None, "keep"], edges[None, "drop"]
    assert kept.dropped == 0
    assert kept.received == len(set(got))
    assert dropping.received + dropping.dropped == kept.received
    assert len(got) == kept.received + dropping.received


def test_wherever_an_exception_comes_in_results_the_next_call_goes_on_with_the_next_item() -> None:
    count = 3000
    run = mpipe.Pipeline().add_map("a", identity, workers=1).start(results=True)
    pushing = threading.Thread(target=lambda: (run.push(*range(count)), run.close()))
    pushing.start()
    got: list[int] = []
    number, ended = 0, False
    while not ended:
        number, before = number % 120 + 1, len(got)
        results = run.results()
        with contextlib.suppress(Interrupt), at_line(number):
            got.extend(islice(results, 10))
            ended = len(got) < before + 10
        del results
    pushing.join()
    assert got == list(range(count))
    assert run.drain().stages["a"].processed == count


def test_a_handler_that_reads_reads_or_is_told_that_reading_is_under_way() -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1, buffer_size=20).start(results=True)
    pushing = threading.Thread(target=lambda: (run.push(*range(1500)), run.close()))
    pushing.start()
    got, refused = [], []

    def read() -> None:
        try:
            got.extend(islice(run.results(), 3))
        except mpipe.MPipeError as error:
            refused.append(str(error))

    number, before = 0, -1
    while len(got) > before:
        number, before = number % 120 + 1, len(got)
        results = run.results()
        with at_line(number, read):
            got.extend(islice(results, 5))
        del results
    pushing.join()
    assert sorted(got) == list(range(1500))
    assert set(refused) == {"results() was called in the middle of another call of its thread"}
    run.drain()


def test_wherever_a_handler_listens_to_the_coordinator_no_message_is_lost() -> None:
    def listen(number: int) -> bool:
        ours, theirs = socket_pair()
        coordinator = Child(subprocess.Popen(["sleep", "60"]), ours, origin=None)
        link = Link(coordinator)
        control.send(theirs, ("log", "one"))

        def listen_too() -> None:
            link.pump()
            control.send(theirs, ("drained", None))

        with at_line(number, listen_too) as lines:
            link.pump()
        theirs.close()
        link.pump()
        assert link.outcome == ("drained" if lines[0] >= number else "failed")
        coordinator.end()
        link.leave()
        return lines[0] >= number

    assert each_line(listen) > 15


def test_results_taken_one_by_one_are_all_results() -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1).start(results=True)
    with run:
        run.push(*range(500))
        assert [next(run.results()) for _ in range(500)] == list(range(500))


def test_wherever_an_exception_comes_in_drain_it_can_be_called_again() -> None:
    pipeline = mpipe.Pipeline().add_map("a", identity, workers=1)
    before = sorted(os.listdir("/proc/self/fd"))

    def drain(number: int) -> bool:
        run = pipeline.start()
        run.push(*range(10))
        interrupted = False
        try:
            with at_line(number, distinct=True):
                run.drain()
        except Interrupt:
            interrupted = True
            run.drain()
        stats = run.drain()
        assert (stats.state, stats.stages["a"].processed) == ("drained", 10)
        del run
        standby.end()
        assert sorted(os.listdir("/proc/self/fd")) == before
        return interrupted

    each_line(drain, step=29)


def test_a_handler_may_look_at_the_run_wherever_it_comes() -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1, on_error="dead_letter").start()
    seen = []

    def look() -> None:
        seen.append(run.stats().stages["a"].received)
        assert list(run.dead_letters()) == []

    def call(number: int) -> bool:
        with at_line(number, look, distinct=True) as lines:
            run.push(number)
            run.stats()
            list(run.dead_letters())
        return lines[0] >= number

    pushed = each_line(call)
    assert run.drain().stages["a"].processed == pushed
    assert seen == sorted(seen)


def test_a_handler_that_pushes_pushes_or_is_told_that_a_push_is_under_way() -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1).start(results=True)
    accepted, refused = [], []

    def push_more() -> None:
        try:
            run.push(-1)
            accepted.append(-1)
        except mpipe.MPipeError as error:
            refused.append(str(error))

    def call(number: int) -> bool:
        with at_line(number, push_more) as lines:
            run.push(number)
        accepted.append(number)
        return lines[0] >= number

    with reading(run) as got:
        each_line(call)
        run.drain()
    assert sorted(got) == sorted(accepted)
    assert accepted.count(-1) > 0
    assert set(refused) == {"push() was called in the middle of another call of its thread"}


@pytest.mark.parametrize("number", [1, 20, 40, 60, 100, 10_000])
def test_a_handler_that_closes_ends_the_input_wherever_it_comes(number: int) -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1, buffer_size=5).start(results=True)
    pushed: list[int] = []
    with reading(run) as got, at_line(number, run.close), pytest.raises(mpipe.Closed):
        push_for_ever(run, pushed)
    assert run.drain().state == "drained"
    assert got[: len(pushed)] == pushed
    assert len(got) <= len(pushed) + 1


@pytest.mark.parametrize("number", [1, 20, 40, 60, 100, 10_000])
def test_a_handler_that_cancels_ends_everything_wherever_it_comes(number: int) -> None:
    pipeline = mpipe.Pipeline().add_map("a", lambda _: time.sleep(0.001), workers=2, buffer_size=5)
    run = pipeline.start()
    wait_until(lambda: all(worker.pid for worker in run.stats().stages["a"].workers))
    pids = [worker.pid for worker in run.stats().stages["a"].workers]
    with at_line(number, run.cancel), pytest.raises(mpipe.Cancelled):
        push_for_ever(run, [])
    assert_gone(pids)
    with pytest.raises(mpipe.Cancelled):
        run.drain()
    assert run.stats().state == "cancelled"


def test_a_handler_that_drains_in_the_middle_of_a_push_is_told_so() -> None:
    run = mpipe.Pipeline().add_map("a", identity, workers=1).start()
    told = []

    def drain() -> None:
        with contextlib.suppress(mpipe.Closed):
            with pytest.raises(mpipe.MPipeError, match="in the middle of another call"):
                run.drain()
            told.append(True)

    with at_line(60, drain):
        run.push(1)
    assert told
    assert run.drain().stages["a"].processed == 1


@pytest.mark.filterwarnings(  # an alarm in a finaliser: Python says that it ignores it
    r"ignore:(?s).*\bInterrupt\b:pytest.PytestUnraisableExceptionWarning"
)
def test_alarms_at_random_while_pushing_lose_and_double_nothing() -> None:
    def alarm(number: int, frame: object) -> None:
        raise Interrupt

    run = mpipe.Pipeline().add_map("a", identity, workers=1, buffer_size=50).start(results=True)
    before = signal.signal(signal.SIGALRM, alarm)
    chance, item, alarms = random.Random(1), 0, 0
    with reading(run) as got:
        while alarms < 300:
            try:
                # Python ignores what is raised in a finaliser: then another alarm comes
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.002), 1.0)
                while True:
                    item += 1
                    run.push(item)
            except Interrupt:
                alarms += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stats = run.drain().stages["a"]
    assert got == sorted(set(got))
    assert item - alarms <= len(got) <= item
    assert stats.received == stats.processed == len(got)


def test_a_caller_that_ignores_its_children_and_dies_of_broken_pipes_gets_errors_and_results() -> (
    None
):
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ignored = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        assert list(mpipe.imap(identity, range(5), workers=1)) == list(range(5))
        run = mpipe.Pipeline().add_map("a", time.sleep, workers=1).start()
        run.push(60)
        wait_until(lambda: run.stats().stages["a"].workers[0].pid)
        os.kill(run.stats().stages["a"].workers[0].pid, signal.SIGKILL)
        run.cancel()
        status = 0
    finally:
        os._exit(status)
