"""A process that a stage's function forks from its worker is not the worker.

It may compute, exec or exit. But if it comes back from the function, two processes would go on in
one seat. So the seat's words are out of its reach, and it ends at the first of them.

And SIGTERM ends it at once, as the function expects (`Pool` ends its processes so), and not by an
exception that any finalizer can swallow, as it ends the worker. Were it to come before that holds,
the interpreter would forget it; so it is blocked around a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

_PROT_NONE = 0
_STDERR = 2
_SIGSET_BYTES = 128

_libc = ctypes.PyDLL(None)


def disown(words: Sequence[memoryview], reports: int, handlers: Sequence[object]) -> None:
    """From now on, forks of this process can use neither these mapped `words` nor the socket.

    The words must stay mapped to the end of this process. `handlers` of SIGTERM are the worker's
    own, and not for its forks.
    """
    places = [(ctypes.addressof(ctypes.c_char.from_buffer(part)), part.nbytes) for part in words]
    block, restore = _blocking(signal.SIGTERM)
    is_worker = True

    def in_child() -> None:
        nonlocal is_worker
        is_first, is_worker = is_worker, False  # or a fork of a fork
        if is_first:
            for address, size in places:
                _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), _PROT_NONE)
            with contextlib.suppress(OSError):
                os.close(reports)
            if signal.getsignal(signal.SIGTERM) in handlers:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        restore()
        if is_first:
            faulthandler.enable(_STDERR)  # not into the worker's last words

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=in_child)


def _blocking(number: int) -> tuple[partial[Any], partial[Any]]:
    """What blocks a signal in the calling thread, and what puts its mask back.

    They run no bytecode, which would call the signal's handler inside of them. Threads that fork at
    the same time get the mask of one of them back.
    """
    mask, old = (ctypes.create_string_buffer(_SIGSET_BYTES) for _ in range(2))
    _libc.sigaddset(mask, number)
    return (
        partial(_libc.pthread_sigmask, signal.SIG_BLOCK, mask, old),
        partial(_libc.pthread_sigmask, signal.SIG_SETMASK, old, None),
    )
