"""The kernel: how a function is applied to items, what is retried, given up and withdrawn."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpipe import DeadLetter, ItemError, Stage, StageError
from mpipe.runtime.gate import Gate
from mpipe.runtime.host import Host
from mpipe.runtime.kernel import Kernel
from mpipe.schema import make_spec
from mpipe.transport.frame import Unsendable


class Recorder:
    """An outlet that keeps what it is given; refuses the outputs in `unsendable`."""

    def __init__(self, flush_items: int = 1, unsendable: tuple[Any, ...] = ()) -> None:
        self.waited_ns = 0
        self.flush_items = flush_items
        self.batches: list[list[Any]] = []
        self.letters: list[DeadLetter] = []
        self.messages: list[str] = []
        self.out = 0
        self._unsendable = unsendable

    @property
    def outputs(self) -> list[Any]:
        return [output for batch in self.batches for output in batch]

    def emit(self, outputs: list[Any], items: range, last: bool) -> None:
        for index, output in enumerate(outputs):
            if output in self._unsendable:
                raise Unsendable(index, ItemError(f"{output} cannot travel"))
        self.batches.append(outputs.copy())

    def abandon(self) -> int:
        return self.out

    def dead_letter(self, letter: DeadLetter, index: int) -> None:
        self.letters.append(letter)

    def log(self, message: str) -> None:
        self.messages.append(message)


def kernel_of(
    fn: Any, outlet: Recorder, kind: Any = "flat", gate: Gate | None = None, **options: Any
) -> Kernel:
    host = Host(make_spec("s", fn, kind, options), 0)
    host.open(fn)
    return Kernel(host, outlet, outlet, gate)


def run(
    fn: Any, items: list[Any], outlet: Recorder | None = None, kind: Any = "flat", **options: Any
) -> tuple[Kernel, Recorder]:
    outlet = outlet or Recorder()
    kernel = kernel_of(fn, outlet, kind, **options)
    kernel.run(items)
    return kernel, outlet


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the kernel wanted to sleep."""
    asked: list[float] = []
    monkeypatch.setattr("mpipe.runtime.kernel.time.sleep", asked.append)
    return asked


def fails_at(*bad: Any) -> Callable[[Any], list[Any]]:
    def fn(item: Any) -> list[Any]:
        if item in bad:
            raise ValueError(f"not {item}")
        return [item]

    return fn


@pytest.mark.parametrize(
    "fn",
    [
        lambda n: [n, n + 0.5],
        lambda n: (n, n + 0.5),
        lambda n: iter((n, n + 0.5)),
        lambda n: (n + i / 2 for i in range(2)),
        lambda n: map(float, (n, n + 0.5)),
    ],
    ids=["list", "tuple", "iterator", "generator", "map"],
)
@pytest.mark.parametrize("flush_items", [1, 2, 3, 100])
def test_every_kind_of_return_value_gives_the_same_outputs_however_they_are_flushed(
    fn: Any, flush_items: int
) -> None:
    kernel, outlet = run(fn, [1, 2, 3], Recorder(flush_items))
    assert outlet.outputs == [1, 1.5, 2, 2.5, 3, 3.5]
    assert (kernel.tally.processed, kernel.tally.emitted, kernel.tally.failed) == (3, 6, 0)
    assert len(kernel.durations) == 3


def test_none_and_empty_results_emit_nothing_but_count_as_processed() -> None:
    kernel, outlet = run(lambda n: None if n % 2 else [], [1, 2, 3])
    assert (outlet.outputs, kernel.tally.processed, kernel.tally.emitted) == ([], 3, 0)


def test_map_passes_any_value_on_as_it_is() -> None:
    values = [None, {"a": 1}, [1, 2], "text", ()]
    assert run(lambda n: values[n], [0, 1, 2, 3, 4], kind="map")[1].outputs == values


def test_filter_passes_the_items_whose_predicate_is_true() -> None:
    assert run(lambda n: n % 2, [1, 2, 3, 4, 5], kind="filter")[1].outputs == [1, 3, 5]


def test_subclasses_of_list_and_tuple_are_taken_for_their_items() -> None:
    class Rows(list[int]):
        pass

    assert run(lambda n: Rows([n, n]), [7])[1].outputs == [7, 7]


