"""The check that guards every other test does catch what it is there to catch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import assert_gone
from leaks import leaks, our_processes, resources

SLEEP = "import time; time.sleep(60)"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"

Undo = Callable[[], object]


def leak_descriptor() -> Undo:
    ends = os.pipe()
    return lambda: [os.close(end) for end in ends]


def leak_thread() -> Undo:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="mpipe-leak")
    thread.start()
    return lambda: (stop.set(), thread.join())


def leak_child() -> Undo:
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    return lambda: (child.kill(), child.wait())


def leak_zombie() -> Undo:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    return child.wait


def leak_orphan() -> Undo:
    before = set(our_processes())
    subprocess.run([sys.executable, "-c", ORPHAN], start_new_session=True, check=True)
    (orphan,) = set(our_processes()) - before
    return lambda: (orphan.kill(), assert_gone([orphan.pid]))


def leak_shared_memory() -> Undo:
    name = Path(f"/dev/shm/mpipe-leak-{os.getpid()}")
    name.touch()
    return name.unlink


def leak_temporary_file() -> Undo:
    number, name = tempfile.mkstemp(prefix="mpipe-leak-")
    os.close(number)
    return lambda: os.unlink(name)


@pytest.mark.parametrize(
    ("leak", "says"),
    [
        (leak_descriptor, "-> pipe:"),
        (leak_thread, "thread mpipe-leak"),
        (leak_child, SLEEP),
        (leak_zombie, "(zombie)"),
        (leak_orphan, SLEEP),
        (leak_shared_memory, "file /dev/shm/mpipe-leak"),
        (leak_temporary_file, "mpipe-leak-"),
    ],
)
def test_a_leak_is_caught_and_named(leak: Callable[[], Undo], says: str) -> None:
    before = resources()
    undo = leak()
    try:
        found = leaks(before, within=0.3)
    finally:
        undo()
    assert any(says in what for what in found), found
    assert leaks(before) == []


def test_what_goes_away_in_time_is_no_leak() -> None:
    before = resources()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
    threading.Timer(0.4, child.wait).start()
    assert leaks(before) == []


def test_a_leaking_test_fails_at_teardown(tmp_path: Path) -> None:
    (tmp_path / "test_leak.py").write_text("import os\ndef test_leak(): os.pipe()\n")
    tests = str(Path(__file__).parent)
    inner = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
    )
    assert "1 passed, 1 error" in inner.stdout
    assert "-> pipe:" in inner.stdout


def test_assert_gone_names_a_process_that_lives() -> None:
    with pytest.raises(AssertionError, match=str(os.getpid())):
        assert_gone([os.getpid()], within=0.05)
