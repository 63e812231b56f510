"""Ways to run a plan; each module is one engine with the same contract (see `base`)."""

from __future__ import annotations

from ..plan import Plan, RunOptions
from .base import Engine, require_linux


def make_engine(name: str, plan: Plan, options: RunOptions) -> Engine:
    """Start the engine called `name` (checked before) on `plan`."""
    if name == "inline":
        from .inline import InlineEngine

        return InlineEngine(plan, options)
    require_linux()
    from . import standby

    try:
        standby.prepare()  # a coordinator starts while this process imports the rest
        from .processes import ProcessesEngine

        return ProcessesEngine(plan, options)
    except BaseException:
        standby.end()
        raise
