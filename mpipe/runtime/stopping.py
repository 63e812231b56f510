"""How a worker hears that it is to end: SIGTERM raises `Stopped` wherever its main thread is.

Where an exception goes nowhere - in a finaliser, in what is called around a fork - the interpreter
drops it. Then it is raised again a moment later, until it is heard.
"""

from __future__ import annotations

import _thread
import signal
import sys
import time
from types import FrameType

GRACE_S = 2.0
"""How long workers may take to tear down when they are stopped, in seconds."""

_AGAIN_S = 0.01


class Stopped(BaseException):
    """Raised in a worker by the signal that ends it; user code should let it pass."""


def heed() -> None:
    """From now on, the next SIGTERM raises `Stopped` in the calling thread: the main one."""
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _dropped


def go_on() -> None:
    """From now on, SIGTERM does nothing: the end is under way."""
    signal.signal(signal.SIGTERM, _go_on)


def _stop(number: int, frame: FrameType | None) -> None:
    go_on()
    raise Stopped


def _go_on(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, no program inherits this that is started meanwhile."""


HANDLERS = (_stop, _go_on)
"""Of SIGTERM, in a worker."""


def _dropped(error: sys.UnraisableHookArgs) -> None:
    if error.exc_type is not Stopped:
        sys.__unraisablehook__(error)
        return
    signal.signal(signal.SIGTERM, _stop)
    _thread.start_new_thread(_repeat, (_thread.get_ident(),))  # in here it would be dropped as well


def _repeat(thread: int) -> None:
    time.sleep(_AGAIN_S)
    signal.pthread_kill(thread, signal.SIGTERM)
