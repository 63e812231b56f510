"""What to say, and whether to try again, when the machine has no more of something."""

from __future__ import annotations

import errno

from ..transport.descriptors import limit

_TEMPORARY = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def is_temporary(error: OSError) -> bool:
    """Whether there may soon be room again."""
    return error.errno in _TEMPORARY


def explain(error: Exception) -> str:
    """The error, with the limit that may be behind it."""
    text = str(error) or type(error).__name__
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {text}"
    if error.errno == errno.EMFILE:
        return f"{text}; a process may have {limit():,} (ulimit -n), each stage takes about 10"
    if error.errno == errno.EAGAIN:
        return f"{text}; the user or the container may have no more processes (see ulimit -u)"
    if error.errno == errno.ENOMEM:
        return f"{text}; there is not enough memory, or address space (see ulimit -v)"
    return text
