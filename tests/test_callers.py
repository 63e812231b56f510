"""Callers that fork, and that have threads."""

from __future__ import annotations

import asyncio
import os
import textwrap
import threading
import time
from collections import Counter

import psutil
import pytest
from helpers import assert_gone, run_program

import mpipe

# Forks.

FORK = """
    import gc, os, sys, mpipe
    sys.stdout.reconfigure(line_buffering=True)
    with mpipe.Pipeline().add_map("a", abs, workers=1).start(results=True) as run:
        run.push(-1, -2)
        child = os.fork()
        if child == 0:
            {child}
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        run.push(-3)
        run.close()
        print(*run.results())
"""


@pytest.mark.parametrize(
    "child",
    [
        "sys.exit()",
        "run.cancel(); sys.exit()",
        "run = None; gc.collect(); sys.exit()",
        "it = run.results(); del it; os._exit(0)",
        "assert run.stats().stages['a'].received == 2; os._exit(0)",
    ],
)
def test_a_fork_of_the_caller_disturbs_nothing(child: str) -> None:
    assert run_program(FORK.format(child=child)) == "1 2 3\n"


USES = """sys.excepthook = lambda *error: os._exit(0 if error[0] is mpipe.MPipeError else 1)
            list(outputs)
            os._exit(2)"""


@pytest.mark.parametrize("ending", ["sys.exit()", "outputs.close(); os._exit(0)", USES])
def test_a_fork_in_the_middle_of_outputs_disturbs_nothing(ending: str) -> None:
    program = f"""
        import os, sys, mpipe
        outputs = mpipe.imap(abs, range(3000), workers=2)
        first = next(outputs)
        if os.fork() == 0:
            {ending}
        assert os.wait()[1] == 0
        print(sum(outputs) + first)
    """
    assert run_program(program) == f"{sum(range(3000))}\n"


def test_a_fork_of_the_caller_that_uses_the_run_is_told_whose_it_is() -> None:
    calls = ("run.push(1)", "next(run.results())", "run.close()", "run.drain()")
    tries = "\n".join(
        f"""
            try:
                {call}
            except mpipe.MPipeError as error:
                assert f"belongs to process {{os.getppid()}}" in str(error)
            else:
                os._exit(1)
        """
        for call in calls
    )
    child = textwrap.indent(textwrap.dedent(tries), " " * 12) + "\n            os._exit(0)"
    assert run_program(FORK.format(child=child)) == "1 2 3\n"


def test_a_fork_while_other_threads_use_the_run_ends() -> None:
    program = """
        import os, signal, sys, threading, mpipe
        run = mpipe.Pipeline().add_map("a", abs, workers=1, buffer_size=20).start(results=True)
        done = threading.Event()
        def push():
            while not done.is_set():
                run.push(1, 2, 3)
            run.close()
        def look():
            while not done.is_set():
                run.stats()
        threads = [threading.Thread(target=f) for f in (push, look, lambda: sum(run.results()))]
        for thread in threads:
            thread.start()
        for _ in range(20):
            if os.fork() == 0:
                signal.alarm(20)
                run.stats()
                sys.exit()
            assert os.wait()[1] == 0
        done.set()
        for thread in threads:
            thread.join()
        print(run.drain().state)
    """
    assert run_program(program) == "drained\n"


def test_a_run_that_is_let_go_ends_though_a_fork_of_its_caller_lives_on() -> None:
    run = mpipe.Pipeline().add_map("a", abs, workers=1).start()
    while not (worker := run.stats().stages["a"].workers[0]).pid:
        time.sleep(0.01)
    coordinator = psutil.Process(worker.pid).ppid()
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    del run
    assert_gone([worker.pid, coordinator])
    os.kill(child, 9)
    os.waitpid(child, 0)


# Threads.


DROPPED = "a run was dropped with 100 items in flight, which are lost"


