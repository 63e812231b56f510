"""The token of a slot: one 64-bit word, `serial (40) | attempt (8) | slot (16)`.

The serial counts how often the slot changed hands; a put that may have been done before a crash is
repeated with a higher attempt. See docs/protocol.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

SLOT_MASK = (1 << 16) - 1
ATTEMPT_ONE = 1 << 16
ATTEMPT_MASK = 0xFF << 16
SERIAL_ONE = 1 << 24

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


def load(words: memoryview, start: int, end: int) -> list[int]:
    """The tokens in the words from `start` to `end`, without the empty words."""
    return [token for token in words[start:end].tolist() if token]


def from_bytes(data: bytes) -> list[int]:
    """Tokens as `to_bytes` made them."""
    return array("Q", data).tolist()


def to_bytes(tokens: Iterable[int]) -> bytes:
    """Tokens as they go through a pipe."""
    return array("Q", tokens).tobytes()


def any_attempt(tokens: Iterable[int]) -> bool:
    """Whether some token has an attempt above 0."""
    return any(token & ATTEMPT_MASK for token in tokens)


def successors(tokens: Iterable[int]) -> list[int]:
    """The tokens with their next serial."""
    return [token + SERIAL_ONE for token in tokens]


def commit(words: memoryview, tokens: Iterable[int]) -> None:
    """Store tokens as the current ones of their slots, in the table at the start of `words`."""
    for token in tokens:
        words[token & SLOT_MASK] = token
