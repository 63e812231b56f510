"""Hostile surroundings: processes that are stopped, memory that is overwritten, user code that
closes descriptors, forks or leaves threads behind; and who can reach a run from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers import assert_gone, run_program, tree, wait_until

import mpipe
from mpipe.transport.channel import Channel
from mpipe.transport.gate import ERRORS, SUCCESSES


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


def started(pipeline: mpipe.Pipeline, results: bool = False) -> tuple[mpipe.Run, list[int]]:
    """A run, and its processes, when they have all begun: the coordinator, then the workers."""
    run = pipeline.start(results=results)

    def states() -> list[str]:
        return [worker.state for stage in run.stats().stages.values() for worker in stage.workers]

    wait_until(lambda: "starting" not in states())
    pids = tree(run._engine._link.coordinator_pid)
    assert len(pids) == 1 + len(states())
    return run, pids


class Held:
    """A function that notes which worker has item 0, and waits there until it may go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, x: int) -> int:
        if x == 0:
            (self.folder / "new").write_text(str(os.getpid()))
            (self.folder / "new").rename(self.folder / "worker")
            while not (self.folder / "go").exists():
                time.sleep(0.005)
        return x

    def hold(self, run: mpipe.Run) -> int:
        """Give some worker item 0; returns its pid."""
        run.push(0)
        wait_until((self.folder / "worker").exists)
        return int((self.folder / "worker").read_text())

    def let_go(self) -> None:
        (self.folder / "go").touch()


# Stopped processes.


def test_while_a_worker_is_stopped_the_others_go_on_and_then_it_does(tmp_path: Path) -> None:
    held = Held(tmp_path)
    run, _ = started(mpipe.Pipeline().add_map("work", held, workers=2, buffer_size=10), True)
    with stopped(held.hold(run)):
        held.let_go()
        pushing = threading.Thread(target=lambda: run.push(*range(1, 500)))
        pushing.start()
        results = run.results()
        assert sorted(next(results) for _ in range(499)) == list(range(1, 500))
        pushing.join()
    run.close()
    assert list(results) == [0]
    assert run.drain().stages["work"].processed == 500


def test_while_the_coordinator_is_stopped_items_flow() -> None:
    run, (coordinator, _) = started(mpipe.Pipeline().add_map("work", abs, workers=1), True)
    with stopped(coordinator):
        run.push(*range(100))
        results = run.results()
        assert [next(results) for _ in range(100)] == list(range(100))
    run.close()
    assert list(results) == []


@pytest.mark.parametrize("which", [0, 1], ids=["coordinator", "worker"])
def test_a_run_with_a_stopped_process_says_that_it_is_not_drained_and_can_be_cancelled(
    which: int,
) -> None:
    run, pids = started(mpipe.Pipeline().add_map("work", abs, workers=1))
    with stopped(pids[which]):
        with pytest.raises(mpipe.Timeout):
            run.drain(timeout=0.2)
        run.cancel()
        assert_gone(pids)


# Overwritten memory.


@pytest.mark.parametrize("damage", ["zeros", "noise", "torn", "of another slot"])
def test_a_frame_whose_header_was_overwritten_is_an_error_of_its_stage(
    tmp_path: Path, damage: str
) -> None:
    held = Held(tmp_path)
    run = mpipe.Pipeline().add_map("work", held, workers=1, buffer_size=2).start()
    held.hold(run)
    run.push(1)
    run.push(2)
    channel = run._engine._channels[0]
    heads = [channel.slot(number)[:112] for number in range(channel.layout.slots)]
    before = [bytes(head) for head in heads]
    for number, head in enumerate(heads):
        other = before[number - 1]
        torn = other[:56] + before[number][56:]
        new = {"zeros": bytes(112), "noise": os.urandom(112), "torn": torn}
        head[:] = new.get(damage, other)
    held.let_go()
    with pytest.raises(mpipe.StageError, match=r"stage 'work' \(worker 0\).*corrupted frame"):
        run.drain(timeout=30)


