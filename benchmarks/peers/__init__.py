"""One module per tool: how its documentation says to do what is asked of it, on two workers.

Each defines `NAME`, `PACKAGE` (None for what comes with Python) and some of

    stream(fn, source, spawn)   outputs of `fn` as they come; spawn=True: fresh interpreters
    ordered(fn, source)         the same, in source order
    two_stages(f, g, source)    two stages, a pool of two workers each
    expand(fn, source)          one to many: `fn` is a generator function
    percentiles(fn, source)     of a stage's service time, in seconds, by name ("p99")
    skipping(fn, source)        as `stream`; an item that fails shall not stop the others
    limited(fn, source, s)      as `skipping`; an item may take `s` seconds
    large(fn, source)           as `stream`, for items of gigabytes

What a tool has no call or setting for is left out. Buffers are set small where there is a setting.
"""

import importlib
from typing import Any

import machine


def load(tool: str) -> Any:
    """The module of a tool."""
    return importlib.import_module(f"peers.{tool}")


def title(tool: str) -> str:
    """A tool's name and version."""
    peer = load(tool)
    return f"{peer.NAME} {machine.version(peer.PACKAGE)}" if peer.PACKAGE else str(peer.NAME)
