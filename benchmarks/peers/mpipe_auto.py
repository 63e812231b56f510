"""mpipe, with the number and the placing of workers left to it."""

from collections.abc import Iterable, Sequence
from typing import Any

from workloads import Stage

from mpipe import Outputs

from .mpipe import pipeline

NAME = "mpipe"
SETTING = "workers=None"
PACKAGE = "mpipe"
TRIES = MAPS = FUSES = False


def chain(stages: Sequence[Stage], source: Iterable[Any]) -> Outputs:
    return pipeline(stages, {}).run(source)
