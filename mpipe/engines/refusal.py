"""What becomes of a pushed item that cannot travel; the same rule for all engines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..errors import ItemError
from ..stage import StageSpec
from ..stats import DeadLetter

log = logging.getLogger("mpipe")


def refuse(
    stages: Sequence[StageSpec], item: Any, which: str, position: str, error: ItemError
) -> list[DeadLetter | None]:
    """Let the item fail at each of the stages it was pushed to, under the stage's `on_error`.

    Raises `ItemError` if one of them says "raise". Else returns for each stage its dead letter, or
    None where it skips the item, which is logged.
    """
    for stage in stages:
        if stage.on_error == "raise":
            what = f"push to stage {stage.name!r}: {which} ({position})"
            raise ItemError(f"{what}: {error}") from error.__cause__
    letters: list[DeadLetter | None] = []
    for stage in stages:
        if stage.on_error == "dead_letter":
            reason = f"ItemError: {error}"
            letters.append(DeadLetter(stage.name, item, reason, "", 1, position))
        else:
            letters.append(None)
            log.warning("stage %r skipped %s: %s", stage.name, position, error)
    return letters
