"""How deep this process is inside pipelines that run in workers of other pipelines.

A function that a worker finds by name makes it import the function's module. If that module starts
a pipeline when it is imported, its workers would import it too, and so on without end.
"""

from __future__ import annotations

from ..errors import MPipeError

MOST_LEVELS = 5

_level = 0


def enter(level: int) -> None:
    """This process is a worker at that level."""
    global _level
    _level = level


def next_level() -> int:
    """The level of a pipeline that this process starts; raises `MPipeError` if that is too deep."""
    if _level >= MOST_LEVELS:
        raise MPipeError(
            f"pipelines are nested {MOST_LEVELS} deep in each other's workers; if that is not on "
            f"purpose, a module that the workers import starts one when it is imported: put that "
            f'under if __name__ == "__main__"'
        )
    return _level + 1
