"""Pickling by value: lambdas, closures, and classes of the script, with where they were written.

`cloudpickle` does the work. From 3.1.3 on it forgets the file that code comes from, and tracebacks
from workers would not show their lines; so that is sent along.
"""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_Reduced = tuple[Callable[..., CodeType], tuple[Any, ...]]
_reduce_code: Callable[[CodeType], _Reduced] = cloudpickle.Pickler.dispatch_table[CodeType]


def dumps(value: Any, buffer_callback: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle `value` in protocol 5, by value where it is not to be had by name."""
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def _reduce_with_file(code: CodeType) -> _Reduced:
    return _make_code, (*_reduce_code(code), code.co_filename)


def _make_code(make: Callable[..., CodeType], args: tuple[Any, ...], filename: str) -> CodeType:
    return make(*args).replace(co_filename=filename)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[ChainMap[type, Any]] = ChainMap(
        {CodeType: _reduce_with_file}, cloudpickle.Pickler.dispatch_table
    )
