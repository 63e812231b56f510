"""The host: how a stage's function or object is made, set up, saved, restored and torn down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpipe import Stage, StageError
from mpipe.runtime.host import Host
from mpipe.schema import make_spec


class Tally(Stage):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def setup(self) -> None:
        self.calls.append("setup")

    def process(self, item: int) -> list[int]:
        self.calls.append(item)
        return [item]

    def snapshot(self) -> list[Any]:
        return self.calls

    def restore(self, state: list[Any]) -> None:
        self.calls = [*state, "restore"]

    def teardown(self) -> None:
        self.calls.append("teardown")


def host_of(fn: Any) -> Host:
    return Host(make_spec("s", fn, "flat", {}), 0)


def opened(fn: Any) -> Host:
    host = host_of(fn)
    host.open(fn)
    return host


def test_a_stage_is_set_up_once_and_torn_down_once() -> None:
    stage = Tally()
    host = opened(stage)
    assert host.fn(1) == [1]
    host.close()
    host.close()
    assert stage.calls == ["setup", 1, "teardown"]


def test_a_stage_that_was_never_set_up_is_not_torn_down() -> None:
    stage = Tally()
    host_of(stage).close()
    assert stage.calls == []


def test_a_stage_whose_setup_failed_is_torn_down_for_it_may_have_opened_something() -> None:
    stage = type("Broken", (Tally,), {"setup": fail})()
    host = host_of(stage)
    with pytest.raises(StageError):
        host.open(stage)
    host.close()
    assert stage.calls == ["teardown"]


def test_what_a_stage_remembers_goes_on_in_the_one_that_it_is_restored_to() -> None:
    old, new = opened(Tally()), opened(Tally())
    old.fn(1)
    new.restore(old.snapshot())
    assert isinstance(new.stage, Tally)
    assert new.stage.calls == ["setup", 1, "restore"]
    assert (new.has_snapshot, new.stateful) == (True, False)


def test_a_function_remembers_nothing() -> None:
    host = opened(abs)
    assert (host.fn, host.stage, host.stateful, host.has_snapshot) == (abs, None, False, False)


def fail(self: Stage, *args: Any) -> None:
    raise OSError("no")


@pytest.mark.parametrize(
    ("broken", "act", "message"),
    [
        ("setup", lambda host: None, "could not be set up"),
        ("snapshot", lambda host: host.snapshot(), "failed in snapshot()"),
        ("restore", lambda host: host.restore(b"N."), "failed in restore()"),
        ("teardown", lambda host: host.close(), "could not be torn down"),
    ],
)
def test_a_failure_outside_of_items_says_where(
    broken: str, act: Callable[[Host], Any], message: str
) -> None:
    stage = type("Broken", (Tally,), {broken: fail})()
    with pytest.raises(StageError) as caught:
        act(opened(stage))
    assert caught.value.args[0] == f"stage 's' (worker 0) {message}: OSError: no"
    assert isinstance(caught.value.__cause__, OSError)


def test_a_factory_makes_the_stage_when_opened() -> None:
    made: list[Tally] = []

    def factory() -> Tally:
        made.append(Tally())
        return made[-1]

    host = opened(factory)
    assert (host.fn(1), made) == ([1], [host.stage])


def test_a_factory_that_makes_something_else_says_what_is_missing() -> None:
    with pytest.raises(StageError) as caught:
        opened(lambda: 5)
    assert caught.value.args[0] == (
        "stage 's' (worker 0) could not be set up: TypeError: the factory returned a int, not an "
        "mpipe.Stage; a function that handles items must take one argument"
    )
