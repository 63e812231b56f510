"""Runs that end, or go on, by what the caller does: whatever comes, it ends, and says how."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from helpers import assert_gone, started, wait_until

import mpipe
from mpipe.engines.feeder import Feeder


def pipeline(fn: Callable[[Any], Any], **options: Any) -> mpipe.Pipeline:
    return mpipe.Pipeline().add_map("a", fn, **{"workers": 1, **options})


def test_stats_alone_tell_that_a_run_has_failed_and_when() -> None:
    run = pipeline(abs).start()
    run.push("no number")
    wait_until(lambda: run.stats().state == "failed")
    elapsed = run.stats().elapsed
    time.sleep(0.05)
    assert run.stats().elapsed == elapsed
    run.cancel()


def test_drain_without_patience_closes_the_input_and_can_be_asked_until_all_is_done() -> None:
    run = pipeline(abs).start()
    run.push(*range(100))
    with pytest.raises(mpipe.Timeout):
        run.drain(timeout=0)
    with pytest.raises(mpipe.Closed) as caught:
        run.push(1, 2)
    assert caught.value.items == (1, 2)

    def drained() -> bool:
        try:
            return run.drain(timeout=0).stages["a"].processed == 100
        except mpipe.Timeout:
            return False

    wait_until(drained)


def test_closing_ends_a_push_that_waits_and_says_what_was_not_accepted() -> None:
    run = pipeline(int, buffer_size=4).start(results=True)
    refused: list[int] = []
    sent = threading.Event()

    def push() -> None:
        sent.set()
        try:
            run.push(*range(100))
        except mpipe.Closed as closed:
            refused.extend(closed.items)

    pushing = threading.Thread(target=push)
    pushing.start()
    wait_until(lambda: run.stats().stages["a"].workers[0].state == "blocked")
    run.close()
    pushing.join(5)
    assert not pushing.is_alive()
    got = sorted(run.results())
    assert [*got, *refused] == list(range(100))
    assert refused
    run.drain()


@pytest.mark.parametrize("option", ["deadline", "cancel"])
@pytest.mark.parametrize("call", ["start", "imap"])
def test_a_run_with_a_deadline_or_a_cancel_event_ends_when_nobody_holds_it(
    call: str, option: str
) -> None:
    options: dict[str, Any] = {option: 1000 if option == "deadline" else threading.Event()}
    if call == "start":
        run, pids = started_with(options)
        run.push(-1)
        del run
    else:
        outputs = mpipe.imap(abs, range(3), workers=1, **options)
        pids = [coordinator_of(outputs)]
        del outputs
    assert_gone(pids)
    wait_until(lambda: "mpipe-watch" not in [thread.name for thread in threading.enumerate()])


def started_with(options: dict[str, Any]) -> tuple[mpipe.Run, list[int]]:
    run = pipeline(abs).start(**options)
    wait_until(lambda: run.stats().stages["a"].workers[0].pid)
    return run, [coordinator_of(run), run.stats().stages["a"].workers[0].pid]


def coordinator_of(run: mpipe.Run | mpipe.Outputs) -> int:
    engine: Any = run._engine
    pid: int = engine._link.coordinator_pid
    return pid


@pytest.mark.parametrize("engine", ["processes", "inline"])
def test_a_cancel_event_that_fails_cancels_the_run_and_says_why(engine: str) -> None:
    class Gone:
        def is_set(self) -> bool:
            raise ConnectionError("the manager is gone")

    run = pipeline(abs).start(engine, cancel=Gone())
    wait_until(lambda: run.stats().state == "cancelled")
    with pytest.raises(mpipe.Cancelled, match="event failed: ConnectionError: the manager is gone"):
        run.drain()


def test_ctrl_c_while_a_with_block_drains_leaves_nothing_behind() -> None:
    run, pids = started(pipeline(time.sleep))
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt), run:
        run.push(60, 60)
    alarm.join()
    assert run.stats().state == "cancelled"
    assert_gone(pids)


def test_outputs_may_be_closed_by_another_thread_than_the_one_that_waits_for_them() -> None:
    outputs = mpipe.imap(time.sleep, [0, 60], workers=1)
    assert next(outputs) is None
    closing = threading.Timer(0.2, outputs.close)
    closing.start()
    with pytest.raises(mpipe.Cancelled):
        next(outputs)
    closing.join()
    assert outputs.stats().state == "cancelled"


def test_items_that_a_full_stage_refuses_are_back_before_others_are_sent() -> None:
    """The reader's nudge finds no room: its items must not be missing for a moment."""
    ready, feeding = threading.Event(), threading.Event()
    found: list[Any] = []

    def source() -> Iterator[int]:
        ready.wait(5)
        yield 1
        feeding.wait(5)

    def refuse(items: Any, targets: Any, timeout: float | None) -> None:
        if timeout == 0:
            raise mpipe.Full("no room", tuple(items))

    class Idle:
        is_ahead = False

        def is_idle(self, targets: Any) -> bool:
            return threading.current_thread() is threading.main_thread()

        def pause_s(self, targets: Any) -> float:
            return 0.0

        def frame_items(self, targets: Any) -> int:
            return 100

    class Lock:
        """The feeder's lock; looks at what is pending whenever it is let go at last."""

        def __init__(self) -> None:
            self.lock: Any = threading.RLock()
            self._is_owned = self.lock._is_owned

        def acquire(self, blocking: bool = True) -> bool:
            return self.lock.acquire(blocking)

        def release(self) -> None:
            self.lock.release()

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            found.append(list(feeder._pending))
            self.lock.release()

    feeder = Feeder(source(), cast(Any, Idle()), ["a"], refuse, lambda: None)
    feeder._frame_items = 100
    feeder._sending.lock = cast(Any, Lock())
    ready.set()
    wait_until(lambda: feeder._pending == [1])
    assert feeder.nudge()
    assert found == [[1]]
    feeding.set()
    feeder._thread.join()
