"""Stages with a circuit breaker, on real runs: what pauses, what goes on, that nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import assert_gone, killing, wait_until
from reference import assert_conserved, assert_drained

import mpipe
from mpipe import CircuitBreaker, Pipeline, Run
from mpipe.policy.breaker import PATIENCE

PATIENCE_S = 60.0
FOREVER = {"open_for": 1000, "max_open_for": 1000}
QUICK = {"window": 8, "min_calls": 4, "open_for": 0.05, "max_open_for": 0.1, "probes": 3}


Start = Callable[..., Run]


class Service:
    """What a stage's function depends on: works while the file `up` is there; counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.up = folder / "up"
        self.calls = folder / "calls"

    def __call__(self, item: Any) -> Any:
        self.note()
        if not self.up.exists():
            raise ConnectionError("the service is down")
        return item

    def note(self) -> None:
        """Count a call: appending a byte is atomic."""
        fd = os.open(self.calls, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(fd, b".")
        os.close(fd)

    @property
    def called(self) -> int:
        return self.calls.stat().st_size if self.calls.exists() else 0


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """One that is down."""
    return Service(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a pipeline, and ends its run whatever happens in the test."""
    runs: list[Run] = []

    def start(pipeline: Pipeline, engine: str = "processes", **options: Any) -> Run:
        runs.append(pipeline.start(engine, **options))
        return runs[-1]

    yield start
    while runs:
        runs.pop().cancel()


def breaker(run: Run, stage: str = "s") -> mpipe.BreakerStats:
    found = run.stats().stages[stage].breaker
    assert found is not None
    return found


def wait_for(run: Run, state: str, stage: str = "s") -> None:
    wait_until(lambda: breaker(run, stage).state == state, within=20.0)


class Pushing:
    """Pushes items from a thread of its own, because `push` may wait; keeps what ends it."""

    def __init__(self, run: Run, *items: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._push, args=(run, items))
        self._thread.start()

    def _push(self, run: Run, items: tuple[Any, ...]) -> None:
        try:
            run.push(*items)
        except mpipe.MPipeError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def one_stage(fn: Callable[[Any], Any], settings: dict[str, Any], **options: Any) -> Pipeline:
    options = {"workers": 1, "breaker": CircuitBreaker(**settings), **options}
    return Pipeline("p").add_map("s", fn, **options)


# Opening.


@pytest.mark.parametrize(
    ("pattern", "threshold", "calls"),
    [
        ("x", 0.2, 10),
        ("..x", 0.2, 10),
        ("....x", 0.2, None),
        ("....x", 0.19, 10),
        ("xxx.", 0.8, 11),
    ],
)
def test_with_one_worker_exactly_the_call_that_trips_is_the_last_one(
    engine: str, tmp_path: Path, pattern: str, threshold: float, calls: int | None, start: Start
) -> None:
    """The pattern of outcomes is that of items; x fails. Tripping calls were counted by hand."""
    service = Service(tmp_path)

    def fn(item: int) -> None:
        service.note()
        if pattern[item % len(pattern)] == "x":
            raise ValueError

    settings = {"window": 20, "min_calls": 10, "threshold": threshold, **FOREVER}
    run = start(one_stage(fn, settings, on_error="skip"), engine)
    pushing = Pushing(run, *range(100))
    if calls is None:
        pushing.join()
        assert run.drain(PATIENCE_S).stages["s"].received == service.called == 100
        assert breaker(run).trips == 0
        return
    wait_for(run, "open")
    with pytest.raises(AssertionError):
        wait_until(lambda: service.called > calls, within=0.1)
    assert service.called == calls
    assert breaker(run).trips == 1
    run.cancel()
    pushing.join()


def test_the_source_is_held_back_while_it_is_open(service: Service, start: Start) -> None:
    pulled, event = itertools.count(), threading.Event()

    def source() -> Iterator[int]:
        for _ in range(10_000):
            yield next(pulled)

    def read() -> None:
        with contextlib.suppress(mpipe.Cancelled):
            list(outputs)

    settings = {"window": 4, "min_calls": 4, **FOREVER}
    pipeline = one_stage(service, settings, on_error="skip", buffer_size=10)
    outputs = pipeline.run(source(), cancel=event)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: outputs.stats().stages["s"].workers[0].state == "paused", within=20.0)
        time.sleep(0.3)  # in which a source that is not held back yields all
        assert service.called == 4
        assert outputs.stats().stages["s"].received <= 4 + 5 + 10, "failed, in hand, and waiting"
    finally:
        event.set()
        reader.join(PATIENCE_S)
    assert next(pulled) <= 4 + 5 + 10 + 5 + 1, "and a frame that waits for room"


def test_a_stage_that_drops_on_full_goes_on_dropping_while_it_is_open(
    service: Service, start: Start
) -> None:
    pipeline = one_stage(
        service,
        {"window": 4, "min_calls": 4, **FOREVER},
        on_error="skip",
        buffer_size=5,
        drop_on_full=True,
    )
    pipeline.add_map("in", lambda n: n, workers=1).connect("in", "s")
    run = start(pipeline)
    run.push(*range(500))
    wait_for(run, "open")
    run.push(*range(500))
    wait_until(lambda: run.stats().stages["in"].processed == 1000)
    stats = run.stats().stages["s"]
    assert (stats.failed, stats.queued) == (4, 5)
    assert stats.dropped == 1000 - stats.received > 900
    service.up.touch()
    run.cancel()


def test_a_death_counts_as_an_error(tmp_path: Path, start: Start) -> None:
    service = Service(tmp_path)

    def fn(item: int) -> None:
        service.note()
        os._exit(3)

    pipeline = one_stage(
        fn, {"window": 4, "min_calls": 2, **FOREVER}, max_crashes=100, on_error="skip"
    )
    run = start(pipeline)
    run.push(1)
    wait_for(run, "open")
    wait_until(lambda: run.stats().stages["s"].workers[0].state == "paused", within=20.0)
    assert service.called == 2
    run.cancel()


# Going on.


def test_when_the_service_works_again_it_closes_and_nothing_is_lost(
    engine: str, service: Service, caplog: pytest.LogCaptureFixture, start: Start
) -> None:
    pipeline = one_stage(service, QUICK, retries=9, workers=2)
    with caplog.at_level(logging.WARNING, "mpipe"), start(pipeline, engine, results=True) as run:
        results: list[int] = []
        reader = threading.Thread(target=lambda: results.extend(run.results()))
        reader.start()
        pushing = Pushing(run, *range(300))
        wait_until(lambda: breaker(run).reopened >= 2, within=20.0)
        service.up.touch()
        pushing.join()
        stats = run.drain(PATIENCE_S)
        reader.join(PATIENCE_S)
    assert sorted(results) == list(range(300))
    assert_drained(stats, pipeline)
    found = stats.stages["s"].breaker
    assert found is not None
    assert (found.state, found.trips) == ("closed", 1)
    assert found.seconds_open > 3 * 0.045
    assert stats.stages["s"].blocked == 0.0
    log = "\n".join(caplog.messages)
    assert "stage 's': its circuit breaker opens: 4 of the last 4 calls failed" in log
    assert "last error: ConnectionError: the service is down" in log
    assert "is half-open: up to 3 calls are tried" in log
    assert "closes: 3 of 3 probes came through" in log


def test_an_outage_longer_than_an_items_retries_costs_no_item_that_is_probed(
    engine: str, service: Service, start: Start
) -> None:
    """Under "raise" a single item given up would fail the run."""
    settings = {**QUICK, "min_calls": 1, "threshold": 0.0, "open_for": 0.01, "max_open_for": 0.01}
    pipeline = one_stage(service, settings, retries=1, on_error="raise")
    with start(pipeline, engine) as run:
        pushing = Pushing(run, 1)
        wait_until(lambda: breaker(run).reopened > PATIENCE + 3, within=20.0)
        service.up.touch()
        pushing.join()
        stats = run.drain(PATIENCE_S)
    assert_drained(stats, pipeline)
    assert (stats.stages["s"].processed, stats.stages["s"].failed) == (1, 0)
    assert stats.stages["s"].retried == service.called - 1 > PATIENCE


def test_a_bad_item_at_the_head_holds_its_stage_only_for_so_many_trials(
    engine: str, tmp_path: Path, start: Start
) -> None:
    service = Service(tmp_path)

    def fn(item: int) -> int:
        if item >= 0:
            service(item)
        else:
            service.note()
            raise ValueError("bad")
        return item

    settings = {**QUICK, "min_calls": 4, "open_for": 0.01, "max_open_for": 0.01}
    pipeline = one_stage(fn, settings, on_error="dead_letter")
    with start(pipeline, engine, results=True) as run:
        run.push(1, 2, 3)
        pushing = Pushing(run, 4, -1, *range(10, 20))
        wait_for(run, "open")
        service.up.touch()
        pushing.join()
        run.close()
        assert sorted(run.results()) == list(range(10, 20))
        stats = run.drain(PATIENCE_S)
        letters = list(run.dead_letters())
    assert_drained(stats, pipeline)
    assert [letter.item for letter in letters] == [1, 2, 3, 4, -1]
    assert [letter.attempts for letter in letters] == [1, 1, 1, 1, PATIENCE + 1]


def test_exactly_the_probes_are_let_through_by_many_workers(tmp_path: Path, start: Start) -> None:
    service, go = Service(tmp_path), tmp_path / "go"

    def fn(item: int) -> int:
        service.note()
        if not service.up.exists():
            raise ConnectionError
        while not go.exists():
            time.sleep(0.005)
        return item

    settings = {**QUICK, "open_for": 2.0, "max_open_for": 30.0}
    run = start(one_stage(fn, settings, workers=5, retries=9, buffer_size=20))

    def states() -> Counter[str]:
        return Counter(worker.state for worker in run.stats().stages["s"].workers)

    pushing = Pushing(run, *range(40))
    wait_until(lambda: states() == {"paused": 5}, within=20.0)
    called = service.called
    service.up.touch()
    wait_until(lambda: states() == {"busy": 3, "paused": 2}, within=20.0)
    wait_until(lambda: service.called >= called + 3)
    assert (service.called, breaker(run).state) == (called + 3, "half-open")
    go.touch()
    pushing.join()
    assert run.drain(PATIENCE_S).stages["s"].processed == 40


@contextlib.contextmanager
def flapping(service: Service, seconds: float) -> Iterator[None]:
    """The service is down for eight calls, goes up and down for a while, then it stays up."""
    ended = threading.Event()

    def flap() -> None:
        while service.called < 8 and not ended.wait(0.01):
            continue
        until = time.monotonic() + 1.5
        while not ended.wait(seconds) and time.monotonic() < until:
            service.up.unlink() if service.up.exists() else service.up.touch()
        service.up.touch()

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_flapping_service_loses_and_doubles_nothing(service: Service) -> None:
    pipeline = one_stage(service, QUICK, workers=2, retries=1000, buffer_size=20)
    pipeline.add_map("out", lambda n: -n, workers=1).connect("s", "out")
    outputs = pipeline.run(range(2000))
    with flapping(service, 0.03):
        assert Counter(outputs) == Counter(-n for n in range(2000))
    stats = outputs.stats()
    assert_drained(stats, pipeline)
    found = stats.stages["s"].breaker
    assert found is not None
    assert found.trips + found.reopened > 1
    assert stats.stages["s"].failed == 0


# Deaths, stops and ends.


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_while_it_probes_does_not_wedge_the_breaker(
    tmp_path: Path, workers: int, start_method: str, start: Start
) -> None:
    service, killed = Service(tmp_path), tmp_path / "killed"

    def fn(item: int) -> int:
        if service.up.exists() and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(service(item))

    pipeline = one_stage(fn, QUICK, workers=workers, retries=50)
    run = start(pipeline, results=True, start_method=start_method)
    run.push(*range(50))
    wait_for(run, "open")
    service.up.touch()
    run.close()
    assert sorted(run.results()) == list(range(50))
    stats = run.drain(PATIENCE_S)
    assert_drained(stats, pipeline)
    assert stats.stages["s"].restarts >= 1


def test_a_pause_is_no_part_of_the_time_that_an_item_has_and_its_timeouts_are_errors(
    tmp_path: Path, start: Start
) -> None:
    """Calls hang while the service is down; a pause takes longer than a call may."""
    service = Service(tmp_path)

    def fn(item: int) -> int:
        service.note()
        while not service.up.exists():
            time.sleep(0.01)
        return item

    settings = {"window": 4, "min_calls": 2, "open_for": 2.0, "max_open_for": 2.0, "probes": 1}
    run = start(one_stage(fn, settings, timeout=0.3, max_crashes=100), results=True)
    run.push(*range(30))
    wait_until(lambda: run.stats().stages["s"].workers[0].state == "paused", within=20.0)
    time.sleep(0.6)  # longer than a call may take
    assert breaker(run).state == "open"
    assert run.stats().stages["s"].restarts == service.called == 2
    service.up.touch()
    run.close()
    assert sorted(run.results()) == list(range(30))
    assert run.drain(PATIENCE_S).stages["s"].processed == 30


def test_an_ordered_stage_sees_source_order_through_all_pauses_and_kills(
    service: Service, start: Start
) -> None:
    def work(item: int) -> list[int]:
        service(item)
        return [item] * (item % 3)

    pipeline = Pipeline().add_stage(
        "s",
        work,
        workers=3,
        buffer_size=15,
        retries=1000,
        max_crashes=1000,
        breaker=CircuitBreaker(**QUICK),
    )
    pipeline.add_map("out", lambda n: n, workers=1, ordered=True, buffer_size=15)
    pipeline.connect("s", "out")
    outputs = pipeline.run(range(400))
    with killing(outputs, "s"), flapping(service, 0.05):
        assert list(outputs) == [n for n in range(400) for _ in range(n % 3)]
    stats = outputs.stats()
    assert_conserved(stats, pipeline)
    assert (stats.state, stats.stages["s"].in_flight) == ("drained", 0)
    assert stats.stages["s"].restarts > 0


def test_state_with_a_snapshot_is_exact_through_all_pauses_and_kills(service: Service) -> None:
    class Total(mpipe.Stage):
        def setup(self) -> None:
            self.total = 0

        def process(self, item: int) -> list[int]:
            service(item)
            self.total += item
            return [self.total]

        def snapshot(self) -> int:
            return self.total

        def restore(self, state: int) -> None:
            self.total = state

    pipeline = Pipeline().add_stage(
        "s",
        Total,
        workers=1,
        buffer_size=15,
        retries=1000,
        max_crashes=1000,
        breaker=CircuitBreaker(**QUICK),
    )
    outputs = pipeline.run(range(400))
    with killing(outputs, "s"), flapping(service, 0.05):
        assert list(outputs) == list(itertools.accumulate(range(400)))
    stats = outputs.stats()
    assert_conserved(stats, pipeline)
    assert (stats.state, stats.stages["s"].in_flight) == ("drained", 0)
    assert stats.stages["s"].restarts > 0


def test_workers_killed_while_they_are_paused_blame_no_item(service: Service, start: Start) -> None:
    settings = {**QUICK, "open_for": 1000.0, "max_open_for": 1000.0}
    pipeline = one_stage(service, settings, retries=50, max_crashes=1)
    run = start(pipeline)
    run.push(*range(50))
    wait_for(run, "open")
    killed: set[int] = set()
    deadline = time.monotonic() + 30
    while len(killed) < 21:  # more than the deaths on one frame that fail a run
        assert time.monotonic() < deadline, f"no worker to kill after {len(killed)}"
        worker = run.stats().stages["s"].workers[0]
        if worker.state == "paused" and worker.pid and worker.pid not in killed:
            os.kill(worker.pid, signal.SIGKILL)
            killed.add(worker.pid)
        time.sleep(0.002)
    wait_until(lambda: run.stats().stages["s"].restarts == 21, within=20.0)
    wait_until(lambda: run.stats().stages["s"].workers[0].state == "paused", within=20.0)
    assert (run.stats().state, run.stats().stages["s"].failed) == ("running", 0)
    run.cancel()


def test_a_stopped_coordinator_stops_no_worker_of_a_closed_breaker(start: Start) -> None:
    def fn(item: int) -> int:
        if item % 10 == 0:
            raise ValueError
        return item

    pipeline = one_stage(fn, {"threshold": 0.5}, on_error="skip", buffer_size=20)
    run = start(pipeline)
    run.push(1)
    wait_until(lambda: run.stats().stages["s"].processed == 1)
    coordinator = psutil.Process(run.stats().stages["s"].workers[0].pid).parent()
    coordinator.suspend()
    try:
        run.push(*range(400))
        wait_until(lambda: run.stats().stages["s"].in_flight == 0, within=20.0)
        assert run.stats().stages["s"].failed == 40
    finally:
        coordinator.resume()
    assert run.drain(PATIENCE_S).stages["s"].processed == 361
    assert breaker(run).trips == 0


def test_drain_waits_while_it_is_open_and_may_be_tried_again(
    service: Service, start: Start
) -> None:
    pipeline = one_stage(service, QUICK, retries=9)
    run = start(pipeline)
    run.push(*range(10))
    wait_for(run, "open")
    with pytest.raises(mpipe.Timeout):
        run.drain(timeout=0.2)
    service.up.touch()
    assert run.drain(PATIENCE_S).stages["s"].processed == 10


def test_a_stage_that_has_handled_all_its_input_ends_whatever_its_breaker_says(
    engine: str, service: Service, start: Start
) -> None:
    settings = {"window": 4, "min_calls": 4, "give_up_after": 0.1, **FOREVER}
    pipeline = one_stage(service, settings, on_error="skip")
    pipeline.add_map("other", lambda n: time.sleep(0.3), workers=1)
    pipeline.add_map("end", lambda n: n, workers=1)
    pipeline.connect("s", "end").connect("other", "end")
    with start(pipeline, engine) as run:
        run.push(1, 2, 3, 4, stage="s")
        run.push(1, stage="other")
        stats = run.drain(PATIENCE_S)
    assert_drained(stats, pipeline)
    assert stats.stages["s"].failed == 4


@pytest.mark.parametrize("how", ["cancel", "deadline", "event"])
def test_a_run_that_is_stopped_while_it_is_paused_ends_and_tears_down(
    engine: str, tmp_path: Path, how: str, start: Start
) -> None:
    service = Service(tmp_path)

    class Caller(mpipe.Stage):
        def process(self, item: int) -> list[int]:
            return [service(item)]

        def teardown(self) -> None:
            (tmp_path / "torn down").touch()

    pipeline = Pipeline().add_stage(
        "s",
        Caller,
        workers=1,
        retries=99,
        breaker=CircuitBreaker(**{**QUICK, **FOREVER}),
    )
    event = threading.Event()
    deadline = 1.0 if engine == "inline" else 4.0  # which a busy machine needs to come so far
    options: dict[str, Any] = {"deadline": deadline} if how == "deadline" else {"cancel": event}
    run = start(pipeline, engine, **options)
    pushing = Pushing(run, 1)
    wait_for(run, "open")
    pids = [worker.pid for worker in run.stats().stages["s"].workers if engine == "processes"]
    if how == "cancel":
        threading.Timer(0.05, run.cancel).start()
    elif how == "event":
        event.set()
    pushing.join()
    with pytest.raises(mpipe.Cancelled):
        run.drain(PATIENCE_S)
    assert_gone(pids, within=5.0)
    assert (tmp_path / "torn down").exists()
    assert run.stats().stages["s"].in_flight == 1
    assert_conserved(run.stats(), pipeline)
    run.cancel()


def test_pauses_that_add_up_to_give_up_after_fail_the_run_by_an_error_that_says_what_to_do(
    engine: str, service: Service, start: Start
) -> None:
    pipeline = one_stage(service, {**QUICK, "give_up_after": 0.3}, retries=99)
    run = start(pipeline, engine)
    Pushing(run, *range(10)).join()
    with pytest.raises(
        mpipe.StageError,
        match=r"stage 's' gives up: .* open for 0\.3 s .*last error: ConnectionError: the service",
    ) as failure:
        run.drain(PATIENCE_S)
    assert failure.value.stage == "s"
    assert run.stats().state == "failed"
    found = breaker(run)
    assert found.seconds_open >= 0.3
    assert found.reopened >= 2
    assert_conserved(run.stats(), pipeline)


def test_a_stage_without_a_breaker_has_none(engine: str, start: Start) -> None:
    with start(Pipeline().add_map("s", abs, workers=1), engine) as run:
        run.push(1)
        assert run.stats().stages["s"].breaker is None