@pytest.mark.parametrize("letters", [False, True], ids=["results", "dead letters"])
def test_what_is_overwritten_on_its_way_to_the_caller_is_an_error_that_names_its_stage(
    letters: bool,
) -> None:
    def fail(x: int) -> int:
        if letters:
            raise ValueError(x)
        return x

    run = mpipe.Pipeline().add_map("work", fail, on_error="dead_letter").start(results=True)
    run.push(1)
    stage = "failed" if letters else "emitted"
    wait_until(lambda: getattr(run.stats().stages["work"], stage) == 1)
    spec = run._engine._launched.spec
    with Channel(spec.dead_letters if letters else spec.results) as channel:
        for number in range(channel.layout.slots):
            channel.slot(number)[:8] = bytes(8)
    what = "dead letters" if letters else "results"
    with pytest.raises(mpipe.MPipeError, match=f"{what} of stage 'work': corrupted frame"):
        run.drain(timeout=30)
    run.cancel()


# What user code may do to its worker.


def test_a_worker_that_closed_all_descriptors_is_replaced(tmp_path: Path) -> None:
    def close(x: int) -> int:
        if x == 57 and not (tmp_path / "closed").exists():
            (tmp_path / "closed").touch()
            os.closerange(0, 65536)
        return x

    outputs = mpipe.Pipeline().add_map("close", close, workers=2).run(range(500))
    assert sorted(outputs) == list(range(500))


def test_an_item_at_which_every_worker_closes_all_descriptors_fails_the_run_by_its_name() -> None:
    def close(x: int) -> int:
        if x == 57:
            os.closerange(0, 65536)
        return x

    with pytest.raises(mpipe.WorkerDied, match=r"stage 'close'.*source item"):
        list(mpipe.Pipeline().add_map("close", close, workers=1).run(range(500)))


def test_when_the_caller_closes_all_descriptors_its_calls_say_so_and_everything_ends() -> None:
    program = """
        import os, psutil, time, mpipe
        run = mpipe.Pipeline().add_map("a", abs, workers=1).start(results=True)
        run.push(1)
        next(run.results())
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        os.closerange(3, 65536)
        time.sleep(0.02)
        for call in (lambda: run.push(*range(5000)), run.drain, lambda: list(run.results())):
            try:
                call()
            except mpipe.MPipeError as error:
                assert "closed descriptors of the run" in str(error)
            else:
                raise SystemExit("no error")
    """
    pids = [int(pid) for pid in run_program(program).split()]
    assert len(pids) == 2
    assert_gone(pids)


FORKS = {
    "comes back": "return x",
    "raises": "raise ValueError(x)",
    "exits": "sys.exit()",
    "exits at once": "os._exit(0)",
    "becomes another program": "os.execv('/bin/true', ['true'])",
    "crashes": "os.abort()",
    "stays": "time.sleep(600)",
}


@pytest.mark.parametrize("ending", FORKS.values(), ids=FORKS)
def test_a_process_forked_from_a_worker_changes_nothing(tmp_path: Path, ending: str) -> None:
    namespace: dict[str, object] = {"flag": str(tmp_path / "forked")}
    exec(
        textwrap.dedent(f"""
        import os, sys, time
        def fork(x):
            if x == 57 and not os.path.exists(flag):
                with open(flag, "w") as file:
                    pid = os.fork()
                    if pid == 0:
                        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                        {ending}
                    file.write(str(pid))
            return x
        """),
        namespace,
    )
    options = {"workers": 2, "breaker": mpipe.CircuitBreaker()}
    outputs = mpipe.Pipeline().add_map("fork", namespace["fork"], **options).run(range(3000))
    assert sorted(next(outputs) for _ in range(3000)) == list(range(3000))
    child = int((tmp_path / "forked").read_text())
    if "sleep" in ending:  # of the user's own making
        os.kill(child, signal.SIGKILL)
    assert_gone([child])
    gate = outputs._engine._gates[0]
    calls = [
        sum(gate.counted(seat, which, 1) for seat in range(2)) for which in (SUCCESSES, ERRORS)
    ]
    assert calls == [3000, 0]
    assert list(outputs) == []
    assert outputs.stats().stages["fork"].processed == 3000
    assert outputs.stats().stages["fork"].restarts == 0


def test_a_process_forked_from_a_worker_ends_at_sigterm_however_early_it_comes() -> None:
    def fork_and_end(x: int) -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        for _ in range(1000):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert set(mpipe.imap(fork_and_end, range(100), workers=2)) == {-signal.SIGTERM}


