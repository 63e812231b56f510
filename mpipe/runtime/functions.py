"""The user's functions as they arrive in a worker, whose `__main__` is made like the caller's."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

from .nesting import importing


def load_function(packed: bytes) -> Any:
    """In a worker: the stage's function. Makes `__main__` look like the caller's."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    with importing():
        fn, classes = pickle.loads(packed)
    vars(main).update(classes, **_functions_beside(fn))
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
