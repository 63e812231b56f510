"""A source that knows how far it was pulled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any


class Counted:
    """Passes the items of an iterable on and counts them, in whatever process it is pulled."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self._pulled = multiprocessing.RawValue("Q", 0)

    @property
    def pulled(self) -> int:
        return int(self._pulled.value)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._pulled.value += 1
            yield item