def test_an_endless_iterator_is_handed_on_while_it_goes_on() -> None:
    def endless(item: int) -> Iterator[int]:
        while True:
            yield item

    class Enough(BaseException):
        pass

    class Limited(Recorder):
        def emit(self, outputs: list[Any], items: range, last: bool) -> None:
            super().emit(outputs, items, last)
            if len(self.outputs) > 1000:
                raise Enough

    outlet = Limited(flush_items=64)
    with pytest.raises(Enough):
        run(endless, [1], outlet)
    assert max(map(len, outlet.batches)) <= 2 * 64


def test_a_slow_iterator_is_not_kept_back_until_a_batch_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0

    def slow(item: int) -> Iterator[int]:
        nonlocal now
        for i in range(5):
            now += 10_000_000  # longer than an output may be kept back
            yield i

    monkeypatch.setattr("mpipe.runtime.kernel.time.perf_counter_ns", lambda: now)
    batches = run(slow, [1], Recorder(flush_items=1000))[1].batches
    assert [batch for batch in batches if batch] == [[0], [1], [2], [3], [4]]


def test_outputs_are_handed_on_as_soon_as_there_are_flush_items() -> None:
    batches = run(lambda n: [n], list(range(7)), Recorder(flush_items=3))[1].batches
    assert [batch for batch in batches if batch] == [[0, 1, 2], [3, 4, 5], [6]]


def test_raise_names_stage_worker_position_and_keeps_the_cause() -> None:
    with pytest.raises(StageError) as caught:
        run(fails_at(2), [1, 2, 3])
    error = caught.value
    assert error.args[0] == "stage 's' (worker 0) failed on item 1: ValueError: not 2"
    assert (error.stage, error.worker, error.position, error.attempts) == ("s", 0, "item 1", 1)
    assert isinstance(error.__cause__, ValueError)
    assert error.remote_traceback.rstrip().endswith("ValueError: not 2")
    assert "in fn" in error.remote_traceback


def test_skip_logs_counts_and_goes_on() -> None:
    kernel, outlet = run(fails_at(2), [1, 2, 3], on_error="skip")
    assert outlet.outputs == [1, 3]
    assert outlet.messages == ["stage 's' (worker 0) failed on item 1: ValueError: not 2"]
    assert (kernel.tally.processed, kernel.tally.failed, kernel.tally.dead_lettered) == (2, 1, 0)


def test_dead_letter_hands_the_item_over_and_goes_on() -> None:
    kernel, outlet = run(fails_at(2), [1, 2, 3], on_error="dead_letter", retries=1)
    (letter,) = outlet.letters
    assert (letter.stage, letter.item, letter.error) == ("s", 2, "ValueError: not 2")
    assert (letter.attempts, letter.position) == (2, "item 1")
    assert letter.traceback.rstrip().endswith("ValueError: not 2")
    assert (kernel.tally.failed, kernel.tally.dead_lettered, kernel.tally.retried) == (1, 1, 1)
    assert outlet.outputs == [1, 3]


def test_sys_exit_in_a_function_fails_the_item_and_not_the_process() -> None:
    def leave(item: int) -> None:
        raise SystemExit(3)

    kernel, outlet = run(leave, [1], on_error="skip")
    assert kernel.tally.failed == 1
    assert outlet.messages == ["stage 's' (worker 0) failed on item 0: SystemExit: 3"]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, GeneratorExit])
def test_what_is_no_error_of_the_function_passes_through(signal: type[BaseException]) -> None:
    def interrupted(item: int) -> None:
        raise signal

    with pytest.raises(signal):
        run(interrupted, [1], on_error="skip")


def test_retries_wait_twice_as_long_each_time_and_then_give_up(sleeps: list[float]) -> None:
    kernel, outlet = run(fails_at(2), [1, 2, 3], on_error="skip", retries=4, retry_delay=0.5)
    assert sleeps == [0.5, 1.0, 2.0, 4.0]
    assert (kernel.tally.retried, kernel.tally.failed) == (4, 1)
    assert outlet.messages == [
        "stage 's' (worker 0) failed on item 1 after 5 attempts: ValueError: not 2"
    ]


def test_a_retry_that_succeeds_counts_as_processed(sleeps: list[float]) -> None:
    tries: list[int] = []

    def second_time_lucky(item: int) -> list[int]:
        tries.append(item)
        if len(tries) == 1:
            raise OSError
        return [item]

    kernel, outlet = run(second_time_lucky, [5], retries=3, retry_delay=1.0)
    assert (outlet.outputs, tries, sleeps) == ([5], [5, 5], [1.0])
    assert (kernel.tally.processed, kernel.tally.failed, kernel.tally.retried) == (1, 0, 1)