def test_a_cancel_in_the_middle_of_a_fork_is_heard_by_the_worker(tmp_path: Path) -> None:
    class Forks(mpipe.Stage):
        def process(self, x: int) -> None:
            (tmp_path / f"up-{os.getpid()}").touch()
            while True:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

        def teardown(self) -> None:
            (tmp_path / f"down-{os.getpid()}").touch()

    pipeline = mpipe.Pipeline().add_stage("forks", Forks, workers=2)
    for count in range(1, 11):
        run = pipeline.start()
        run.push(0, 1)
        wait_until(lambda least=2 * count: len(list(tmp_path.glob("up-*"))) >= least)
        run.cancel()
    assert len(list(tmp_path.glob("down-*"))) == 20


def test_a_fork_keeps_the_sigterm_handler_that_the_function_has_set() -> None:
    def fork_and_end(x: int) -> int:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert list(mpipe.imap(fork_and_end, range(20), workers=1)) == [7] * 20


def test_threads_that_a_function_leaves_behind_do_not_hold_the_end_up() -> None:
    def leave(x: int) -> int:
        for daemon in (True, False):
            threading.Thread(target=time.sleep, args=(600,), daemon=daemon).start()
        return x

    assert list(mpipe.imap(leave, range(10), workers=1)) == list(range(10))


# What others can reach.


def descriptors(pid: int) -> dict[int, str]:
    folder, found = f"/proc/{pid}/fd", {}
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # what lists the folder
            found[int(number)] = os.readlink(f"{folder}/{number}")
    return found


def named_sockets() -> set[str]:
    """Inodes of the sockets that have a path, or a name in the abstract namespace."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {fields[6] for fields in map(str.split, lines) if len(fields) > 7}


def test_nothing_of_a_run_has_a_name() -> None:
    before = set(descriptors(os.getpid()).items())
    pipeline = mpipe.Pipeline().add_map("work", abs, workers=1, on_error="dead_letter")
    run, (coordinator, worker) = started(pipeline, True)
    ours = dict(set(descriptors(os.getpid()).items()) - before)
    named, kinds = named_sockets(), set()
    for held in (ours, descriptors(coordinator), descriptors(worker)):
        for number, target in held.items():
            if number > 2:
                kind, _, inode = target.partition(":")
                kinds.add(kind)
                assert kind != "socket" or inode.strip("[]") not in named
    assert kinds <= {"pipe", "socket", "anon_inode", "/memfd"}
    run.cancel()


def test_no_process_of_a_run_creates_a_file_or_names_a_socket() -> None:
    program = """
        import os, sys
        watch = '''
        import os, sys
        def look(event, args):
            if event in ("socket.bind", "socket.connect", "os.mkdir", "os.link", "os.symlink"):
                os.write(2, repr((event, args)).encode())
            if event == "open" and not str(args[0]).startswith(("/proc/self/", "/dev/null")):
                if isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    os.write(2, repr((event, args)).encode())
        sys.addaudithook(look)
        '''
        exec(watch)
        import mpipe
        from mpipe.engines import launch
        path, _, rest = launch._COORDINATOR.partition("; from mpipe")
        launch._COORDINATOR = f"{path}\\n{watch}\\nfrom mpipe{rest}"
        class Counts(mpipe.Stage):
            count = 0
            def process(self, x):
                self.count += 1
                return [bytes(x)]
            def snapshot(self):
                return self.count
            def restore(self, count):
                self.count = count
        pipeline = mpipe.Pipeline().add_stage("counts", Counts, workers=1, ordered=True)
        outputs = pipeline.run([1, 10, 200_000, 3_000_000], ordered=True)
        print(*map(len, outputs))
        try:
            open("/nowhere/file", "w")
        except OSError:
            pass
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert process.stdout == "1 10 200000 3000000\n", process.stderr
    assert process.stderr.startswith("('open', ('/nowhere/file', 'w',")
    assert process.stderr.count("('") == 2


