"""Frames: a batch of items as bytes in a slot.

A slot holds a header, its path (see `policy.reorder`; empty where nobody downstream is ordered),
the riders (tokens of the further credits that the frame takes) and the payload: lengths of the
buffers, the pickle, the buffers (each 64-byte aligned). A payload that does not fit lies in the
slot's spill. The header's checksum is seeded with the token, so a torn, overwritten or misplaced
frame is an error and never garbage handed to a function.
"""

from __future__ import annotations

import pickle
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from ..errors import ItemError, MPipeError
from ..policy.reorder import Place
from .layout import SLOT_BYTES

OUT_OF_BAND_BYTES = 1 << 12
"""Buffers from this size on are copied once, straight into the slot, not through the pickle."""

_HEADER = struct.Struct("=13Q")
_CHECKSUM = struct.Struct("=Q")
HEADER_BYTES = _CHECKSUM.size + _HEADER.size

_make = tuple.__new__
"""Makes a named tuple of a plain one. Its own ways to do so run Python, for every frame."""


class Unsendable(Exception):
    """Item number `index` of a batch cannot travel; raised before any of the batch is sent."""

    def __init__(self, index: int, error: ItemError) -> None:
        super().__init__(index, error)
        self.index = index
        self.error = error


class Tag(NamedTuple):
    """Where a frame comes from; times are `perf_counter_ns`."""

    put_ns: int
    born_ns: int
    """When the first source item that it derives from was pushed."""
    origin: int
    """Number of that source item."""
    span: int
    """Number of source items, from `origin` on, that its items derive from."""
    exact: int
    """1 if item i of the frame derives from source item `origin + i`, else 0."""
    route: int = 0
    """Number of the way from the source, see `mpipe.routes`."""
    path: tuple[int, ...] = ()
    """The ranges that it is of earlier frames' outputs, see `policy.reorder.Place`."""

    @property
    def place(self) -> Place:
        """Where the frame stands in source order."""
        return Place(self.origin, self.span, self.route, self.path)


