"""A cancel is heard by every worker, also where the interpreter drops exceptions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import wait_until

import mpipe


def spin() -> None:
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until:
        pass


class Finalised:
    def __del__(self) -> None:
        spin()


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


PLACES = {
    "in a loop": (spin, {}),
    "in a finaliser": (Finalised, {}),
    "in a fork": (fork, {}),
    "in what is called before a fork": (fork, {"before": spin}),
    "in what is called after a fork": (fork, {"after_in_parent": spin}),
}


class Busy(mpipe.Stage):
    """Spends half of its time at a place; notes in a folder when its workers begin and end."""

    def __init__(
        self, folder: Path, place: Callable[[], object], hooks: dict[str, Callable[[], object]]
    ) -> None:
        self.folder, self.place, self.hooks = folder, place, hooks

    def setup(self) -> None:
        if self.hooks:
            os.register_at_fork(**self.hooks)

    def process(self, item: int) -> None:
        (self.folder / f"up-{os.getpid()}").touch()
        while True:
            spin()
            self.place()

    def teardown(self) -> None:
        (self.folder / f"down-{os.getpid()}").touch()


@pytest.mark.parametrize(("place", "hooks"), PLACES.values(), ids=PLACES)
def test_a_cancel_is_heard_by_every_worker(
    tmp_path: Path, place: Callable[[], object], hooks: dict[str, Callable[[], object]]
) -> None:
    pipeline = mpipe.Pipeline().add_stage("busy", Busy(tmp_path, place, hooks), workers=2)
    for count in range(1, 7):
        run = pipeline.start()
        run.push(0, 1)
        wait_until(lambda least=2 * count: len(list(tmp_path.glob("up-*"))) >= least)
        run.cancel()
    assert len(list(tmp_path.glob("down-*"))) == 12