def test_a_tiny_dev_shm_and_no_place_for_temporary_files_will_do() -> None:
    """In a mount namespace where nothing can be written to either."""
    program = """
        import ctypes, os, sys, mpipe
        libc, uid = ctypes.CDLL(None, use_errno=True), os.getuid()
        new_user, new_mounts, private, bind, read_only = 0x10000000, 0x20000, 0x44000, 0x1000, 0x21
        if libc.unshare(new_mounts | (new_user if uid else 0)):
            sys.exit(print("not allowed"))
        if uid:
            open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
        libc.mount(b"none", b"/", None, private, None)
        mounts = [(b"none", b"/dev/shm", b"tmpfs", 0, b"size=4k")]
        mounts.append((b"/tmp", b"/tmp", None, bind, None))
        mounts.append((b"none", b"/tmp", None, bind | read_only, None))  # we may be in there
        if any(libc.mount(*mount) for mount in mounts):
            sys.exit(print("not allowed"))
        assert os.statvfs("/dev/shm").f_blocks == 1
        assert os.statvfs("/tmp").f_flag & os.ST_RDONLY
        outputs = mpipe.imap(bytes, [10, 30_000_000, 200_000] * 3, workers=2, ordered=True)
        print(*map(len, outputs), os.listdir("/dev/shm"))
    """
    printed = run_program(program, cwd="/")
    if printed == "not allowed\n":
        pytest.skip("this machine lets nobody make a mount namespace")
    assert printed == "10 30000000 200000 " * 3 + "[]\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_other_users_can_open_nothing_of_a_run() -> None:
    run, pids = started(mpipe.Pipeline().add_map("work", abs, workers=1))
    paths = [f"/proc/{pid}/fd/{fd}" for pid in (os.getpid(), *pids) for fd in descriptors(pid)]
    assert len(paths) > 20
    child = os.fork()
    if child == 0:
        opened = 0
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for path in paths:
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                opened += 1
            except OSError:
                continue
        os._exit(opened != 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.cancel()


LOOK = [
    sys.executable,
    "-c",
    "import os\nfor fd in os.listdir('/proc/self/fd'):\n"
    "    try: print(os.readlink('/proc/self/fd/' + fd))\n"
    "    except OSError: pass",
]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_programs_that_are_started_meanwhile_inherit_nothing_of_a_run(start_method: str) -> None:
    def look(_: int) -> str:
        return subprocess.run(LOOK, close_fds=False, capture_output=True, text=True).stdout

    run = (
        mpipe.Pipeline()
        .add_map("look", look, workers=1)
        .start(results=True, start_method=start_method)
    )
    with run:
        run.push(0)
        (seen,) = [next(run.results())]
        seen += look(0)
        run.close()
        assert list(run.results()) == []
    assert "memfd" not in seen
    assert "socket" not in seen
    assert seen.count("pipe") <= 2 * 2 + 1  # the one that it writes to, and its standard files


def test_caller_and_coordinator_alone_hold_the_line_between_them() -> None:
    run, (coordinator, worker) = started(mpipe.Pipeline().add_map("work", abs, workers=1))
    holders = {}
    for pid in (os.getpid(), coordinator, worker):
        sockets = [at for at in descriptors(pid).values() if at.startswith("socket")]
        holders[pid] = set(sockets)
    line = os.readlink(f"/proc/self/fd/{run._engine._launched.coordinator.line.fileno()}")
    assert line in holders[os.getpid()]
    assert line not in holders[coordinator] | holders[worker]
    others_end = holders[coordinator] - holders[worker]
    assert len(others_end) == 2  # of the line, and where reports come in
    run.cancel()


def test_a_run_among_garbage_that_refers_to_itself_ends_without_a_word() -> None:
    program = """
        import gc, os, psutil, mpipe
        os.dup2(1, 2)
        for _ in range(20):
            outputs = mpipe.Pipeline().add_map("a", abs, workers=1).run(range(3000))
            next(outputs)
            outputs.itself = outputs
            del outputs
            gc.collect()
        assert not psutil.Process().children()
    """
    assert run_program(program) == ""


def test_a_worker_that_is_stopped_when_it_is_done_ends_without_a_word() -> None:
    program = """
        import os, signal, sys, mpipe
        os.dup2(1, 2)

        class Last:
            def write(self, text): ...
            def flush(self): os.kill(os.getpid(), signal.SIGTERM)

        def replace_output(x):
            sys.stdout = Last()

        assert list(mpipe.imap(replace_output, [1], workers=1)) == [None]
    """
    assert run_program(program) == ""
