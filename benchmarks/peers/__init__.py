"""One module per tool: how its documentation says to do what is asked of it.

Each defines `NAME`, `PACKAGE` (None for what comes with Python), `SETTING` (what tells it from
another module of the same tool) and some of

    stream(fn, source, workers=2, buffer=10, spawn=False)
                                outputs of `fn` as they come. `buffer`: how many items may wait,
                                None: as the tool has it; spawn=True: fresh interpreters
    chain(stages, source)       several stages with workers of their own: see workloads.Stage
    ordered(fn, source)         as `stream`, in source order
    two_stages(f, g, source)    two stages, a pool of two workers each, small buffers
    expand(fn, source)          one to many: `fn` is a generator function
    percentiles(fn, source)     of a stage's service time, in seconds, by name ("p99")
    skipping(fn, source)        as `stream`; an item that fails shall not stop the others
    limited(fn, source, s)      as `skipping`; an item may take `s` seconds
    large(fn, source)           as `stream`, for items of gigabytes
    session()                   a context in which the tool's cluster is up

What a tool has no call or setting for is left out. `TRAITS` may be set in a module, too.
"""

import importlib
from typing import Any

import machine

TRAITS: dict[str, Any] = {
    "SETTING": "",
    "TRIES": True,  # leaves batches to its user, so that lists of several sizes are tried
    "SINGLES": True,  # is worth running where items travel alone
    "NESTS": True,  # its `stream` can be the source of another
    "MAPS": True,  # is worth running on workloads of one stage
    "FUSES": True,  # is worth running with all stages in one function
    "ONCE": False,  # takes one turn only
    "LIVE": True,  # takes a source that yields now and then, an item at a time
}


def load(tool: str) -> Any:
    """The module of a tool."""
    module = importlib.import_module(f"peers.{tool}")
    for name, default in TRAITS.items():
        vars(module).setdefault(name, default)
    return module


def title(tool: str) -> str:
    """A tool's name, version and setting; of one that is not installed, what it is called here."""
    if not is_installed(tool):
        return tool
    peer = load(tool)
    version = machine.version(peer.PACKAGE) if peer.PACKAGE else None
    return f"{peer.NAME}{f' {version}' if version else ''}{name(tool).removeprefix(peer.NAME)}"


def name(tool: str) -> str:
    """A tool's name and setting."""
    peer = load(tool)
    return ", ".join(filter(None, (peer.NAME, peer.SETTING)))


def is_installed(tool: str) -> bool:
    """Whether a tool can be had here."""
    try:
        load(tool)
    except ImportError:
        return False
    return True
