"""Runs that end, or go on, by what the caller does: whatever comes, it ends, and says how."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from helpers import assert_gone, run_program, started, wait_until

import mpipe
from mpipe.engines import reader, standby
from mpipe.engines.feeder import Feeder


class Unreadable(Exception):
    """Pickles, but cannot be unpickled: it passes on fewer arguments than it takes."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)


def unreadable_at_3(x: int) -> Any:
    return Unreadable("a", "b") if x == 3 else x


UNREADABLE = r"results of stage 'a': could not unpickle .*source items? .*3.*Unreadable.*missing 1"


def pipeline(fn: Callable[[Any], Any], **options: Any) -> mpipe.Pipeline:
    return mpipe.Pipeline().add_map("a", fn, **{"workers": 1, **options})


# Results that cannot be read.


@pytest.mark.parametrize("reads", [True, False])
def test_a_result_that_cannot_be_unpickled_fails_the_run_and_nothing_is_left(reads: bool) -> None:
    run, pids = started(pipeline(unreadable_at_3), results=True)
    for x in range(5):
        run.push(x)
        wait_until(lambda x=x: run.stats().stages["a"].processed == x + 1)
    got = []
    if reads:
        with pytest.raises(mpipe.MPipeError, match=UNREADABLE):
            got.extend(run.results())
    for _ in range(2):
        with pytest.raises(mpipe.MPipeError, match=UNREADABLE):
            run.drain()
    assert run.stats().state == "failed"
    standby.end()
    assert_gone(pids)
    with pytest.raises(mpipe.MPipeError, match=UNREADABLE):
        got.extend(run.results())
    assert got in ([0, 1, 2], [])


def test_an_output_that_cannot_be_unpickled_ends_the_outputs_with_its_place() -> None:
    with pytest.raises(mpipe.MPipeError, match=UNREADABLE):
        list(pipeline(unreadable_at_3).run(range(4), ordered=True))


def test_a_dead_letter_that_cannot_be_unpickled_fails_the_run() -> None:
    def spoil(item: dict[str, Any]) -> None:
        item["bad"] = Unreadable("a", "b")
        raise ValueError

    before = os.listdir("/proc/self/fd")
    run, pids = started(pipeline(spoil, on_error="dead_letter"))
    run.push({})
    for _ in range(2):
        with pytest.raises(mpipe.MPipeError, match="dead letters of stage 'a': could not unpickle"):
            run.drain()
        standby.end()
        assert os.listdir("/proc/self/fd") == before
    assert_gone(pids)


def test_what_a_signal_handler_raises_while_results_are_unpickled_is_not_their_fault() -> None:
    class Alarm(Exception):
        pass

    def alarm(number: int, frame: object) -> None:
        raise Alarm

    run = pipeline(lambda x: Rings(x)).start(results=True)
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        run.push(1, 2)
        run.close()
        results, got = run.results(), 0
        with pytest.raises(Alarm):
            next(results)
        got = len(list(run.results()))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert got == 2
    assert run.drain().state == "drained"


class Rings:
    """Rings an alarm in the middle of being unpickled for the first time in a process."""

    rung = False

    def __init__(self, x: int) -> None:
        self.x = x

    def __setstate__(self, state: dict[str, int]) -> None:
        self.x = state["x"]
        if not Rings.rung:
            Rings.rung = True
            signal.raise_signal(signal.SIGALRM)


# Who reads.


def test_a_run_whose_results_are_read_slowly_and_from_thread_to_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "UNREAD_S", 0.3)

    async def read(run: mpipe.Run) -> list[int]:
        got, results = [], run.results()
        while (item := await asyncio.to_thread(next, results, None)) is not None:
            got.append(item)
            await asyncio.sleep(0.1)
        return got

    async def main() -> list[int]:
        run = pipeline(int, buffer_size=4).start(results=True)
        run.push(*range(6))
        reading = asyncio.create_task(read(run))
        await asyncio.to_thread(run.push, *range(6, 20))
        assert (await asyncio.to_thread(run.drain)).state == "drained"
        return await reading

    assert sorted(asyncio.run(main())) == list(range(20))


def test_a_look_at_the_results_from_one_thread_does_not_hide_that_another_one_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "UNREAD_S", 0.3)
    run = pipeline(int, buffer_size=2).start(results=True)
    got: list[int] = []

    def read() -> None:
        for item in run.results():
            got.append(item)
            time.sleep(0.5)

    reading = threading.Thread(target=read)
    reading.start()
    run.push(*range(4))
    wait_until(lambda: got)
    peeking = threading.Thread(target=lambda: got.append(next(run.results())))
    peeking.start()
    peeking.join()
    run.push(*range(4, 10))
    assert run.drain().state == "drained"
    reading.join()
    assert sorted(got) == list(range(10))


def test_a_push_that_waits_for_unread_dead_letters_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "_MAX_LETTERS", 10)

    def fail(x: int) -> None:
        raise ValueError(x)

    run = pipeline(fail, on_error="dead_letter", buffer_size=10).start()
    with pytest.raises(mpipe.MPipeError, match="nobody reads its dead letters; iterate dead_l"):
        run.push(*range(5000))
    assert run.stats().state == "failed"
    run.cancel()


# Ends.


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


# Odd surroundings.


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


def test_at_the_limit_of_descriptors_a_coordinator_still_has_its_time_to_end(tmp_path: Any) -> None:
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
