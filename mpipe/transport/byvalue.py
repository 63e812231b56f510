"""Pickling by value: lambdas, closures, and classes of the script, with where they were written.

`cloudpickle` does the work. From 3.1.3 on it forgets the file that code comes from, and tracebacks
from workers would not show their lines; so that is sent along. What `functools.lru_cache` made it
takes to be importable; what is not, is made anew around its function, with an empty cache.
"""

from __future__ import annotations

import io
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
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


def _reduce_cached(cached: Any) -> str | tuple[Callable[..., Any], Any]:
    name: str = cached.__qualname__
    module, script = (sys.modules.get(name) for name in (cached.__module__, "__main__"))
    if module is not script and getattr(module, name, None) is cached:
        return name
    given = cached.cache_parameters()
    return _make_cached, (cached.__wrapped__, given["maxsize"], given["typed"])


def _make_cached(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return lru_cache(maxsize, typed)(fn)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[ChainMap[type, Any]] = ChainMap(
        {CodeType: _reduce_with_file, _lru_cache_wrapper: _reduce_cached},
        cloudpickle.Pickler.dispatch_table,
    )