class Header(NamedTuple):
    """What is known of a frame without unpickling it."""

    items: int
    riders: int
    buffers: int
    pickle_bytes: int
    payload_bytes: int
    spilled: int
    tag: Tag

    def pack(self) -> bytes:
        """The header with its path, as bytes."""
        tag = self.tag
        path = array("Q", tag.path).tobytes() if tag.path else b""
        return _HEADER.pack(*self[:6], len(path) // 8, *tag[:6]) + path

    @classmethod
    def unpack(cls, memory: memoryview, start: int = 0) -> Header:
        """The header that `pack` made, which begins at the byte `start`."""
        values = _HEADER.unpack_from(memory, start)
        path: tuple[int, ...] = ()
        if values[6]:
            start += _HEADER.size
            path = tuple(memory[start : start + 8 * values[6]].cast("Q"))
        return _make(cls, (*values[:6], _make(Tag, (*values[7:], path))))

    @property
    def packed_bytes(self) -> int:
        """Size of what `pack` makes."""
        return _HEADER.size + 8 * len(self.tag.path)


class Payload(NamedTuple):
    """Pickled items, not yet in a slot."""

    items: int
    data: bytes
    buffers: list[memoryview]
    size: int


def encode(items: Sequence[Any], max_bytes: int) -> Payload:
    """Pickle items; raise `ItemError` when one cannot be, or all together are over `max_bytes`."""
    buffers: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    try:
        data = pickle.dumps(items, 5, buffer_callback=in_band)
    except Exception:
        buffers.clear()
        data = _encode_by_value(items, in_band)
    size = len(data)
    if buffers:
        size += 8 * len(buffers) + sum(_aligned(raw.nbytes) for raw in buffers) + 64
    if size > max_bytes + 4096:
        raise ItemError(f"pickled it takes {size:,} bytes, over the limit of {max_bytes:,}")
    return Payload(len(items), data, buffers, size)


def _encode_by_value(items: Sequence[Any], in_band: Any) -> bytes:
    """Pickle what the standard pickle refuses: lambdas, local functions and classes."""
    from .byvalue import dumps

    try:
        return dumps(items, in_band)
    except Exception as error:
        raise ItemError(f"it cannot be pickled: {str(error) or type(error).__name__}") from error


def encode_all(items: Sequence[Any], max_bytes: int, start: int = 0) -> list[Payload]:
    """Pickle items into as few frames as the limit allows; raise `Unsendable` for the first bad.

    `start` is the index of the first of them, for the error.
    """
    try:
        return [encode(items, max_bytes)]
    except ItemError as error:
        if len(items) == 1:
            message = f"an item of type {_full_name(type(items[0]))} cannot be sent: {error}"
            cause = ItemError(message)
            cause.__cause__ = error.__cause__
            raise Unsendable(start, cause) from error
    half = len(items) // 2
    left = encode_all(items[:half], max_bytes, start)
    return left + encode_all(items[half:], max_bytes, start + half)


def is_heavy(payload: Payload, frame_bytes: int) -> bool:
    """Whether a frame is twice what it should be, and can be cut.

    Frames are cut by the mean size of an item, and later ones may be much larger.
    """
    return payload.size > 2 * frame_bytes and payload.items > 1


def encode_frames(
    items: Sequence[Any], max_bytes: int, frame_bytes: int, start: int = 0
) -> list[Payload]:
    """As `encode_all`, but cut those that are heavy into frames of some `frame_bytes`."""
    payloads: list[Payload] = []
    done = 0
    for payload in encode_all(items, max_bytes, start):
        if is_heavy(payload, frame_bytes):
            most = max(1, payload.items * frame_bytes // payload.size)
            for first in range(done, done + payload.items, most):
                part = items[first : min(first + most, done + payload.items)]
                at = start + first
                payloads += encode_frames(part, max_bytes, frame_bytes, at)
        else:
            payloads.append(payload)
        done += payload.items
    return payloads


def _full_name(kind: type) -> str:
    builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"


def write(
    slot: memoryview,
    spill: Callable[[], memoryview],
    token: int,
    payload: Payload,
    riders: bytes,
    tag: Tag,
) -> None:
    """Write a frame; `spill()` gives the memory for a payload that does not fit `slot`."""
    path = array("Q", tag.path).tobytes() if tag.path else b""
    start = HEADER_BYTES + len(path) + len(riders)
    spilled = start + payload.size + 64 > SLOT_BYTES
    head = _HEADER.pack(
        payload.items,
        len(riders) // 8,
        len(payload.buffers),
        len(payload.data),
        payload.size,
        spilled,
        len(path) // 8,
        *tag[:6],
    )
    head += path + riders
    slot[:start] = _CHECKSUM.pack(_checksum(token, head)) + head
    target = spill() if spilled else slot[_aligned(start) :]
    if not payload.buffers:
        target[: len(payload.data)] = payload.data
        return
    lengths = array("Q", [raw.nbytes for raw in payload.buffers]).tobytes()
    offset = len(lengths)
    target[:offset] = lengths
    target[offset : offset + len(payload.data)] = payload.data
    offset = _aligned(offset + len(payload.data))
    for raw in payload.buffers:
        target[offset : offset + raw.nbytes] = raw
        offset += _aligned(raw.nbytes)


def read_header(slot: memoryview, token: int) -> tuple[Header, bytes, int]:
    """Header and riders of the frame in `slot`, and where its payload starts if it is not spilled.

    Raises `MPipeError` if it is not `token`'s.
    """
    header = Header.unpack(slot, _CHECKSUM.size)
    start = _CHECKSUM.size + header.packed_bytes
    end = start + 8 * header.riders
    head = slot[_CHECKSUM.size : end]
    if _CHECKSUM.unpack_from(slot)[0] != _checksum(token, head):
        raise MPipeError(
            f"corrupted frame in slot {token & 0xFFFF}: its shared memory was overwritten; "
            f"look for code that writes through stray pointers, such as a faulty extension"
        )
    return header, bytes(slot[start:end]), _aligned(end)


def read_items(header: Header, memory: memoryview) -> Sequence[Any]:
    """Unpickle the items from the payload's memory; arrays are views on it."""
    items: Sequence[Any]
    if not header.buffers:
        items = pickle.loads(memory[: header.pickle_bytes])
        return items
    offset = 8 * header.buffers
    data = memory[offset : offset + header.pickle_bytes]
    lengths = memory[:offset].cast("Q").tolist()
    offset = _aligned(offset + header.pickle_bytes)
    buffers = []
    for length in lengths:
        buffers.append(memory[offset : offset + length])
        offset += _aligned(length)
    items = pickle.loads(data, buffers=buffers)
    return items


def owned(header: Header, payload: memoryview) -> memoryview:
    """The payload in memory that arrays may keep: a copy, where there are any."""
    return memoryview(bytearray(payload)) if header.buffers else payload


def _checksum(token: int, head: bytes | memoryview) -> int:
    return crc32(head, (token ^ token >> 24) & 0xFFFFFFFF)


def _aligned(size: int) -> int:
    return (size + 63) & ~63
