"""What the workers of a run will need, imported before any of the user's code runs.

Importing is most of what a coordinator takes to start; so what only some runs need comes later, but
before it forks workers: once for all of them. And one that has no descriptor left, or no memory,
must find it there.
"""

from __future__ import annotations

from .spec import RunSpec

_BY_VALUE = b"cloudpickle"


def preload(spec: RunSpec) -> None:
    """Import what these functions are pickled with, and what failed items are told with."""
    if any(_BY_VALUE in function for function in spec.functions):
        from ..transport import byvalue as byvalue
    if spec.dead_letters is not None:
        from .. import stats as stats
