"""What a stage's function has started ends with its worker, unless it was meant to stay."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
from helpers import assert_gone, wait_until

import mpipe

kept: list[object] = []
"""What a function in a worker started, so that no finalizer ends it."""


def executor() -> list[int]:
    pool = concurrent.futures.ProcessPoolExecutor(2)
    pids = list(pool.map(_pid, range(2)))
    kept.append(pool)
    return pids


def _pid(x: int) -> int:
    return os.getpid()


def manager() -> list[int]:
    server = multiprocessing.Manager()
    kept.append(server)
    return [child.pid for child in psutil.Process().children()]


def background_job() -> list[int]:
    return [int(subprocess.check_output("sleep 600 >/dev/null & echo $!", shell=True))]


def deaf_to_sigterm() -> list[int]:
    """Programs that ignore it, each started by the one before."""
    program = "trap '' TERM; echo $$; sh -c 'echo $$; sleep 600 >/dev/null & echo $!; wait'"
    shell = subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE)
    kept.append(shell)
    assert shell.stdout is not None
    return [int(shell.stdout.readline()) for _ in range(3)]


def forks_without_end() -> list[int]:
    """It ignores SIGTERM, too, and is another process every few milliseconds."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(2000):  # some 20 s, if nobody ends it
            time.sleep(0.01)
            if os.fork():
                os._exit(0)
        os._exit(0)
    return []


STARTS = (executor, manager, background_job, deaf_to_sigterm, forks_without_end)


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__)
def test_what_a_function_has_started_is_gone_when_the_run_is_drained(
    start: Callable[[], list[int]],
) -> None:
    outputs = mpipe.Pipeline().add_stage("start", lambda x: start(), workers=1).run([1])
    assert_gone(list(outputs), within=0)


def test_it_is_gone_when_the_run_was_cancelled_or_has_failed() -> None:
    def work(x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return subprocess.Popen(["sleep", "600"]).pid

    pipeline = mpipe.Pipeline().add_map("work", work, workers=2)
    for end in ("cancel", "fail"):
        run = pipeline.start(results=True)
        run.push(*range(10))
        results = run.results()
        pids = [next(results) for _ in range(10)]
        if end == "cancel":
            run.cancel()
        else:
            run.push(-1)
            with pytest.raises(mpipe.StageError):
                run.drain()
        assert_gone(pids, within=0)


def test_when_a_worker_is_killed_what_it_has_started_ends_and_what_others_have_goes_on() -> None:
    def work(x: int) -> tuple[int, int]:
        time.sleep(0.01)
        return os.getpid(), subprocess.Popen(["sleep", "600"]).pid

    run = mpipe.Pipeline().add_map("work", work, workers=2).start(results=True)
    results, started = run.results(), dict[int, list[int]]()
    while len(started) < 2:
        run.push(0)
        worker, pid = next(results)
        started.setdefault(worker, []).append(pid)
    killed, other = started
    os.kill(killed, signal.SIGKILL)
    assert_gone(started[killed])
    assert all(psutil.pid_exists(pid) for pid in started[other])
    run.drain()
    assert_gone(started[other], within=0)


def test_a_program_that_hangs_ends_with_the_worker_that_is_killed_at_its_timeout(
    tmp_path: Path,
) -> None:
    def work(x: int) -> int:
        if x == 5:
            with subprocess.Popen(["sleep", "600"]) as program:
                (tmp_path / "pid").write_text(str(program.pid))
        return x

    pipeline = mpipe.Pipeline()
    pipeline.add_map("work", work, workers=1, timeout=0.3, max_crashes=1, on_error="skip")
    run = pipeline.start(results=True)
    run.push(*range(10))
    results = run.results()
    assert sorted(next(results) for _ in range(9)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert_gone([int((tmp_path / "pid").read_text())])
    assert run.drain().stages["work"].failed == 1


def test_what_a_worker_has_started_goes_on_when_other_workers_end() -> None:
    class Second(mpipe.Stage):
        def setup(self) -> None:
            (self.server,) = background_job()

        def process(self, x: int) -> list[bool]:
            time.sleep(0.1)
            return [psutil.pid_exists(self.server)]

    pipeline = (
        mpipe.Pipeline().add_map("first", abs, workers=3).add_stage("second", Second, workers=1)
    )
    outputs = pipeline.connect("first", "second").run(range(15))
    assert list(outputs) == [True] * 15


def test_a_replacement_keeps_what_it_starts_while_that_of_the_worker_before_ends() -> None:
    class Serve(mpipe.Stage):
        def setup(self) -> None:
            (self.server,) = background_job()
            deaf_to_sigterm()

        def process(self, x: int) -> list[bool]:
            time.sleep(0.05)
            return [psutil.pid_exists(self.server)]

    pipeline = mpipe.Pipeline().add_stage("serve", Serve, workers=1, max_items=20)
    assert list(pipeline.run(range(60))) == [True] * 60


def test_a_signal_to_the_process_group_of_a_function_reaches_its_worker_alone(
    tmp_path: Path,
) -> None:
    def work(x: int) -> int:
        if x == 5 and not (flag := tmp_path / "done").exists():
            flag.touch()
            os.system("kill 0")
            time.sleep(600)
        return x

    outputs = mpipe.Pipeline().add_map("work", work, workers=2).run(range(100))
    assert sorted(outputs) == list(range(100))


def test_a_process_that_leaves_the_group_is_left_alone() -> None:
    def start(x: int) -> int:
        """As daemons do: fork, let the parent exit, make a session."""
        program = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(600)"
        subprocess.run([sys.executable, "-S", "-c", f"print(end=''); {program}"], check=True)
        return 0

    before = set(psutil.pids())
    assert list(mpipe.imap(start, [1], workers=1)) == [0]
    daemons = [pid for pid in set(psutil.pids()) - before if is_ours(pid, "os.setsid()")]
    try:
        (daemon,) = daemons
        assert psutil.Process(daemon).status() != psutil.STATUS_ZOMBIE
    finally:
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)
        assert_gone(daemons)


def is_ours(pid: int, word: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return word in " ".join(psutil.Process(pid).cmdline())
    return False


def test_a_background_job_of_a_living_worker_does_its_work(tmp_path: Path) -> None:
    def start(x: int) -> int:
        return os.system(f"(sleep 1; touch {tmp_path}/{x}) &")

    with mpipe.Pipeline().add_map("start", start, workers=1).start(results=True) as run:
        run.push(*range(20))
        wait_until(lambda: len(list(tmp_path.iterdir())) == 20, within=30)


def test_what_cleans_up_behind_a_killed_worker_has_time_for_it() -> None:
    def work(x: int) -> str:
        if x == 0:
            kept.append(memory := SharedMemory(create=True, size=1))
            return memory.name
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    pipeline = mpipe.Pipeline()
    pipeline.add_map("work", work, workers=1, max_crashes=1, on_error="skip")
    (name,) = pipeline.run(range(2), ordered=True)
    assert not (Path("/dev/shm") / name).exists()
