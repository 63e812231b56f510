"""Pipelines and pools in the workers of a pipeline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import assert_gone, tree, wait_until

import mpipe


def run_script(folder: Path, program: str, *arguments: str) -> str:
    """What a program prints, run from a file in `folder`."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(program))
    process = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_stage_may_run_a_pipeline_of_its_own() -> None:
    def total(count: int) -> int:
        return sum(mpipe.imap(lambda x: x * x, range(count), workers=1))

    assert list(mpipe.imap(total, range(4), workers=2)) == [0, 0, 1, 5]


@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_with_a_worker_the_pipelines_in_it_end(tmp_path: Path, end: str) -> None:
    def endless(_: int) -> None:
        for _ in mpipe.imap(abs, iter(int, 1), workers=1):
            (tmp_path / "started").touch()

    run = mpipe.Pipeline().add_map("endless", endless, workers=1, max_crashes=1).start()
    run.push(1)
    wait_until((tmp_path / "started").exists, within=60)
    (worker,) = run.stats().stages["endless"].workers
    inner = tree(worker.pid)
    assert len(inner) == 3  # with a coordinator and a worker of its own
    if end == "kill":
        os.kill(worker.pid, signal.SIGKILL)
        assert_gone(inner)
    run.cancel()
    assert_gone(inner)


def test_a_module_that_starts_a_pipeline_on_import_is_told_so_instead_of_starting_ever_more(
    tmp_path: Path,
) -> None:
    program = """
        import mpipe
        def work(x):
            return x
        if __name__ != "__main__":
            list(mpipe.imap(work, range(3), workers=1))
        else:
            import script
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program))
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert 'put what starts it under if __name__ == "__main__"' in process.stderr


def test_a_function_that_starts_its_own_pipeline_again_does_not_do_so_for_ever(
    tmp_path: Path,
) -> None:
    program = """
        import mpipe
        def again(x):
            return sum(mpipe.imap(again, [x], workers=1))
        try:
            print(list(mpipe.imap(again, [1], workers=1)))
        except mpipe.StageError as error:
            print(error)
    """
    assert "pipelines are nested 5 deep" in run_script(tmp_path, program)


def test_a_stage_of_a_script_may_use_a_pool_with_the_script_s_functions(tmp_path: Path) -> None:
    program = """
        import concurrent.futures, multiprocessing, mpipe
        def double(x):
            return 2 * x
        def with_pool(x):
            with multiprocessing.Pool(2) as pool:
                return pool.map(double, range(x))
        class WithExecutor(mpipe.Stage):
            def setup(self):
                self.executor = concurrent.futures.ProcessPoolExecutor(1)
            def process(self, x):
                return [list(self.executor.map(double, range(x)))]
            def teardown(self):
                self.executor.shutdown()
        print(*mpipe.imap(with_pool, [3], workers=1))
        print(*mpipe.Pipeline().add_stage("executor", WithExecutor, workers=1).run([2]))
    """
    assert run_script(tmp_path, program) == "[0, 2, 4]\n[0, 2]\n"
