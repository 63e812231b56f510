"""The one schema of a stage's options, and what a function must be to make a stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .breaker import CircuitBreaker
from .checks import is_seconds, is_some_seconds, is_whole
from .errors import OptionError
from .stage import Kind, Stage, StageSpec, loses_memory, needs_memory

ON_ERROR = ("raise", "skip", "dead_letter")

MOST_WORKERS = 1024
"""Most workers of a stage. A slip such as 10**6 would stop the machine rather than the run."""


class Option(NamedTuple):
    """One option of `add_stage`: a test of its value, and what the test asks for.

    Defaults are those of `StageSpec`.
    """

    accepts: Callable[[Any], bool]
    expects: str


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _optional(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


OPTIONS: Mapping[str, Option] = {
    "workers": Option(
        _optional(is_whole(1, MOST_WORKERS)),
        f"a whole number of processes from 1 to {MOST_WORKERS}, or None to leave it to mpipe",
    ),
    "buffer_size": Option(is_whole(1), "a whole number of items, 1 or more"),
    "buffer_bytes": Option(is_whole(1), "a whole number of bytes, 1 or more"),
    "drop_on_full": Option(_boolean, "True or False"),
    "ordered": Option(_boolean, "True or False"),
    "on_error": Option(
        lambda value: isinstance(value, str) and value in ON_ERROR,
        '"raise", "skip" or "dead_letter"',
    ),
    "retries": Option(is_whole(0), "a whole number of further attempts, 0 or more"),
    "retry_delay": Option(is_seconds, "a number of seconds, 0 or more"),
    "max_crashes": Option(is_whole(1), "a whole number of worker deaths, 1 or more"),
    "timeout": Option(
        _optional(is_some_seconds),
        "a number of seconds above 0, or None for no limit",
    ),
    "max_items": Option(
        _optional(is_whole(1)), "a whole number of items, 1 or more, or None for no limit"
    ),
    "max_memory": Option(
        _optional(is_whole(1)), "a whole number of bytes, 1 or more, or None for no limit"
    ),
    "breaker": Option(
        _optional(lambda value: isinstance(value, CircuitBreaker)),
        "an mpipe.CircuitBreaker, or None",
    ),
}


def make_spec(name: str, fn: Any, kind: Kind, options: Mapping[str, Any]) -> StageSpec:
    """Check all three; raise `OptionError` that names the culprit and the choices."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise OptionError(f"a stage's name must be a non-empty, printable str, not {name!r}")
    for key, value in options.items():
        if key not in OPTIONS:
            valid = ", ".join(OPTIONS)
            raise OptionError(f"stage {name!r}: unknown option {key!r}; valid options: {valid}")
        if not OPTIONS[key].accepts(value):
            expects = OPTIONS[key].expects
            raise OptionError(f"stage {name!r}: {key} must be {expects}, not {value!r}")
    spec = StageSpec(name, fn, kind, _is_factory(name, fn, kind), **options)
    _check_gives_outputs(spec)
    if _is_stage(fn):
        _check_memory(spec)
    if spec.ordered and spec.workers not in (None, 1):
        raise OptionError(
            f"stage {name!r}: ordered=True needs workers=1, for one process must see all items; "
            f"leave what needs more processes to a stage before it"
        )
    return spec


def _is_stage(fn: Any) -> bool:
    return isinstance(fn, Stage) or (isinstance(fn, type) and issubclass(fn, Stage))


def _check_gives_outputs(spec: StageSpec) -> None:
    """Whether calling the function gives its outputs, and not an object that has yet to run."""
    fn = spec.fn.process if _is_stage(spec.fn) else spec.fn
    name, where = getattr(fn, "__name__", repr(fn)), f"stage {spec.name!r}"
    called = fn, type(fn).__call__  # the latter of an object that can be called
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in called):
        raise OptionError(
            f"{where}: {name!r} is an async function, and nothing here runs an event loop; "
            f"pass a function that does, by asyncio.run()"
        )
    if spec.kind != "flat" and any(map(inspect.isgeneratorfunction, called)):
        raise OptionError(
            f"{where}: {name!r} is a generator function, of any number of outputs; "
            f"pass it to add_stage, not add_{spec.kind}"
        )


def _check_memory(spec: StageSpec) -> None:
    """Whether what the stage remembers survives what its options ask for."""
    try:
        needs = needs_memory(spec.fn)
    except TypeError as error:
        raise OptionError(f"stage {spec.name!r}: {error}") from None
    for option in ("max_items", "max_memory"):
        if getattr(spec, option) is not None and needs:
            raise OptionError(f"stage {spec.name!r}: {loses_memory(option)}")


def _is_factory(name: str, fn: Any, kind: Kind) -> bool:
    """Tell a factory of `Stage` objects from a function of one item, by its signature."""
    if _is_stage(fn):
        if kind != "flat":
            raise OptionError(f"stage {name!r}: pass an mpipe.Stage to add_stage, not add_{kind}")
        if isinstance(fn, type) and not _callable_with(fn):
            raise OptionError(
                f"stage {name!r}: {fn.__name__} cannot be made without arguments; "
                f"pass an instance, or a factory such as lambda: {fn.__name__}(...)"
            )
        return isinstance(fn, type)
    if not callable(fn):
        raise OptionError(
            f"stage {name!r}: expected a function of one item, an mpipe.Stage or a factory of one, "
            f"not {type(fn).__name__}"
        )
    if _callable_with(fn, object()):
        return False
    if kind == "flat" and _callable_with(fn):
        return True
    raise OptionError(
        f"stage {name!r}: {getattr(fn, '__name__', fn)!r} cannot be called with one item"
    )


def _callable_with(fn: Any, *args: object) -> bool:
    try:
        inspect.signature(fn).bind(*args)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature: trust it
        return True
    return True