def test_what_a_retried_generator_gave_is_left_out_of_a_list_too_and_of_no_other_item() -> None:
    tries: list[int] = []

    def fn(item: int) -> Any:
        tries.append(item)
        outputs = [(item, i) for i in range(4)]
        if item == 0:
            return breaking(outputs[:3]) if tries.count(0) == 1 else outputs
        if tries.count(1) == 1:
            raise OSError
        return iter(outputs)

    def breaking(outputs: list[Any]) -> Any:
        yield from outputs
        raise OSError

    _, outlet = run(fn, [0, 1], retries=2)
    assert outlet.outputs == [(item, i) for item in range(2) for i in range(4)]


def test_any_number_of_retries_without_delay_is_a_number_that_works() -> None:
    kernel, _ = run(fails_at(1), [1], retries=1200, on_error="skip")
    assert kernel.tally.retried == 1200


@pytest.mark.parametrize("flush_items", [1, 2, 100])
@pytest.mark.parametrize("breaks_at", [0, 1, 2, 5])
def test_a_retried_generator_does_not_give_an_output_twice(
    flush_items: int, breaks_at: int
) -> None:
    tries = 0

    def breaks(item: str) -> Iterator[str]:
        nonlocal tries
        tries += 1
        for i in range(6):
            if i == breaks_at and tries < 3:
                raise OSError
            yield f"{item}{i}"

    kernel, outlet = run(breaks, ["a"], Recorder(flush_items), retries=2)
    assert outlet.outputs == ["a0", "a1", "a2", "a3", "a4", "a5"]
    assert (kernel.tally.retried, kernel.tally.processed) == (2, 1)


def test_what_a_given_up_item_gave_is_not_held_against_the_next_one() -> None:
    tries: Counter[int] = Counter()

    def breaks(item: int) -> Iterator[int]:
        yield item
        yield item + 1
        raise OSError

    def fn(item: int) -> Any:
        tries[item] += 1
        if item == 20 and tries[item] == 1:
            raise OSError
        return breaks(item) if item == 10 else iter([item, item + 1])

    _, outlet = run(fn, [10, 20], Recorder(), on_error="skip", retries=1)
    assert outlet.outputs == [10, 11, 20, 21]


def test_an_item_that_fails_for_two_reasons_fails_once() -> None:
    def breaks(item: int) -> Iterator[int]:
        yield item
        raise ValueError

    outlet = Recorder(flush_items=100, unsendable=(2,))
    kernel, _ = run(breaks, [1, 2, 3], outlet, on_error="dead_letter")
    assert outlet.outputs == [1, 3]
    assert [letter.item for letter in outlet.letters] == [1, 2, 3]
    assert (kernel.tally.processed, kernel.tally.failed) == (0, 3)


@pytest.mark.parametrize("flush_items", [1, 2, 100])
def test_dead_letters_come_in_the_order_of_the_items_for_whatever_reason_they_fail(
    flush_items: int,
) -> None:
    outlet = Recorder(flush_items, unsendable=(1, 4))
    run(fails_at(2, 3, 6), list(range(8)), outlet, on_error="dead_letter")
    assert [letter.item for letter in outlet.letters] == [1, 2, 3, 4, 6]
    assert outlet.outputs == [0, 5, 7]


@pytest.mark.parametrize("flush_items", [1, 2, 3, 100])
def test_an_item_that_fails_midway_keeps_what_it_gave_wherever_outputs_are_flushed(
    flush_items: int,
) -> None:
    def breaks(item: int) -> Iterator[int]:
        yield item
        yield item + 1
        if item == 20:
            raise ValueError
        yield item + 2

    _, outlet = run(breaks, [10, 20, 30], Recorder(flush_items), on_error="skip")
    assert outlet.outputs == [10, 11, 12, 20, 21, 30, 31, 32]


@pytest.mark.parametrize("flush_items", [1, 2, 3, 100])
def test_an_output_that_cannot_travel_fails_its_item_and_no_other(flush_items: int) -> None:
    outlet = Recorder(flush_items, unsendable=(20,))
    kernel, _ = run(lambda n: [n, n * 10], [1, 2, 3], outlet, on_error="skip")
    assert outlet.outputs == [1, 10, 2, 3, 30]
    assert (kernel.tally.processed, kernel.tally.failed, kernel.tally.emitted) == (2, 1, 5)
    assert outlet.messages == ["stage 's' (worker 0) failed on item 1: mpipe.errors.ItemError: 20 "
        "cannot travel"]  # fmt: skip


