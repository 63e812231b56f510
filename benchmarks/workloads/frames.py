"""Full-HD frames through three stages of NumPy, one worker each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Stage, Workload

Frame = NDArray[np.uint8]
HEIGHT, WIDTH = 1080, 1920


def frames(items: int, scale: int) -> Iterator[Frame]:
    """As a camera would give them: each in memory of its own."""
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i in range(items):
        frame = noise.copy()
        frame[i % HEIGHT] = i % 256
        yield frame


def correct(frame: Frame) -> Frame:
    """A fifth more contrast."""
    wide = frame.astype(np.uint16)
    wide *= 77
    wide >>= 6
    return np.minimum(wide, 255, out=wide).astype(np.uint8)


def blur(frame: Frame) -> Frame:
    """The mean of each pixel and its right and lower neighbours."""
    wide = frame.astype(np.uint16)
    wide[:, :-1] += wide[:, 1:]
    wide[:-1] += wide[1:]
    return (wide >> 2).astype(np.uint8)


def shrink(frame: Frame) -> Frame:
    """A quarter as wide and high, each pixel the mean of sixteen."""
    rows = frame[0::2].astype(np.uint16)
    rows += frame[1::2]
    rows = rows[0::2] + rows[1::2]
    columns = rows[:, 0::2] + rows[:, 1::2]
    return ((columns[:, 0::2] + columns[:, 1::2]) >> 4).astype(np.uint8)


def checksum(output: Any) -> tuple[int, ...]:
    frame = np.ascontiguousarray(output)
    return (*frame.shape, zlib.crc32(frame.data))


WORKLOAD = Workload(
    title="Full-HD frames",
    says="Frames of 6 MiB, made in the caller, through three stages of NumPy (contrast, a blur, "
    "a quarter of the size) on one worker each.",
    stages=(Stage("correct", correct), Stage("blur", blur), Stage("shrink", shrink)),
    source=frames,
    items=80,
    keep=checksum,
)
