"""A machine that has not enough of something: a clear error, nothing left, no endless retry."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from helpers import coordinator_with

import mpipe
from mpipe.transport.pipe import create_pipe, room_for


def square(x: int) -> int:
    return x * x


@contextmanager
def descriptors_limited_to(soft: int) -> Iterator[None]:
    """Allow this process, and what it starts, descriptors below `soft`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def no_gap_below() -> Iterator[int]:
    """Take all unused numbers of descriptors below the first one of the rest, which is given."""
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < max(in_use()):
            taken.append(os.dup(taken[0]))
        yield taken[-1] + 1
    finally:
        for fd in taken:
            os.close(fd)


def in_use() -> set[int]:
    listed = map(int, os.listdir("/proc/self/fd"))
    return {fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}  # not the listing's own


def test_whichever_descriptor_is_one_too_many_the_error_says_so_and_nothing_is_left() -> None:
    pipeline = mpipe.Pipeline().add_map("a", square, workers=1).add_map("b", square, workers=1)
    pipeline.connect("a", "b")
    failures: list[str] = []
    with no_gap_below() as first:
        before = in_use()
        for more in range(1, 100):
            with descriptors_limited_to(first + more):
                try:
                    assert list(pipeline.run(range(3))) == [0, 1, 16]
                    break
                except mpipe.MPipeError as error:
                    failures.append(str(error))
            assert in_use() == before
        else:
            pytest.fail("the run did not start with 100 descriptors")
    assert len(failures) > 20
    for failure in failures:
        assert re.search("could not be started.*ulimit -n", failure)


def test_many_workers_need_few_descriptors_of_the_caller() -> None:
    pipeline = mpipe.Pipeline().add_map("a", abs, workers=48)
    with descriptors_limited_to(max(in_use()) + 50):
        assert sorted(pipeline.run(range(100))) == list(range(100))


def test_workers_may_have_as_many_descriptors_as_the_caller_and_get_low_ones() -> None:
    def look(_: int) -> tuple[int, int]:
        with open(os.devnull) as file:
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0], file.fileno()

    stages = mpipe.Pipeline()
    stages.add_map("look", look, workers=30)
    with descriptors_limited_to(900):
        for limit, number in stages.run(range(60)):
            assert limit == 900
            assert number < 30  # not behind those by which the coordinator watches its workers


def test_a_caller_with_thousands_of_files_open_can_run_pipelines() -> None:
    program = """
        import os, resource, mpipe
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
        for _ in range(1500):
            os.open(os.devnull, os.O_RDONLY)
        print(*mpipe.imap(abs, [-1, -2], workers=1))
    """
    assert run(program) == "1 2\n"


def run(program: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1", "0, 2", "0, 1, 2"])
def test_a_caller_without_standard_files_can_run_pipelines(closed: str) -> None:
    program = f"""
        import os, sys
        out = os.dup(1)
        for fd in ({closed},):
            os.close(fd)
        import ctypes, mpipe
        def work(x):
            print("to nowhere, or to the real output", file=sys.stderr)
            ctypes.CDLL(None).puts(b"#")
            ctypes.CDLL(None).fflush(None)
            return -x
        os.write(out, str(list(mpipe.imap(work, range(3), workers=1))).encode())
    """
    assert run(program).replace("#\n", "") == "[0, -1, -2]"


def test_a_fork_that_fails_for_a_while_delays_the_run() -> None:
    code = """
        import errno, os
        fork, left = os.fork, [3]
        def failing():
            if left[0]:
                left[0] -= 1
                raise BlockingIOError(errno.EAGAIN, "no more processes")
            return fork()
        os.fork = failing
    """
    with coordinator_with(code):
        assert list(mpipe.imap(square, range(5), workers=2)) == [0, 1, 4, 9, 16]


FEW_FORKS = """
    import errno, os
    from mpipe.runtime import coordinator
    coordinator._SCARCITY_S = 1.0
    fork, calls = os.fork, []
    def failing():
        calls.append(0)
        if 2 < len(calls) <= {until}:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return fork()
    os.fork = failing
"""


def dies_once(flag: Path, x: int) -> int:
    if x == 30 and not flag.exists():
        flag.touch()
        os._exit(1)
    return x


def test_a_replacement_that_cannot_be_started_for_a_while_delays_the_run(tmp_path: Path) -> None:
    work = partial(dies_once, tmp_path / "died")
    with coordinator_with(FEW_FORKS.format(until=5)):
        outputs = mpipe.Pipeline().add_map("work", work, workers=2).run(range(200))
        assert sorted(outputs) == list(range(200))
    assert outputs.stats().stages["work"].restarts == 1


def test_a_replacement_that_can_never_be_started_fails_the_run_with_the_reason(
    tmp_path: Path,
) -> None:
    work = partial(dies_once, tmp_path / "died")
    reason = r"stage 'work' \(worker \d\) cannot be started: .*no more processes.*ulimit -u"
    with coordinator_with(FEW_FORKS.format(until=10**9)):
        outputs = mpipe.Pipeline().add_map("work", work, workers=2).run(range(200))
        with pytest.raises(mpipe.MPipeError, match=reason):
            list(outputs)


@pytest.mark.parametrize("name", ["os.fork", "os.pidfd_open"])
def test_workers_that_can_never_be_started_fail_the_run_with_the_reason(name: str) -> None:
    code = f"""
        import errno, os
        import mpipe.runtime.coordinator as coordinator
        coordinator._SCARCITY_S = 0.3
        open_pidfd, caller = os.pidfd_open, os.getppid()
        def failing(*pid):
            if pid == (caller,):
                return open_pidfd(caller)
            raise OSError(errno.{"EAGAIN" if "fork" in name else "EMFILE"}, "not one more")
        {name} = failing
    """
    with coordinator_with(code):
        run = mpipe.Pipeline().add_map("work", square, workers=2).start()
        reason = r"stage 'work' \(worker \d\) cannot be started: .*not one more; .*ulimit"
        with pytest.raises(mpipe.MPipeError, match=reason):
            run.drain(timeout=30)


def test_workers_whose_interpreter_is_gone_fail_the_run_at_once() -> None:
    with coordinator_with("sys.executable = '/nowhere/python'"):
        run = mpipe.Pipeline().add_map("work", square, workers=1).start(start_method="spawn")
        with pytest.raises(mpipe.MPipeError, match=r"'work' .*cannot be started.*/nowhere/python"):
            run.drain(timeout=30)


def test_a_coordinator_without_memory_says_why_it_failed() -> None:
    code = """
        import errno
        from mpipe.runtime.coordinator import Coordinator
        def broken(self):
            raise OSError(errno.ENOMEM, "no pages")
        Coordinator._advance = broken
    """
    with coordinator_with(code):
        run = mpipe.Pipeline().add_map("work", square, workers=1).start()
        with pytest.raises(mpipe.MPipeError, match=r"coordinator.*no pages.*memory"):
            run.drain(timeout=30)


def test_a_pipe_has_room_for_all_its_tokens_or_cannot_be_made() -> None:
    """An unprivileged user of more than a thousand pipes gets pipes of two pages."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        return
    status = 1
    try:
        if os.getuid() == 0:
            os.setuid(65534)
        pipes = [os.pipe() for _ in range(1100)]
        small = create_pipe(room_for(100))
        os.write(small.write, bytes(8 * 100))
        try:
            create_pipe(room_for(2000))
        except OSError as error:
            status = int("pipe-user-pages-soft" not in str(error) or error.errno != errno.EPERM)
        del pipes
    finally:
        os._exit(status)
