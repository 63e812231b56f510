"""The token of a slot: one 64-bit word, `serial (40) | attempt (8) | slot (16)`.

The serial counts how often the slot changed hands; a put that may have been done before a crash is
repeated with a higher attempt. See docs/protocol.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import lru_cache

from .layout import MAX_CREDITS

SLOT_MASK = (1 << 16) - 1
ATTEMPT_ONE = 1 << 16
ATTEMPT_MASK = 0xFF << 16
SERIAL_ONE = 1 << 24

_EMPTY = bytes(8)

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


# Several tokens are bytes, as they go through pipes and ride in frames. What can be done to all of
# them at once is done to one long number: a frame may have hundreds, and a loop costs each 20 ns.


def held(words: memoryview, start: int, end: int) -> bytes:
    """The tokens in the words from `start` to `end`, without the empty words."""
    tokens = bytes(words[start:end])
    if _EMPTY in tokens:
        tokens = to_bytes(filter(None, from_bytes(tokens)))
    return tokens


def from_bytes(tokens: bytes) -> array[int]:
    """Tokens one by one."""
    return array("Q", tokens)


def to_bytes(tokens: Iterable[int]) -> bytes:
    """Several tokens as one."""
    return array("Q", tokens).tobytes()


def any_attempt(words: memoryview) -> bool:
    """Whether some token in the words has an attempt above 0."""
    return int.from_bytes(words, "little") & _in_each(ATTEMPT_MASK, 8 * len(words)) != 0


def successors(tokens: bytes) -> bytes:
    """The tokens with their next serial."""
    size = len(tokens)
    return (int.from_bytes(tokens, "little") + _in_each(SERIAL_ONE, size)).to_bytes(size, "little")


def commit(words: memoryview, tokens: bytes) -> None:
    """Store tokens as the current ones of their slots, in the table at the start of `words`."""
    if tokens:
        for token in from_bytes(tokens):
            words[token & SLOT_MASK] = token


@lru_cache(MAX_CREDITS)
def _in_each(word: int, size: int) -> int:
    """The long number of `size` bytes whose every word is `word`."""
    return int.from_bytes(word.to_bytes(8, "little") * (size // 8), "little")
