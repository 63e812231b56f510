"""A process that a stage's function forks from its worker is not the worker.

It may compute, exec or exit. But if it comes back from the function, two processes would go on in
one seat. So the seat's words are out of its reach, and it ends at the first of them.

And SIGTERM ends it, as the function expects (`Pool` ends its processes so): not the way it ends the
worker, by an exception that any finalizer can swallow. It must not come before that holds, or the
interpreter forgets it; so it is held back around a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import threading
from collections.abc import Sequence

_PROT_NONE = 0
_STDERR = 2

_libc = ctypes.CDLL(None)


def disown(words: Sequence[memoryview], reports: int) -> None:
    """From now on, forks of this process can use neither these mapped `words` nor the socket.

    The words must stay mapped to the end of this process.
    """
    places = [(ctypes.addressof(ctypes.c_char.from_buffer(part)), part.nbytes) for part in words]
    ours = signal.getsignal(signal.SIGTERM), signal.SIG_IGN
    masks = threading.local()

    def before() -> None:
        masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)

    def in_child() -> None:
        if signal.getsignal(signal.SIGTERM) in ours:  # else the function has set its own
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        go_on()
        faulthandler.enable(_STDERR)  # not into the worker's last words
        with contextlib.suppress(OSError):
            os.close(reports)
        for address, size in places:
            _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), _PROT_NONE)

    os.register_at_fork(before=before, after_in_parent=go_on, after_in_child=in_child)
