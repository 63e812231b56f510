"""How the user's functions are sent to the workers: by value, with the classes of `__main__`.

Items may be instances of classes that the user's script defines. Pickle refers to these as
`__main__.Name`, so every worker's `__main__` gets the caller's classes; nothing is imported again
and no main guard is needed.
"""

from __future__ import annotations

import sys

from ..errors import OptionError
from ..stage import StageSpec
from ..transport.byvalue import dumps


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