@pytest.mark.parametrize("flush_items", [1, 2, 3, 100])
def test_an_unsendable_output_ends_its_generator_and_is_not_retried(flush_items: int) -> None:
    outlet = Recorder(flush_items, unsendable=(21,))
    kernel, _ = run(
        lambda n: (n * 10 + i for i in range(4)), [1, 2, 3], outlet, on_error="skip", retries=3
    )
    assert outlet.outputs == [10, 11, 12, 13, 20, 30, 31, 32, 33]
    assert (kernel.tally.processed, kernel.tally.failed, kernel.tally.retried) == (2, 1, 0)


def test_several_unsendable_outputs_in_one_batch_fail_each_its_own_item() -> None:
    outlet = Recorder(flush_items=100, unsendable=(1, 3))
    kernel, _ = run(lambda n: [n], [0, 1, 2, 3, 4], outlet, on_error="dead_letter")
    assert outlet.outputs == [0, 2, 4]
    assert [(letter.item, letter.position) for letter in outlet.letters] == [
        (1, "item 1"),
        (3, "item 3"),
    ]
    assert (kernel.tally.processed, kernel.tally.failed) == (3, 2)


def test_an_unsendable_output_under_raise_names_its_item() -> None:
    outlet = Recorder(flush_items=100, unsendable=(1,))
    with pytest.raises(StageError) as caught:
        run(lambda n: [n], [0, 1, 2], outlet)
    assert caught.value.position == "item 1"
    assert isinstance(caught.value.__cause__, ItemError)


def test_waiting_for_room_is_not_service_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    class Blocking(Recorder):
        def emit(self, outputs: list[Any], items: range, last: bool) -> None:
            nonlocal now
            now += 1_000_000
            self.waited_ns += 1_000_000

    def work(item: int) -> Iterator[int]:
        nonlocal now
        for i in range(3):
            now += 7
            yield i

    monkeypatch.setattr("mpipe.runtime.kernel.time.perf_counter_ns", lambda: now)
    kernel, _ = run(work, [1, 2], Blocking(flush_items=1))
    assert kernel.durations == [21, 21]


class Held:
    pass


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_an_item_that_was_tried_again_is_let_go_at_once(failures: int) -> None:
    """Its arrays lie in shared memory, which is to be used again."""
    seen: list[weakref.ref[Held]] = []

    def fn(item: Held) -> None:
        seen.append(weakref.ref(item))
        if len(seen) <= failures:
            raise OSError

    gc.disable()
    try:
        run(fn, [Held()], retries=2, on_error="skip")
        assert [ref() for ref in seen] == [None] * min(3, failures + 1)
    finally:
        gc.enable()


class Greeter(Stage):
    def process(self, item: int) -> list[str]:
        return [f"hello {item}"]

    def finish(self) -> Any:
        return ["bye"]


def test_a_stage_may_emit_at_its_end() -> None:
    kernel, outlet = run(Greeter(), [1, 2])
    kernel.finish()
    assert outlet.outputs == ["hello 1", "hello 2", "bye"]


def test_a_finish_that_fails_says_so() -> None:
    def fail(self: Stage) -> None:
        raise OSError("no")

    kernel, _ = run(type("Broken", (Greeter,), {"finish": fail})(), [])
    with pytest.raises(StageError) as caught:
        kernel.finish()
    assert caught.value.args[0] == "stage 's' (worker 0) failed in finish(): OSError: no"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_stage_without_process_says_so() -> None:
    with pytest.raises(StageError, match=r"Stage must define process\(self, item\)"):
        run(Stage(), [1])


def test_finish_that_returns_a_wrong_type_fails() -> None:
    stage = type("Wrong", (Greeter,), {"finish": lambda self: "text"})()
    kernel, _ = run(stage, [])
    with pytest.raises(StageError, match=r"a stage must return a list.*not str"):
        kernel.finish()


