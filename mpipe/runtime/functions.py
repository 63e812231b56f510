"""How the user's functions reach the workers: by value, together with the classes of `__main__`.

Items may be instances of classes that the user's script defines. Pickle refers to these as
`__main__.Name`, so every worker's `__main__` gets the caller's classes; nothing is imported again
and no main guard is needed.
"""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

from ..errors import OptionError
from ..stage import StageSpec
from ..transport.byvalue import dumps
from .nesting import importing


def pack_function(stage: StageSpec) -> bytes:
    """Pickle the stage's function; raises `OptionError` when it cannot be."""
    classes = main_classes()
    try:
        return dumps((stage.fn, classes))
    except Exception:
        classes = {name: cls for name, cls in classes.items() if _can_be_pickled(cls)}
    try:
        return dumps((stage.fn, classes))
    except Exception as error:
        raise OptionError(
            f"stage {stage.name!r}: its function cannot be sent to other processes: {error}; "
            f"open files, locks and the like in an mpipe.Stage's setup() instead"
        ) from error


def main_classes() -> dict[str, type]:
    """Classes that the caller's script or notebook defines at its top level."""
    main = sys.modules.get("__main__")
    return {
        name: value
        for name, value in vars(main).items()
        if isinstance(value, type) and value.__module__ == "__main__"
    }


def _can_be_pickled(cls: type) -> bool:
    try:
        dumps(cls)
    except Exception:
        return False
    return True


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