def test_a_run_that_is_dropped_with_items_in_flight_says_so() -> None:
    program = """
        import os, time, mpipe
        os.dup2(1, 2)

        def start(pipeline):
            run = pipeline.add_map("wait", time.sleep, workers=1, buffer_size=200).start()
            run.push(*[60] * 100)
            return run

        start(mpipe.Pipeline("dropped"))
        print("then", flush=True)
        run = start(mpipe.Pipeline("at exit"))
    """
    first, then, last = run_program(program).splitlines()
    assert (first.split(": ")[0], last.split(": ")[0]) == (
        "pipeline 'dropped'",
        "pipeline 'at exit'",
    )
    assert DROPPED in first
    assert then == "then"
    assert DROPPED in last


def test_a_run_that_has_ended_and_outputs_that_are_dropped_say_nothing() -> None:
    program = """
        import os, time, mpipe
        os.dup2(1, 2)

        def fail(x):
            raise ValueError(x)

        def use(fn, end):
            run = mpipe.Pipeline().add_map("fn", fn, workers=1).start()
            try:
                run.push(0.1, 0.1)
                getattr(run, end)()
            except mpipe.MPipeError:
                pass

        use(time.sleep, "drain")
        use(time.sleep, "cancel")
        use(fail, "drain")
        run = mpipe.Pipeline().add_map("fail", fail, workers=1).start()
        try:
            while True:
                run.push(1)
        except mpipe.StageError:
            pass
        next(mpipe.imap(time.sleep, [0, 60, 60], workers=1))
        outputs = mpipe.imap(time.sleep, [0, 60, 60], workers=1)
        next(outputs)
    """
    assert run_program(program) == ""


@pytest.mark.parametrize("end", ["drain", "cancel"])
def test_threads_may_push_read_look_and_end_a_run_at_once(end: str) -> None:
    pipeline = mpipe.Pipeline().add_map("a", abs, workers=2, buffer_size=30)
    run = pipeline.start(results=True)
    pushed: list[Counter[int]] = [Counter() for _ in range(3)]
    got: list[Counter[int]] = [Counter() for _ in range(2)]
    errors: list[BaseException] = []
    started = threading.Barrier(8)

    def push(number: int) -> None:
        for item in range(number, 6000, 3):
            run.push(item)
            pushed[number][item] += 1

    def read(number: int) -> None:
        for item in run.results():
            got[number][item] += 1

    def look(_: int) -> None:
        while run.stats().state == "running":
            run.dead_letters()

    def guarded(call, *arguments: int) -> None:  # type: ignore[no-untyped-def]
        started.wait()
        try:
            call(*arguments)
        except (mpipe.Cancelled, mpipe.Closed):
            assert end == "cancel"
        except BaseException as error:
            errors.append(error)

    calls = [(push, 0), (push, 1), (push, 2), (read, 0), (read, 1), (look, 0), (look, 1)]
    threads = [threading.Thread(target=guarded, args=call) for call in calls]
    for thread in threads:
        thread.start()
    started.wait()
    if end == "drain":
        for thread in threads[:3]:
            thread.join()
        stats = run.drain()
    else:
        time.sleep(0.3)
        run.cancel()
        stats = run.stats()
    for thread in threads:
        thread.join()
    assert errors == []
    read_items, pushed_items = sum(got, Counter()), sum(pushed, Counter())
    if end == "drain":
        assert read_items == pushed_items == Counter(range(6000))
    assert stats.stages["a"].received >= sum(pushed_items.values())
    assert not read_items - Counter(range(6000))


def test_runs_may_be_used_from_coroutines_and_threads_that_are_not_the_main_one() -> None:
    def squares() -> list[int]:
        return list(mpipe.imap(lambda x: x * x, range(20), workers=1))

    async def several() -> list[list[int]]:
        return await asyncio.gather(*(asyncio.to_thread(squares) for _ in range(3)))

    assert asyncio.run(several()) == [squares()] * 3