def test_a_refused_item_is_given_up_without_being_tried_and_keeps_what_is_out() -> None:
    tried: list[int] = []
    outlet = Recorder()
    outlet.out = 2
    kernel = kernel_of(tried.append, outlet, on_error="dead_letter")
    kernel.refuse(8, ItemError("it killed its worker"), 3, is_end=True)
    (letter,) = outlet.letters
    assert (tried, letter.item, letter.attempts) == ([], 8, 3)
    assert letter.error == "mpipe.errors.ItemError: it killed its worker"
    assert (kernel.tally.processed, kernel.tally.failed, kernel.tally.emitted) == (0, 1, 2)


class Listener:
    """A watch that keeps what it is told, with the calls of the function in between."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def enter(self, index: int) -> None:
        self.told.append(index)

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


def test_a_watch_knows_when_the_function_is_at_work(sleeps: list[float]) -> None:
    watch = Listener()

    def fn(item: int) -> Iterator[int]:
        for i in range(2):
            watch.told.append(f"works on {item}")
            if item == 5:
                raise OSError
            yield i

    kernel_of(fn, Recorder(), on_error="skip", retries=1).run([4, 5], watch)
    first = [0, "works on 4", "pause", "resume", "works on 4", "pause", "resume"]
    second = [1, "works on 5", "pause", 1, "works on 5", "pause"]
    assert watch.told == [*first, *second, "pause"]


def test_what_is_handed_on_comes_with_the_items_that_it_derives_from() -> None:
    seen: list[tuple[range, list[Any]]] = []

    class Watching(Recorder):
        def emit(self, outputs: list[Any], items: range, last: bool) -> None:
            seen.append((items, outputs.copy()))

    kernel_of(lambda n: [n], Watching(flush_items=2)).run([10, 11, 12, 13, 14])
    assert seen == [(range(0, 2), [10, 11]), (range(2, 4), [12, 13]), (range(4, 5), [14])]


def test_an_error_that_cannot_be_pickled_is_still_reported_in_text() -> None:
    def fn(item: int) -> None:
        raise ValueError(threading.Lock())

    with pytest.raises(StageError, match=r"ValueError: <unlocked _thread.lock"):
        run(fn, [1])


def odd(n: int) -> Any:
    """All that a function may do, by turns."""
    if n % 7 == 3:
        raise ValueError(n)
    return [None, [n], (n, -n), iter((n, n)), (n + i for i in range(3)), [], [[n]]][n % 7]


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (odd, "flat"),
        (lambda n: 60 // (n % 5), "map"),
        (lambda n: next(iter([n] * (n % 5))), "map"),
        (lambda n: 8 % (n % 4) == 0, "filter"),
    ],
)
@pytest.mark.parametrize("flush_items", [1, 3, 1000])
@pytest.mark.parametrize("retries", [0, 1])
def test_items_timed_together_come_out_like_those_timed_singly(
    fn: Any, kind: Any, flush_items: int, retries: int
) -> None:
    seen = []
    for mean_ns in (0.0, 125.0):
        outlet = Recorder(flush_items, unsendable=(15, 16, [13]))
        kernel = kernel_of(fn, outlet, kind, on_error="dead_letter", retries=retries)
        kernel._mean_ns = mean_ns
        kernel.run(range(100))
        timed = len(kernel.durations), sum(count for _, count in kernel.runs)
        assert timed == ((0, 100) if mean_ns else (100, 0))
        letters = sorted((letter.item, letter.error) for letter in outlet.letters)
        seen.append((outlet.outputs, letters, vars(kernel.tally)))
    assert seen[0] == seen[1]
    assert seen[0][2]["failed"] > 10


def test_an_output_that_cannot_travel_fails_its_own_item_not_the_one_in_hand() -> None:
    """It is found while a later item's outputs are handed on; that one is not tried again."""
    tries: list[int] = []

    def fn(item: int) -> Any:
        tries.append(item)
        return iter([item] if item else range(10, 14))

    with pytest.raises(StageError) as caught:
        run(fn, [5, 0], Recorder(2, unsendable=(5,)), retries=3)
    assert caught.value.position == "item 0"
    assert tries == [5, 0]


def test_what_goes_wrong_while_outputs_are_sent_is_no_item_s_failure() -> None:
    class Broken(Recorder):
        def emit(self, outputs: list[Any], items: range, last: bool) -> None:
            super().emit(outputs, items, last)
            raise OSError("no memory to map")

    outlet = Broken(2)
    with pytest.raises(OSError, match="no memory to map"):
        run(lambda item: iter(range(5)), [0], outlet, retries=3, on_error="skip")
    assert len(outlet.batches) == 1
