"""The token of a slot: one 64-bit word, `serial (40) | attempt (8) | slot (16)`.

The serial counts how often the slot changed hands; a put that may have been done before a crash is
repeated with a higher attempt. See docs/protocol.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

SLOT_MASK = (1 << 16) - 1
ATTEMPT_ONE = 1 << 16
ATTEMPT_MASK = 0xFF << 16
SERIAL_ONE = 1 << 24

_VECTOR = 16
"""From so many tokens on, numpy is quicker than a loop."""

END = SERIAL_ONE | SLOT_MASK
"""Says that no more frames come; owns no slot."""


def first_token(slot: int) -> int:
    """The token that a slot starts with."""
    return SERIAL_ONE | slot


def plain(token: int) -> int:
    """The token with attempt 0, as it stands in the table of current tokens."""
    return token & ~ATTEMPT_MASK


def attempt(token: int) -> int:
    """The attempt bits, only to be compared with each other."""
    return token & ATTEMPT_MASK


def commit(words: memoryview, tokens: Sequence[int]) -> None:
    """Store tokens as the current ones of their slots, in the table at the start of `words`."""
    if len(tokens) < _VECTOR:
        for token in tokens:
            words[token & SLOT_MASK] = token
    else:
        values = np.array(tokens, np.uint64)
        slots = (values & np.uint64(SLOT_MASK)).astype(np.intp)
        np.frombuffer(words, np.uint64)[slots] = values


def to_bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as they go through a pipe."""
    return array("Q", tokens).tobytes()
