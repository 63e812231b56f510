"""What other users, other programs and other processes can reach of a run: nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import run_program, started

import mpipe


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
        from mpipe.engines import standby
        path, _, rest = standby._COORDINATOR.partition("; from mpipe")
        standby._COORDINATOR = f"{path}\\n{watch}\\nfrom mpipe{rest}"
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
