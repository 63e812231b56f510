"""What the programs of a cell write down as it happens, each line with its time."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """One line of the record: seconds on the clock that all processes share, and what."""

    at: float
    what: Any


def scratch() -> Path:
    """The folder of this cell: every process of it knows it."""
    return Path(os.environ["SCRATCH"])


def note(record: str, what: Any) -> None:
    """Add a line to a record; from several processes too, whose lines do not mix."""
    with (scratch() / record).open("a") as file:
        file.write(json.dumps(asdict(Event(time.monotonic(), what))) + "\n")


def read(folder: Path, record: str) -> list[Event]:
    """All lines of a record; the last one is left out while it is being written."""
    try:
        lines = (folder / record).read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [Event(**json.loads(line)) for line in lines]
