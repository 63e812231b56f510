"""Deaths and faults on the processes engine: nothing lost, nothing twice, nothing left, no hang."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import assert_gone, coordinator_with, killing, started, wait_until

import mpipe
from mpipe.engines import standby


def once(path: Path) -> bool:
    """Whether this is the first call for `path`, by whichever process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_killed_in_the_middle_of_a_frame_changes_nothing(
    tmp_path: Path, start_method: str
) -> None:
    def work(x: int) -> list[int]:
        if x % 50 == 7 and once(tmp_path / str(x)):
            kill_self()
        return [x, -x]

    pipeline = mpipe.Pipeline().add_stage("work", work, workers=2, buffer_size=40)
    outputs = pipeline.run(range(200), start_method=start_method)
    assert Counter(outputs) == Counter([y for x in range(200) for y in (x, -x)])
    stats = outputs.stats().stages["work"]
    assert stats.restarts == 4
    assert (stats.received, stats.processed, stats.emitted) == (200, 200, 400)


@pytest.mark.parametrize("buffer_size", [1, 3, 40])
def test_workers_killed_at_random_change_nothing(buffer_size: int) -> None:
    options: dict[str, Any] = {"buffer_size": buffer_size, "max_crashes": 10**6}
    pipeline = mpipe.Pipeline()
    pipeline.add_stage("split", lambda x: [x, x + 1] if x % 3 else None, workers=2, **options)
    pipeline.add_map("left", lambda x: ("left", x), workers=2, **options)
    pipeline.add_stage("right", lambda x: [("right", x)] * (x % 3), workers=1, **options)
    pipeline.add_map("join", lambda x: x, workers=2, **options)
    for edge in (("split", "left"), ("split", "right"), ("left", "join"), ("right", "join")):
        pipeline.connect(*edge)
    numbers = range(3000)
    split = [y for x in numbers if x % 3 for y in (x, x + 1)]
    expected = Counter(("left", y) for y in split)
    expected.update(("right", y) for y in split for _ in range(y % 3))

    outputs = pipeline.run(numbers)
    with killing(outputs) as kills:
        got = Counter(outputs)
    assert got == expected
    assert kills
    for stage in outputs.stats().stages.values():
        assert stage.received == stage.processed
        assert stage.in_flight == 0


def test_an_item_that_kills_its_worker_is_failed_alone(tmp_path: Path) -> None:
    def work(x: int) -> int:
        if x == 57:
            os._exit(3)
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_map("work", work, workers=2, on_error="dead_letter", max_crashes=2)
    outputs = pipeline.run(range(200))
    assert sorted(outputs) == [x for x in range(200) if x != 57]
    (letter,) = outputs.dead_letters()
    assert (letter.item, letter.stage, letter.position) == (57, "work", "source item 57")
    assert "killed its worker 2 times" in letter.error
    assert outputs.stats().stages["work"].failed == 1


def test_an_item_that_kills_its_worker_fails_the_run_with_its_signal_and_position() -> None:
    def work(x: int) -> int:
        if x == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x

    pipeline = mpipe.Pipeline().add_map("work", work, workers=1)
    with pytest.raises(mpipe.WorkerDied, match=r"SIGSEGV.*source item") as died:
        list(pipeline.run(range(10)))
    assert (died.value.stage, died.value.worker, died.value.exitcode) == ("work", 0, -11)


def test_a_worker_that_dies_in_setup_again_and_again_fails_the_run() -> None:
    class Broken(mpipe.Stage):
        def setup(self) -> None:
            os._exit(7)

        def process(self, item: int) -> list[int]:
            return [item]

    pipeline = mpipe.Pipeline().add_stage("broken", Broken, workers=2)
    with pytest.raises(mpipe.WorkerDied, match=r"'broken'.*exit code 7.*set up"):
        list(pipeline.run(range(10)))


def test_an_exception_in_setup_fails_the_run_with_its_traceback() -> None:
    class Broken(mpipe.Stage):
        def setup(self) -> None:
            raise FileNotFoundError("model.bin")

        def process(self, item: int) -> list[int]:
            return [item]

    pipeline = mpipe.Pipeline().add_stage("broken", Broken(), workers=1)
    with pytest.raises(mpipe.StageError, match=r"could not be set up") as error:
        list(pipeline.run(range(10)))
    assert isinstance(error.value.__cause__, FileNotFoundError)
    assert 'raise FileNotFoundError("model.bin")' in error.value.remote_traceback


def test_a_dead_worker_of_a_stage_with_state_fails_the_run_rather_than_lose_it() -> None:
    class Total(mpipe.Stage):
        def setup(self) -> None:
            self.total = 0

        def process(self, item: int) -> None:
            self.total += item
            if item == 50:
                kill_self()

        def finish(self) -> list[int]:
            return [self.total]

    pipeline = mpipe.Pipeline().add_stage("total", Total, workers=1)
    with pytest.raises(mpipe.WorkerDied, match=r"'total'.*SIGKILL.*overrides finish"):
        list(pipeline.run(range(100)))


CALLER = """
    import os, signal, sys, time, mpipe
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    pipeline = mpipe.Pipeline()
    pipeline.add_map("a", lambda x: (time.sleep(0.001), x)[1], workers=2)
    pipeline.add_map("b", lambda x: x, workers=2).connect("a", "b")
    outputs = pipeline.run(iter(int, 1))
    for _ in range(50):
        next(outputs)
    pids = [w.pid for stage in outputs.stats().stages.values() for w in stage.workers]
    print(*pids, flush=True)
    for _ in outputs:
        pass
"""


def start_caller() -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CALLER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    coordinator = psutil.Process(pids[0]).ppid()
    return process, [coordinator, *pids]


