"""mpipe: streaming pipelines on all cores, with backpressure, exact counts and no lost items.

The layers, each importing only those after it:

    cli           what people look at in a terminal
    pipeline run  the builder and the handle of a run
    engines       ways to run a plan: processes, inline
    runtime       the coordinator and the workers
    transport     channels of frames in shared memory, the board of counters
    policy        decisions without processes or clocks
    plan routes graph schema stage options breaker checks stats errors    plain values

The names below are imported when they are first used: the processes of a run import mpipe as well,
need few of them, and would take a quarter longer to start.
"""

import importlib
import typing

from .errors import Cancelled as Cancelled
from .errors import Closed as Closed
from .errors import CoordinatorDied as CoordinatorDied
from .errors import Full as Full
from .errors import GraphError as GraphError
from .errors import ItemError as ItemError
from .errors import MPipeError as MPipeError
from .errors import OptionError as OptionError
from .errors import StageError as StageError
from .errors import Timeout as Timeout
from .errors import WorkerDied as WorkerDied
from .runtime import modulepath as _modulepath  # noqa: F401  (notes the current directory)

if typing.TYPE_CHECKING:
    from .breaker import CircuitBreaker as CircuitBreaker
    from .pipeline import Pipeline as Pipeline
    from .pipeline import imap as imap
    from .run import Outputs as Outputs
    from .run import Run as Run
    from .stage import Stage as Stage
    from .stats import BreakerStats as BreakerStats
    from .stats import DeadLetter as DeadLetter
    from .stats import EdgeStats as EdgeStats
    from .stats import Latency as Latency
    from .stats import StageStats as StageStats
    from .stats import Stats as Stats
    from .stats import WorkerStats as WorkerStats

__version__ = "0.1.0"

_HOME = {
    "BreakerStats": "stats",
    "CircuitBreaker": "breaker",
    "DeadLetter": "stats",
    "EdgeStats": "stats",
    "Latency": "stats",
    "Outputs": "run",
    "Pipeline": "pipeline",
    "Run": "run",
    "Stage": "stage",
    "StageStats": "stats",
    "Stats": "stats",
    "WorkerStats": "stats",
    "imap": "pipeline",
}

__all__ = [
    *("Cancelled", "Closed", "CoordinatorDied", "Full", "GraphError", "ItemError", "MPipeError"),
    *("OptionError", "StageError", "Timeout", "WorkerDied"),
    *_HOME,
]


def __getattr__(name: str) -> typing.Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
