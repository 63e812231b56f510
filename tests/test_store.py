"""A seat's store: what was added is found again, whenever its process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_channel import Crash, Faulty, crash_everywhere
from test_random_graphs import EXHAUSTIVE

from mpipe.transport import memory
from mpipe.transport.store import STORE_BYTES, Record, Store


@contextmanager
def store_file(seats: int = 1) -> Iterator[int]:
    fd = memory.create_file(seats * STORE_BYTES)
    try:
        yield fd
    finally:
        os.close(fd)


def content(fd: int, seat: int = 0) -> dict[int, bytes]:
    """What a new process finds, by number; also checks that nothing overlaps."""
    store = Store(fd, seat)
    found = {r.number: bytes(store.read(r)) for r in store.recover()}
    store.close()
    return found


def data(number: int, size: int) -> bytes:
    return bytes((number * 7 + i) % 251 for i in range(size))


@EXHAUSTIVE
@given(st.lists(st.tuples(st.integers(0, 300_000), st.booleans(), st.integers(0, 99)), max_size=30))
def test_any_adding_freeing_and_reopening_keeps_exactly_what_is_in_use(
    steps: list[tuple[int, bool, int]],
) -> None:
    with store_file() as fd:
        store = Store(fd, 0)
        kept: dict[int, tuple[Record, bytes]] = {}
        for number, (size, reopen, which) in enumerate(steps):
            if which % 3 == 0 and kept:
                record, _ = kept.pop(sorted(kept)[which % len(kept)])
                store.free(record)
            else:
                value = data(number, min(size, 1000) if which % 2 else size)
                record = store.add([value[:10], value[10:]], 1, number, number + 1)
                kept[number] = (record, value)
            if reopen:
                store.close()
                store = Store(fd, 0)
                assert sorted(store.recover()) == sorted(record for record, _ in kept.values())
        assert {n: bytes(store.read(r)) for n, (r, _) in kept.items()} == {
            n: value for n, (_, value) in kept.items()
        }
        store.close()


def crashing(store: Any, fuse: int) -> Store:
    counter = [fuse]
    store._words = Faulty(store._words, counter)
    store._raw = Faulty(store._raw, counter)
    return store  # type: ignore[no-any-return]


@pytest.mark.parametrize("freed", [(), (0,), (1,), (0, 1), (1, 2), (2, 1), (0, 2), (2,)])
@pytest.mark.parametrize("size", [10, 60, 64, 130, 200])
def test_a_crash_at_any_step_of_adding_leaves_all_or_nothing_of_it(
    freed: tuple[int, ...], size: int
) -> None:
    before = {number: data(number, 100) for number in range(3)}

    def scenario(fuse: int) -> bool:
        with store_file() as fd:
            store = Store(fd, 0)
            records = [store.add([value], 1, number) for number, value in before.items()]
            for number in freed:
                store.free(records[number])
            left = {n: value for n, value in before.items() if n not in freed}
            crashed = True
            try:
                crashing(store, fuse).add([data(9, size)], 1, 9)
                crashed = False
            except Crash:
                pass
            assert content(fd) in (left, {**left, 9: data(9, size)})
            again = Store(fd, 0)
            again.recover()
            again.add([data(8, 77)], 1, 8)
            again.close()
            assert content(fd)[8] == data(8, 77)
            assert content(fd).items() >= left.items()
        return crashed

    assert crash_everywhere(scenario) >= 3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0)])
def test_a_crash_at_any_step_of_freeing_frees_it_or_not(order: tuple[int, ...]) -> None:
    before = {number: data(number, 100_000) for number in range(4)}

    def scenario(fuse: int) -> bool:
        with store_file() as fd:
            store = Store(fd, 0)
            records = [store.add([value], 1, number) for number, value in before.items()]
            counter_store, gone, crashed = crashing(store, fuse), set(), True
            try:
                for number in order:
                    gone.add(number)
                    counter_store.free(records[number])
                crashed = False
            except Crash:
                pass
            found = content(fd)
            certain = {n: v for n, v in before.items() if n not in gone}
            assert certain.items() <= found.items() <= before.items()
            assert len(found) <= len(certain) + 1
        return crashed

    assert crash_everywhere(scenario) >= 3


def test_freed_memory_is_given_back() -> None:
    with store_file() as fd:
        store = Store(fd, 0)
        for _ in range(20):
            records = [store.add([bytes(10_000_000)], 1) for _ in range(3)]
            for record in records:
                store.free(record)
        assert os.fstat(fd).st_blocks * 512 < 1_000_000
        store.close()


def test_seats_do_not_meet() -> None:
    with store_file(2) as fd:
        first, second = Store(fd, 0), Store(fd, 1)
        first.add([b"one"], 1, 1)
        second.add([b"two"], 1, 2)
        second.put_root(1, (7, 8, 9))
        first.close()
        second.close()
        assert (content(fd, 0), content(fd, 1)) == ({1: b"one"}, {2: b"two"})
        assert list(Store(fd, 1).root(1)) == [7, 8, 9]