def test_when_the_caller_is_killed_everything_goes_within_five_seconds() -> None:
    process, pids = start_caller()
    process.kill()
    process.communicate()
    assert_gone(pids, within=5.0)


def test_when_the_coordinator_is_killed_the_caller_learns_it_and_everything_goes() -> None:
    process, pids = start_caller()
    os.kill(pids[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert "CoordinatorDied" in errors
    assert process.returncode == 1
    assert_gone(pids, within=5.0)


def test_when_the_coordinator_is_killed_the_caller_learns_it_though_a_fork_holds_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does that another thread forks while the coordinator is being started."""
    held: list[int] = []
    make = standby.socket_pair

    def held_pair() -> Any:
        ours, theirs = make()
        held.append(os.dup(theirs.fileno()))
        return ours, theirs

    standby.end()
    monkeypatch.setattr(standby, "socket_pair", held_pair)
    run, pids = started(mpipe.Pipeline().add_map("a", abs, workers=1))
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(mpipe.CoordinatorDied):
        run.drain()
    assert_gone(pids)
    for fd in held:
        os.close(fd)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_ends_though_what_ended_it_left_a_thread_behind(start_method: str) -> None:
    def fn(x: int) -> int:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        raise asyncio.CancelledError

    pipeline = mpipe.Pipeline().add_map("a", fn, workers=1, max_crashes=1)
    with pytest.raises(mpipe.WorkerDied, match="exit code 1"):
        list(pipeline.run([1], start_method=start_method))


def test_ctrl_c_ends_the_run_and_everything_goes() -> None:
    process, pids = start_caller()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert "CoordinatorDied" not in errors
    assert_gone(pids, within=5.0)


def test_cancel_tears_stages_down_and_ends_workers_that_do_not_listen(tmp_path: Path) -> None:
    class Deaf(mpipe.Stage):
        def process(self, item: int) -> None:
            (tmp_path / f"started-{item}").touch()
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    continue

    class Polite(mpipe.Stage):
        def process(self, item: int) -> None:
            (tmp_path / f"started-{item}").touch()
            time.sleep(60)

        def teardown(self) -> None:
            (tmp_path / "torn-down").touch()

    pipeline = mpipe.Pipeline().add_stage("deaf", Deaf, workers=1)
    pipeline.add_stage("polite", Polite, workers=1)
    pipeline.add_map("join", lambda x: x, workers=1)
    pipeline.connect("deaf", "join").connect("polite", "join")
    run = pipeline.start()
    run.push(1, stage="deaf")
    run.push(2, stage="polite")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    pids = [w.pid for stage in run.stats().stages.values() for w in stage.workers]
    run.cancel()
    assert_gone(pids, within=5.0)
    assert (tmp_path / "torn-down").exists()
    stats = run.stats()
    assert stats.state == "cancelled"
    assert stats.stages["deaf"].in_flight == stats.stages["polite"].in_flight == 1
    with pytest.raises(mpipe.Cancelled):
        run.push(3, stage="deaf")


def test_many_runs_in_a_row_leave_nothing_behind() -> None:
    pipeline = mpipe.Pipeline().add_map("a", lambda x: x + 1, workers=1)
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(20):
        assert list(pipeline.run([turn])) == [turn + 1]
    standby.end()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_run_that_nobody_holds_any_more_goes_away() -> None:
    run = mpipe.Pipeline().add_map("a", lambda x: x + 1, workers=1).start()
    run.push(1)
    while not (pid := run.stats().stages["a"].workers[0].pid):
        time.sleep(0.01)
    del run
    gc.collect()
    assert_gone([pid], within=5.0)


def test_a_cancel_event_and_a_deadline_end_a_run_that_waits() -> None:
    pipeline = mpipe.Pipeline().add_map("slow", lambda _: time.sleep(60), workers=1)
    event = threading.Event()
    run = pipeline.start(cancel=event)
    run.push(1)
    threading.Timer(0.3, event.set).start()
    with pytest.raises(mpipe.Cancelled, match="cancel event"):
        run.drain()
    run = pipeline.start(deadline=0.5)
    run.push(1)
    with pytest.raises(mpipe.Cancelled, match=r"deadline of 0\.5 s"):
        run.drain()


def test_drain_with_a_timeout_can_be_tried_again(tmp_path: Path) -> None:
    opened = tmp_path / "open"

    def wait(x: int) -> int:
        while not opened.exists():
            time.sleep(0.01)
        return x

    run = mpipe.Pipeline().add_map("slow", wait, workers=1).start()
    run.push(1)
    with pytest.raises(mpipe.Timeout):
        run.drain(timeout=0.3)
    opened.touch()
    assert run.drain(timeout=30).stages["slow"].processed == 1


def slow_forks(forks: Path) -> str:
    """Code for a coordinator, which lets it write a byte into `forks` for each."""
    return f"""
    import os, time
    fork = os.fork
    def slow_fork():
        time.sleep(0.05)
        with open({str(forks)!r}, "a") as file:
            file.write("1")
        return fork()
    os.fork = slow_fork
    """


def test_a_cancel_is_heard_while_workers_are_being_started(tmp_path: Path) -> None:
    forks = tmp_path / "forks"
    with coordinator_with(slow_forks(forks)):
        run = mpipe.Pipeline().add_map("work", abs, workers=100).start()
        wait_until(forks.exists)
        run.cancel()
    assert forks.stat().st_size < 50


def test_a_source_may_end_while_workers_are_being_started(tmp_path: Path) -> None:
    with coordinator_with(slow_forks(tmp_path / "forks")):
        outputs = mpipe.Pipeline().add_map("work", abs, workers=10).run([-1])
        assert list(outputs) == [1]
