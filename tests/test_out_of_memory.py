"""When memory runs out: an ordinary error of the item, or a clear one of the run; never a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import mpipe

MIB = 1 << 20
VAST = 1 << 46
"""More bytes than there are."""


def run_limited(which: str, limit: int, code: str) -> str:
    """Run `code` in a process of its own under a resource limit; returns what it printed."""
    preamble = f"import resource, mpipe\nresource.setrlimit(resource.{which}, ({limit}, {limit}))\n"
    run = subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("make", ["bytes(n)", "array.array('b', bytes(n))", "bytearray(n)"])
def test_large_items_pass_where_the_caller_has_little_address_space(make: str) -> None:
    """Buffers are mapped as a whole only where there is room for it: they would take a terabyte."""
    printed = run_limited(
        "RLIMIT_AS",
        400 * MIB,
        f"""
        import array
        sizes = [10, 100_000, 5_000_000, 200_000, 30_000_000, 0]
        copies = list(mpipe.imap(lambda n: {make}, sizes, workers=2))
        print([len(copy) for copy in copies] == sizes and not any(map(any, copies)))
        """,
    )
    assert printed == "True\n"


def test_running_out_of_memory_in_the_function_is_an_error_of_its_item() -> None:
    printed = run_limited(
        "RLIMIT_AS",
        400 * MIB,
        """
        work = lambda x: len(bytes(x))
        outputs = mpipe.Pipeline().add_map("work", work, workers=1, on_error="dead_letter").run(
            [5, 1 << 30, 7]
        )
        print(sorted(outputs), [(letter.item, letter.error) for letter in outputs.dead_letters()])
        """,
    )
    assert printed == f"[5, 7] [({1 << 30}, 'MemoryError')]\n"


class Vast:
    """Takes more memory than there is, while it is pickled or unpickled."""

    def __init__(self, pickles: bool) -> None:
        self.pickles = pickles

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (VAST if self.pickles else len(bytes(VAST)),)


def test_running_out_of_memory_while_unpickling_fails_the_run_and_names_stage_and_item() -> None:
    pipeline = mpipe.Pipeline().add_map("work", lambda x: 0, workers=1, on_error="skip")
    with pytest.raises(mpipe.StageError) as error:
        list(pipeline.run([Vast(pickles=True)]))
    assert error.value.args[0] == (
        "stage 'work' (worker 0) could not unpickle source item 0: MemoryError"
    )
    assert (error.value.stage, error.value.position) == ("work", "source item 0")


def test_running_out_of_memory_while_pickling_is_an_error_of_the_item() -> None:
    def work(x: int) -> Any:
        return Vast(pickles=False) if x == 2 else x

    outputs = mpipe.Pipeline().add_map("work", work, workers=1, on_error="dead_letter").run([1, 2])
    assert list(outputs) == [1]
    (letter,) = outputs.dead_letters()
    assert letter.item == 2
    assert letter.error.endswith("cannot be sent: it cannot be pickled: MemoryError")


def test_a_limit_on_file_sizes_is_named_by_the_error_that_it_causes() -> None:
    printed = run_limited(
        "RLIMIT_FSIZE",
        MIB,
        """
        try:
            mpipe.Pipeline().add_map("work", abs).start()
        except mpipe.MPipeError as error:
            print(error)
        """,
    )
    assert "File too large: shared memory of" in printed
    assert "(see ulimit -f)" in printed


def test_the_kernel_kills_a_worker_before_caller_and_coordinator_when_memory_runs_out() -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with mpipe.Pipeline().add_map("work", score, workers=1).start(results=True) as run:
        run.push(os.getpid())
        own = next(run.results())
        worker = run.stats().stages["work"].workers[0].pid
        coordinator = int(Path(f"/proc/{worker}/stat").read_text().split()[3])
        assert (score(os.getpid()), score(coordinator)) == (own, own)
        assert score(worker) == min(1000, own + 300)
