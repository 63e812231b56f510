"""The token of a slot: one 64-bit word, `serial (40) | attempt (8) | slot (16)`.

The serial counts how often the slot changed hands; a put that may have been done before a crash is
repeated with a higher attempt. See docs/protocol.md.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Many: TypeAlias = "npt.NDArray[np.uint64]"
Tokens: TypeAlias = "list[int] | Many"

SLOT_MASK = (1 << 16) - 1
ATTEMPT_ONE = 1 << 16
ATTEMPT_MASK = 0xFF << 16
SERIAL_ONE = 1 << 24

_MANY = 64
"""From so many tokens on, numpy is quicker than a loop; it is not imported before."""

END = SERIAL_ONE | SLOT_MASK
"""Says that no more frames come; owns no slot."""


def first_token(slot: int) -> int:
    """The token that a slot starts with."""
    return SERIAL_ONE | slot


def work_id(number: int) -> int:
    """Stands for a seat's frame number `number` where no token does; owns no slot."""
    return number * SERIAL_ONE | (SLOT_MASK - 1)


def plain(token: int) -> int:
    """The token with attempt 0, as it stands in the table of current tokens."""
    return token & ~ATTEMPT_MASK


def attempt(token: int) -> int:
    """The attempt bits, only to be compared with each other."""
    return token & ATTEMPT_MASK


# Many tokens at a time: a list of few, or an array from `_MANY` on, where numpy is quicker.


def load(words: memoryview, start: int, end: int) -> Tokens:
    """The tokens in the words from `start` to `end`, without the empty words."""
    if end - start < _MANY:
        return [token for token in words[start:end].tolist() if token]
    import numpy as np

    held: Many = np.frombuffer(words, np.uint64, end - start, start * 8)
    present: Many = held[held != 0]
    return present


def from_bytes(data: bytes) -> Tokens:
    """Tokens as `to_bytes` made them."""
    if len(data) < 8 * _MANY:
        return array("Q", data).tolist()
    import numpy as np

    return np.frombuffer(data, np.uint64)


def to_bytes(tokens: Tokens) -> bytes:
    """Tokens as they go through a pipe."""
    return array("Q", tokens).tobytes() if isinstance(tokens, list) else tokens.tobytes()


def any_attempt(tokens: Tokens) -> bool:
    """Whether some token has an attempt above 0."""
    if isinstance(tokens, list):
        return any(token & ATTEMPT_MASK for token in tokens)
    import numpy as np

    return bool((tokens & np.uint64(ATTEMPT_MASK)).any())


def successors(tokens: Tokens) -> Tokens:
    """The tokens with their next serial."""
    if isinstance(tokens, list):
        return [token + SERIAL_ONE for token in tokens]
    import numpy as np

    following: Many = tokens + np.uint64(SERIAL_ONE)
    return following


def commit(words: memoryview, tokens: Tokens) -> None:
    """Store tokens as the current ones of their slots, in the table at the start of `words`."""
    if isinstance(tokens, list):
        for token in tokens:
            words[token & SLOT_MASK] = token
    else:
        import numpy as np

        slots = (tokens & np.uint64(SLOT_MASK)).astype(np.intp)
        np.frombuffer(words, np.uint64)[slots] = tokens
