"""Functions that fork: what becomes of the child, and what the worker makes of it."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path

import pytest
from helpers import assert_gone

import mpipe
from mpipe.transport.gate import ERRORS, SUCCESSES

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


def test_a_fork_keeps_the_sigterm_handler_that_the_function_has_set() -> None:
    def fork_and_end(x: int) -> int:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert list(mpipe.imap(fork_and_end, range(20), workers=1)) == [7] * 20
