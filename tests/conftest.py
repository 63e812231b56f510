"""Every test leaves nothing behind, and none hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

import helpers
import pytest
from leaks import leaks, mark_children, resources

from mpipe.engines import standby


def pytest_configure() -> None:
    helpers.terminal = os.dup(2)  # before pytest captures it
    resource_tracker.ensure_running()  # a helper of the standard library's, not a leak
    mark_children()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """With the coordinator that stays for the next run ended, nothing is left of any run."""
    before = resources()
    yield
    standby.end()
    if left := leaks(before):
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Print all threads' stacks and end the session rather than wait for ever."""
    helpers.not_hanging()
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=["inline", "processes"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both, for what every engine promises."""
    return str(request.param)
