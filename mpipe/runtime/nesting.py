"""How deep this process is inside pipelines that run in workers of other pipelines.

A function that a worker finds by name makes it import the function's module. If that module starts
a pipeline when it is imported, its workers would import it too, and so on without end. That is
noticed in the first worker; a function that starts its own pipeline again, some levels deeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MPipeError

MOST_LEVELS = 5

_level = 0
_importing = False


def enter(level: int) -> None:
    """This process is a worker at that level."""
    global _level
    _level = level


@contextmanager
def importing() -> Iterator[None]:
    """While this worker imports what its stage's function needs."""
    global _importing
    _importing = True
    try:
        yield
    finally:
        _importing = False


def next_level() -> int:
    """The level of a pipeline that this process starts; raises `MPipeError` if that is too deep."""
    if _importing:
        raise MPipeError(
            "a module starts a pipeline when it is imported, and a worker of that pipeline imports "
            'it: put what starts it under if __name__ == "__main__"'
        )
    if _level >= MOST_LEVELS:
        raise MPipeError(
            f"pipelines are nested {MOST_LEVELS} deep in each other's workers; if that is not on "
            f"purpose, a stage's function starts its own pipeline again"
        )
    return _level + 1
