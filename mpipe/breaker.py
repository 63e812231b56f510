"""The settings of a stage's circuit breaker: a checked value for `add_stage(breaker=...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .checks import is_number, is_some_seconds, is_whole
from .errors import OptionError

MAX_WINDOW = 10**6
"""Most calls of a window."""

MAX_PROBES = 500
"""So many permits fit the smallest pipe, in one write."""


@dataclass(frozen=True)
class CircuitBreaker:
    """Pause a stage while too many calls of its function fail; see `add_stage`'s option `breaker`.

    Raises `OptionError` for a value that cannot be.
    """

    threshold: float = 0.20
    """Share of the calls in the window that may fail, 0 to 1: it trips when more do."""
    window: int = 100
    """How many calls, the last ones, the share is taken of."""
    min_calls: int = 50
    """It does not trip before so many calls are in the window."""
    open_for: float = 5.0
    """Seconds that the stage pauses at first. Doubles whenever the probes fail, less up to 10 %."""
    max_open_for: float = 60.0
    """Most seconds that it pauses in one go."""
    probes: int = 10
    """Calls that are tried after a pause, to see whether the stage works again."""
    give_up_after: float | None = None
    """Seconds of pauses, without working in between, after which the run fails; None: never."""

    def __post_init__(self) -> None:
        for field in fields(self):
            accepts, expects = _CHECKS[field.name]
            value = getattr(self, field.name)
            if not accepts(value):
                _refuse(field.name, expects, value)
        if self.min_calls > self.window:
            _refuse("min_calls", f"at most the window of {self.window} calls", self.min_calls)
        if self.max_open_for < self.open_for:
            _refuse("max_open_for", f"at least open_for={self.open_for:g}", self.max_open_for)


def _refuse(name: str, expects: str, value: Any) -> None:
    raise OptionError(f"CircuitBreaker: {name} must be {expects}, not {value!r}")


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (lambda value: is_number(value) and 0 <= value < 1, "a share, 0 or more, under 1"),
    "window": (is_whole(1, MAX_WINDOW), f"a whole number of calls from 1 to {MAX_WINDOW}"),
    "min_calls": (is_whole(1), "a whole number of calls, 1 or more"),
    "open_for": (is_some_seconds, "a number of seconds above 0"),
    "max_open_for": (is_some_seconds, "a number of seconds above 0"),
    "probes": (is_whole(1, MAX_PROBES), f"a whole number of calls from 1 to {MAX_PROBES}"),
    "give_up_after": (
        lambda value: value is None or is_some_seconds(value),
        "a number of seconds above 0, or None",
    ),
}
