"""The coordinator of a drained run stays for the next one, as good as new, and goes by itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import assert_gone, coordinator_with, run_program, wait_until

import mpipe
from mpipe.engines import standby
from mpipe.runtime import control


def coordinator(look: Callable[[], Any] = lambda: None) -> tuple[int, Any]:
    """Run a pipeline: the pid of its coordinator, and what `look` returns in its worker."""
    (seen,) = mpipe.imap(lambda _: (os.getppid(), look()), [0], workers=1)
    return seen


def of_another_kind() -> int:
    """The coordinator of a run that uses what `imap` does not."""
    pipeline = mpipe.Pipeline()
    pipeline.add_stage(
        "breaks",
        lambda x: [1 // x],
        workers=2,
        on_error="dead_letter",
        breaker=mpipe.CircuitBreaker(),
    )
    pipeline.add_stage("ordered", lambda x: [os.getppid()], workers=1, ordered=True, timeout=60)
    pipeline.connect("breaks", "ordered")
    with pipeline.start(results=True, start_method="spawn") as run:
        run.push(1, 0)
        (pid,) = [next(run.results())]
        run.close()
        assert list(run.results()) == []
    assert len(list(run.dead_letters())) == 1
    return pid


# It serves one run after another.


def test_runs_in_a_row_have_the_same_coordinator_whatever_they_are() -> None:
    first, _ = coordinator()
    assert {of_another_kind(), coordinator()[0], of_another_kind()} == {first}


def test_hundreds_of_runs_leave_nothing_in_caller_and_coordinator() -> None:
    def left(pid: int) -> tuple[list[int], int, list[str]]:
        process, maps = psutil.Process(pid), Path(f"/proc/{pid}/maps").read_text()
        children = [child.pid for child in process.children(recursive=True)]
        return children, process.num_fds(), [at for at in maps.splitlines() if "/memfd:" in at]

    pid, _ = coordinator()
    idle = ([], 5, [])  # standard ones, the line, the pidfd of its caller
    wait_until(lambda: left(pid) == idle)
    before, memory = left(os.getpid()), psutil.Process(pid).memory_info().rss
    for _ in range(300):
        assert coordinator()[0] == pid
    wait_until(lambda: left(pid) == idle)
    assert left(os.getpid()) == before
    assert psutil.Process(pid).memory_info().rss - memory < 1 << 20


def test_a_worker_finds_nothing_that_the_run_before_has_left() -> None:
    def look() -> tuple[int, set[str]]:
        return len(os.listdir("/proc/self/fd")), set(sys.modules)

    first, (descriptors, modules) = coordinator(look)
    of_another_kind()
    again, (descriptors_again, modules_again) = coordinator(look)
    assert (again, descriptors_again) == (first, descriptors)
    more = {name.split(".")[0] for name in modules_again - modules}
    assert more <= {"mpipe", *sys.stdlib_module_names}, "what mpipe itself needs, nothing else"


def test_cpu_time_is_that_of_the_run_alone() -> None:
    def cpu() -> tuple[float, float]:
        run = mpipe.Pipeline().add_map("a", abs, workers=1).start(results=True)
        run.push(1)
        next(run.results())
        return run.stats().cpu, run.drain().cpu

    (_, afresh), (running, second) = cpu(), cpu()
    assert 0 <= running < afresh
    assert 0 < second < afresh


# A new one is started whenever anything would be different.


@contextmanager
def environment() -> Iterator[Callable[[], Any]]:
    os.environ["MPIPE_TEST_MORE"] = "more"
    yield lambda: os.environ.get("MPIPE_TEST_MORE")
    del os.environ["MPIPE_TEST_MORE"]


@contextmanager
def directory() -> Iterator[Callable[[], Any]]:
    before = os.getcwd()
    os.chdir("/")
    yield os.getcwd
    os.chdir(before)


@contextmanager
def module_path() -> Iterator[Callable[[], Any]]:
    sys.path.append("/nowhere")
    yield lambda: "/nowhere" in sys.path
    sys.path.remove("/nowhere")


@contextmanager
def mask() -> Iterator[Callable[[], Any]]:
    before = os.umask(0o123)
    yield lambda: os.umask(0)
    os.umask(before)


@contextmanager
def stack_limit() -> Iterator[Callable[[], Any]]:
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 22, before[1]))
    yield lambda: resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, before)


@contextmanager
def affinity() -> Iterator[Callable[[], Any]]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield lambda: os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)


@contextmanager
def ignored_signal() -> Iterator[Callable[[], Any]]:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield lambda: signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


SURROUNDINGS = [environment, directory, module_path, mask, stack_limit, affinity, ignored_signal]


@pytest.mark.parametrize("change", SURROUNDINGS)
def test_what_has_changed_in_the_caller_has_changed_in_the_next_run(change: Any) -> None:
    first, _ = coordinator()
    with change() as look:
        other, seen = coordinator(look)
        assert coordinator(look) == (other, seen)
        before = look()  # the first look at the umask changes it
        assert seen == before
    assert len({first, other, coordinator()[0]}) == 3


def test_niceness_too() -> None:
    program = """
        import mpipe, os
        look = lambda _: (os.getppid(), os.getpriority(os.PRIO_PROCESS, 0))
        ((first, nice),) = mpipe.imap(look, [0], workers=1)
        os.nice(1)
        ((other, nicer),) = mpipe.imap(look, [0], workers=1)
        print(first != other, nicer - nice)
    """
    assert run_program(program) == "True 1\n"


def test_what_workers_print_goes_where_the_caller_prints_at_that_time(tmp_path: Path) -> None:
    program = f"""
        import mpipe, os
        def say(text):
            os.write(1, text.encode())
            return os.getppid()
        pids = [*mpipe.imap(say, ["to the pipe\\n"], workers=1)]
        os.dup2(os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT), 1)
        for text in ["to the file\\n", "and again\\n"]:
            pids += mpipe.imap(say, [text], workers=1)
        assert len({{*pids}}) == 1, pids
    """
    assert run_program(program) == "to the pipe\n"
    assert (tmp_path / "file").read_text() == "to the file\nand again\n"


def test_modules_written_since_the_last_run_are_found(tmp_path: Path) -> None:
    """Even if nothing but a look can tell that there is something new in their directory."""

    def load(name: str) -> int:
        return int(__import__(name).number)

    sys.path.insert(0, str(tmp_path))
    try:
        for number in range(3):
            (tmp_path / f"written_{number}.py").write_text(f"number = {number}\n")
            os.utime(tmp_path, (1e9, 1e9))
            assert list(mpipe.imap(load, [f"written_{number}"], workers=1)) == [number]
    finally:
        sys.path.remove(str(tmp_path))


# It does not stay after anything but a clean end.


def cancelled() -> None:
    mpipe.Pipeline().add_map("a", abs, workers=1).start().cancel()


def failed() -> None:
    with pytest.raises(mpipe.StageError):
        list(mpipe.imap(abs, ["not a number"], workers=1))


def left_early() -> None:
    outputs = mpipe.imap(abs, iter(int, 1), workers=1)
    assert next(outputs) == 0
    outputs.close()


@pytest.mark.parametrize("end", [cancelled, failed, left_early])
def test_nothing_stays_of_a_run_that_did_not_drain(end: Callable[[], None]) -> None:
    pid, _ = coordinator()
    end()
    assert_gone([pid])
    assert coordinator()[0] != pid


def test_it_stays_only_while_it_holds_nothing_of_a_run() -> None:
    with coordinator_with(FORGETFUL):
        pid, _ = coordinator()
        assert_gone([pid])
        assert coordinator()[0] != pid


def test_a_cancel_that_crosses_the_end_of_the_run_is_a_cancel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = mpipe.Pipeline().add_map("a", abs, workers=1).start()
    link = run._engine._link
    run.close()
    wait_until(lambda: link._readable.poll(0))  # the coordinator has said that it is drained
    with monkeypatch.context() as patch:
        patch.setattr(link, "pump", lambda: None)  # but nobody has listened
        link.stop("now")
    link.pump()
    assert (link.outcome, link.stays) == ("cancelled", False)
    with pytest.raises(mpipe.Cancelled):
        run.drain()
    assert_gone([link.coordinator_pid])


FORGETFUL = """
    from mpipe.runtime.coordinator import Coordinator
    Coordinator.close = lambda self: None
