"""The user's functions as they arrive in a worker, whose `__main__` is made like the caller's."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

from .nesting import importing


def make_main() -> None:
    """In a worker: an empty `__main__`, which `load_function` makes look like the caller's."""
    sys.modules["__main__"] = types.ModuleType("__main__")


def load_function(packed: bytes) -> Any:
    """In a worker: a stage's function, and in `__main__` what it has from there."""
    with importing():
        fn, classes = pickle.loads(packed)
    vars(sys.modules["__main__"]).update(classes, **_functions_beside(fn))
    return fn


def _functions_beside(fn: Any) -> dict[str, types.FunctionType]:
    """Functions of `__main__` that the stage's function refers to, for who pickles them by name."""
    holder = fn if isinstance(fn, type) else type(fn)
    functions = [value for value in (fn, *vars(holder).values()) if _is_function_of_main(value)]
    return {
        name: value
        for function in functions
        for name, value in function.__globals__.items()
        if _is_function_of_main(value)
    }


def _is_function_of_main(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__ == "__main__"


def reseed() -> None:
    """Give a forked worker random numbers of its own."""
    for name in "random", "numpy.random":
        if name in sys.modules:
            sys.modules[name].seed()
