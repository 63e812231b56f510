"""Hostile surroundings: processes that are stopped, memory that is overwritten, user code that
closes descriptors or leaves threads behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers import assert_gone, run_program, started, wait_until

import mpipe
from mpipe.transport.channel import Channel


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


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


def test_threads_that_a_function_leaves_behind_do_not_hold_the_end_up() -> None:
    def leave(x: int) -> int:
        for daemon in (True, False):
            threading.Thread(target=time.sleep, args=(600,), daemon=daemon).start()
        return x

    assert list(mpipe.imap(leave, range(10), workers=1)) == list(range(10))


def test_a_run_among_garbage_that_refers_to_itself_ends_without_a_word() -> None:
    program = """
        import gc, itertools, os, psutil, mpipe
        os.dup2(1, 2)
        for _ in range(20):
            outputs = mpipe.Pipeline().add_map("a", abs, workers=1).run(itertools.count())
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
