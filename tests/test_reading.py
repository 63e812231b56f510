"""Results and dead letters: what cannot be read, and what happens while nobody reads."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import assert_gone, started, wait_until

import mpipe
from mpipe.engines import reader, standby


class Unreadable(Exception):
    """Pickles, but cannot be unpickled: it passes on fewer arguments than it takes."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)


def unreadable_at_3(x: int) -> Any:
    return Unreadable("a", "b") if x == 3 else x


UNREADABLE = r"results of stage 'a': could not unpickle .*source items? .*3.*Unreadable.*missing 1"


def pipeline(fn: Callable[[Any], Any], **options: Any) -> mpipe.Pipeline:
    return mpipe.Pipeline().add_map("a", fn, **{"workers": 1, **options})


# What cannot be read.


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
