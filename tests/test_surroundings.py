"""Odd surroundings of a caller: they change nothing."""

from __future__ import annotations

import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from helpers import run_program

import mpipe

SQUARES = "print(*mpipe.imap(lambda x: x * x, range(3), workers=1))"


@pytest.mark.parametrize("flag", ["-OO", "-I", "-Xdev", "-bb"])
def test_interpreter_flags_reach_the_workers(flag: str) -> None:
    program = """
        import mpipe, sys
        print(*mpipe.imap(lambda _: str(sys.flags), range(1), workers=1), sys.flags, sep="\\n")
        print(*mpipe.Pipeline().add_map("a", lambda _: str(sys.flags), workers=1)
            .run([1], start_method="spawn"))
    """
    inner, caller, spawned = run_program(program, flag).splitlines()
    assert inner == caller == spawned


def test_an_empty_environment_will_do() -> None:
    source = str(Path(mpipe.__file__).parent.parent)
    site = [path for path in sys.path if path.endswith("site-packages")]
    paths = f"import sys; sys.path[:0] = {[source, *site]}; import mpipe; "
    assert run_program(paths + SQUARES, env={}) == "0 1 4\n"


def test_module_paths_may_be_odd_and_the_directory_may_change(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mpipe").symlink_to(Path(mpipe.__file__).parent)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.py").write_text("def cube(x):\n    return x**3\n")
    site = [path for path in sys.path if path.endswith("site-packages")]
    program = f"""
        import os, pathlib, sys
        sys.path[:0] = ["modules", pathlib.Path("."), b"bytes", None, 3, "more"]
        sys.path += {site}
        import mpipe, mine
        os.chdir("/")
        print(mpipe.__file__, *mpipe.imap(mine.cube, range(3), workers=1))
    """
    printed = run_program(program, "-S", cwd=tmp_path)
    assert printed == f"{tmp_path}/modules/mpipe/__init__.py 0 1 8\n"


def test_it_runs_from_a_zip_archive(tmp_path: Path) -> None:
    package = tmp_path / "source" / "mpipe"
    for path in Path(mpipe.__file__).parent.rglob("*.py"):
        target = package / path.relative_to(Path(mpipe.__file__).parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    main = f"import os\nimport mpipe\nos.chdir('/')\n{SQUARES}\nprint(mpipe.__file__)\n"
    (tmp_path / "source" / "__main__.py").write_text(main)
    zipapp.create_archive(tmp_path / "source", tmp_path / "app.pyz")
    process = subprocess.run(
        [sys.executable, "app.pyz"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.splitlines()[0] == "0 1 4", process.stderr
    assert "app.pyz" in process.stdout


def test_all_workers_of_a_run_hash_alike() -> None:
    """A worker's replacement must iterate over sets of strings in the same order."""
    pipeline = mpipe.Pipeline().add_map("hash", lambda _: hash("a string"), workers=3)
    for start_method in ("fork", "spawn"):
        assert len(set(pipeline.run(range(300), start_method=start_method))) == 1


def test_a_default_timeout_of_sockets_changes_nothing() -> None:
    program = """
        import os, socket, time, mpipe
        socket.setdefaulttimeout(0.05)
        os.dup2(1, 2)

        def odd(x):
            if x % 2:
                raise ValueError(x)
            time.sleep(0.2)
            return x

        began = time.monotonic()
        print(*mpipe.imap(odd, range(4), workers=1, on_error="skip"))
        print(time.monotonic() - began < 5)
    """
    *logged, results, quick = run_program(program).splitlines()
    assert (results, quick) == ("0 2", "True")
    assert len(logged) == 2
    assert all("skipped" in line or "failed on source item" in line for line in logged)


def test_a_thread_whose_name_is_not_text_may_start_runs() -> None:
    program = """
        import ctypes, mpipe
        name = "обработка".encode()[:15]
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
        for _ in range(2):
            print(*mpipe.imap(abs, [-1], workers=1))
    """
    assert run_program(program) == "1\n1\n"


def test_a_timeout_of_a_month_is_a_timeout() -> None:
    assert list(mpipe.imap(abs, [-1], workers=1, timeout=2_592_000)) == [1]


def test_at_the_limit_of_descriptors_a_coordinator_still_has_its_time_to_end(
    tmp_path: Path,
) -> None:
    program = f"""
        import os, time, resource, mpipe

        class Slow(mpipe.Stage):
            def process(self, x):
                return [x]

            def teardown(self):
                time.sleep(0.5)
                open({str(tmp_path / "done")!r}, "w").close()

        run = mpipe.Pipeline().add_stage("slow", Slow, workers=1).start()
        while run.stats().stages["slow"].workers[0].state != "idle":
            time.sleep(0.01)
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            run.cancel()
        for fd in taken:
            os.close(fd)
        print(run.stats().state, os.path.exists({str(tmp_path / "done")!r}))
    """
    assert run_program(program) == "cancelled True\n"