"""


def test_of_two_runs_at_once_one_coordinator_stays() -> None:
    pipeline = mpipe.Pipeline().add_map("a", abs, workers=1)
    runs = [pipeline.start() for _ in range(3)]
    pids = [run._engine._link.coordinator_pid for run in runs]
    assert len({*pids}) == 3
    threads = [threading.Thread(target=run.drain) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(standby._kept) <= 1
    assert_gone([pid for pid in pids if pid not in {c.process.pid for c in standby._kept}])


# It goes by itself.

STAYS_SHORTLY = """
    from mpipe.runtime import service
    service.STAY_S = 0.1
"""


def ended(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_goes_when_no_run_comes_and_the_next_run_reaps_it() -> None:
    with coordinator_with(STAYS_SHORTLY):
        pid, _ = coordinator()
        wait_until(lambda: ended(pid))
        assert coordinator()[0] != pid
        assert_gone([pid])


CALLER = """
    import mpipe, os, sys
    (pid,) = mpipe.imap(lambda _: os.getppid(), [0], workers=1)
    print(pid, flush=True)
    {then}
"""


@contextmanager
def caller(then: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program that has the coordinator of a run and then does something else."""
    command = [sys.executable, "-c", textwrap.dedent(CALLER).format(then=then)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        yield it, int(it.stdout.readline())


def test_it_goes_when_its_caller_is_killed() -> None:
    with caller("sys.stdin.read()") as (process, pid):
        assert psutil.pid_exists(pid)
        process.kill()
        assert_gone([pid], within=1.0)


def test_it_goes_when_its_caller_is_killed_that_has_forked() -> None:
    """The child holds the caller's end of the line."""
    with caller("os.fork(); sys.stdin.read()") as (process, pid):
        wait_until(lambda: len(psutil.Process(process.pid).children()) == 2)
        process.kill()
        assert_gone([pid], within=1.0)


def test_it_is_gone_when_its_caller_has_exited() -> None:
    with caller("") as (process, pid):
        assert process.wait() == 0
        assert not psutil.pid_exists(pid)


def test_a_caller_whose_start_ignored_signals_of_the_c_library_is_served_by_it_too() -> None:
    """As posix_spawn does; the library changes that with the first thread that it makes."""
    program = """
        import os, sys
        code = "import mpipe, os; print(len({pid for _ in range(3) for pid in"
        code += " mpipe.imap(lambda _: os.getppid(), [0], workers=1)}))"
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        os.waitpid(child, 0)
    """
    assert run_program(program) == "1\n"


def test_a_child_of_the_caller_leaves_it_alone() -> None:
    program = """
        import mpipe, os, sys
        def coordinator():
            (pid,) = mpipe.imap(lambda _: os.getppid(), [0], workers=1)
            return pid
        first = coordinator()
        if not (child := os.fork()):
            assert coordinator() != first
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), coordinator() == first)
    """
    assert run_program(program, "-Werror") == "7 True\n"


def test_that_of_a_run_in_a_worker_is_gone_with_the_worker() -> None:
    def inner(_: int) -> int:
        return coordinator()[0]

    (pid,) = mpipe.imap(inner, [0], workers=1)
    assert not psutil.pid_exists(pid)


# Whatever happens as it is given the next run, that run has a coordinator.

DIES = {
    "before it hears of it": "hears",
    "with the descriptors in hand": "has them in hand",
    "with the descriptors in place": "has them in place",
    "after it said that it is ready": "is ready",
}
DYING = """
    import os, socket
    from mpipe.runtime import control
    heard, receive, send, dup2 = 0, control.receive_descriptors, control.send, os.dup2

    def die_if(when):
        if heard == {run} and when == {when!r}:
            os._exit(1)

    def receive_or_die(line):
        global heard
        heard += b"here" in line.recv(1 << 16, socket.MSG_PEEK)
        die_if("hears")
        return receive(line)

    def dup2_or_die(*args, **options):
        die_if("has them in hand")
        return dup2(*args, **options)

    def send_or_die(line, message, flags=0):
        is_ready = message[0] == "ready"
        if is_ready:
            die_if("has them in place")
        send(line, message, flags)
        if is_ready:
            die_if("is ready")

    control.receive_descriptors, os.dup2, control.send = receive_or_die, dup2_or_die, send_or_die
"""


@pytest.mark.parametrize("run", [1, 2], ids=["the first run", "the next run"])
@pytest.mark.parametrize("when", DIES)
def test_wherever_it_dies_the_run_has_a_new_one(
    run: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    serve, begin = standby.Child.serve, standby.Child.begin

    def note(child: standby.Child, *args: Any) -> bool:
        given.append(child.process.pid)
        return serve(child, *args)

    def begin_late(child: standby.Child, file: int) -> None:
        if len(given) == run and child.process.pid == given[-1]:
            wait_until(lambda: ended(given[-1]))
        begin(child, file)

    monkeypatch.setattr(standby.Child, "serve", note)
    monkeypatch.setattr(standby.Child, "begin", begin_late)
    with coordinator_with(DYING.format(run=run, when=DIES[when])):
        pids = [coordinator()[0] for _ in range(run)]
        assert len(given) == run
        assert (pids[0] == given[0]) is (run == 2)
        assert pids[-1] != given[-1]
        assert_gone([given[-1]])


@pytest.mark.parametrize("first", ["it goes", "the descriptors are sent"])
def test_when_its_time_is_over_just_as_the_next_run_comes_there_is_a_new_one(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = control.send_descriptors

    def send_just_then(line: Any, fds: Any) -> None:
        if first == "it goes":
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: ended(pid))
            send(line, fds)
        else:
            send(line, fds)
            os.kill(pid, signal.SIGCONT)

    with coordinator_with(TIME_OVER):
        pid, _ = coordinator()
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        monkeypatch.setattr(control, "send_descriptors", send_just_then)
        assert coordinator()[0] != pid
        assert_gone([pid])


TIME_OVER = """
    import os, signal
    from mpipe.runtime import service
    service.STAY_S = 0.01
    leave = service.leave
    def leave_late(status):
        os.kill(os.getpid(), signal.SIGSTOP)
        leave(status)
    service.leave = leave_late
"""


def test_when_it_does_not_answer_the_next_run_has_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standby, "_READY_S", 0.1)
    pid, _ = coordinator()
    os.kill(pid, signal.SIGSTOP)
    assert coordinator()[0] != pid
    assert_gone([pid])


def test_when_there_are_too_many_descriptors_the_next_run_has_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "MOST_DESCRIPTORS", 10)
    pid, _ = coordinator()
    assert coordinator()[0] != pid
    assert_gone([pid])


def test_when_not_all_descriptors_arrive_or_one_is_in_the_way_the_next_run_has_a_new_one() -> None:
    for change in ("fds[:-1], numbers", "fds, (3, *numbers[1:])", "fds, (fds[-1], *numbers[1:])"):
        code = f"""
            from mpipe.runtime import control
            receive = control.receive_descriptors
            def receive_other(line):
                fds, (message, numbers) = receive(line)
                if fds:
                    fds, numbers = {change}
                return fds, (message, numbers)
            control.receive_descriptors = receive_other
        """
        with coordinator_with(code):
            pid, _ = coordinator()
            assert coordinator()[0] != pid
            assert_gone([pid])


def test_when_the_caller_has_closed_its_line_the_next_run_has_a_new_one() -> None:
    pid, _ = coordinator()
    (kept,) = standby._kept
    os.close(kept.line.fileno())
    assert coordinator()[0] != pid
    assert_gone([pid])


def test_what_was_said_twice_to_the_run_before_does_not_reach_the_next() -> None:
    pid, _ = coordinator()
    (kept,) = standby._kept
    for message in (("close", None), ("cancelled", "late")):
        control.send(kept.line, message)
    assert coordinator()[0] == pid
