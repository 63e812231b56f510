"""The channel's protocol, with a crash forced at every single step of it.

A "crash" stops an end at its k-th access to shared words or pipes; a new end in the same seat
recovers. The oracle is outside: what was sent must arrive once, and every credit must come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mpipe.errors import MPipeError
from mpipe.transport.channel import Channel, create_channel
from mpipe.transport.consumer import Consumer
from mpipe.transport.frame import HEADER_BYTES, Tag, encode
from mpipe.transport.layout import CREDITED, HAND, ChannelLayout
from mpipe.transport.producer import Producer
from mpipe.transport.token import SLOT_MASK, plain

TAG = Tag(0, 0, 0, 1, 1)
LIMIT = 1 << 20


class Crash(Exception):
    """Stands for SIGKILL."""


class Faulty:
    """Words or a pipe of which the access number `fuse` never happens, nor any later one."""

    def __init__(self, target: Any, fuse: list[int]) -> None:
        self._target, self._fuse = target, fuse

    def _step(self) -> None:
        self._fuse[0] -= 1
        if self._fuse[0] < 0:
            raise Crash

    def __getitem__(self, index: Any) -> Any:
        return self._target[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._step()
        self._target[index] = value

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if name not in ("put", "take", "wait_take"):
            return attribute

        def call(*args: Any) -> Any:
            self._step()
            return attribute(*args)

        return call


@contextmanager
def channel(
    buffer_items: int, consumers: int = 1, producers: int = 1, buffer_bytes: int = 1 << 40
) -> Iterator[Channel]:
    layout = ChannelLayout(buffer_items, consumers, producers, LIMIT, buffer_bytes)
    fds = create_channel(layout)
    opened = Channel(fds)
    try:
        yield opened
    finally:
        opened.close()
        for fd in fds.all():
            os.close(fd)


def send(producer: Producer, items: list[Any]) -> int:
    got = producer.acquire(len(items), encode(items, LIMIT).size)
    if got:
        producer.publish(encode(items[:got], LIMIT), TAG)
    return got


def send_all(producer: Producer, items: list[Any]) -> None:
    while items:
        got = send(producer, items)
        assert got
        items = items[got:]


def receive(consumer: Consumer) -> list[Any] | None:
    while consumer.token or consumer.take():
        if consumer.claim() is not None:
            items = consumer.load()
            consumer.release()
            return items
    return None


def receive_all(consumer: Consumer) -> list[Any]:
    received = []
    while (items := receive(consumer)) is not None:
        received += items
    return received


def credits_left(channel: Channel) -> int:
    """Empties the free pipe and counts the slots whose current token was in it."""
    tokens = set()
    while channel.free.waiting():
        raw = os.read(channel.free.fds.read, 8)
        tokens.add(plain(int.from_bytes(raw, "little")))
    return sum(channel.words[token & SLOT_MASK] == token for token in tokens)


def crashing(end: Any, fuse: int) -> Any:
    """The same end, which crashes at its access number `fuse`."""
    counter = [fuse]
    end._words = Faulty(end._words, counter)
    real = end.channel
    end.channel = type("Proxy", (), {})()
    end.channel.__dict__.update(
        layout=real.layout,
        words=end._words,
        free=Faulty(real.free, counter),
        ready=Faulty(real.ready, counter),
        slot=real.slot,
        spills=real.spills,
    )
    return end


def crash_everywhere(scenario: Callable[[int], bool]) -> int:
    """Run `scenario(fuse)` for each fuse until it reports that nothing crashed."""
    fuse = 0
    while scenario(fuse):
        fuse += 1
    return fuse


def test_a_queue_holds_exactly_its_items() -> None:
    with channel(7) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        assert send(producer, list(range(5))) == 5
        assert send(producer, list(range(5))) == 2
        assert send(producer, [0]) == 0
        assert receive(consumer) == [0, 1, 2, 3, 4]
        assert send(producer, list(range(9))) == 5


@pytest.mark.parametrize("buffer_items", [2049, 5000, 100_000])
def test_a_large_queue_never_holds_more_than_its_items(buffer_items: int) -> None:
    with channel(buffer_items) as pipe:
        producer = Producer(pipe, 0)
        accepted = 0
        while got := send(producer, list(range(1000))):
            accepted += got
        assert buffer_items * 0.9 <= accepted <= buffer_items


def test_credits_return_the_moment_a_frame_is_taken() -> None:
    with channel(3) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        send(producer, [1, 2, 3])
        assert consumer.take()
        assert consumer.claim() is not None
        assert send(producer, [4, 5, 6, 7]) == 3
        assert consumer.load() == [1, 2, 3]


BIG = [bytes(1000)]
"""An item of some more than a thousand bytes."""


def test_a_queue_holds_no_more_than_its_bytes_but_always_one_frame() -> None:
    with channel(20, buffer_bytes=2000) as pipe:
        producer, other, consumer = Producer(pipe, 0), Producer(pipe, 0), Consumer(pipe, 0)
        assert send(producer, BIG) == 1
        assert send(producer, BIG) == 0
        producer.give_back()
        assert send(producer, [1] * 10) == 9, "eleven of the twenty credits are taken"
        assert receive(consumer) == BIG
        assert receive(consumer) == [1] * 9
        assert send(producer, [bytes(100_000)]) == 1, "nothing else waits"
        assert send(other, [1]) == 0
        assert receive(consumer) == [bytes(100_000)]
        assert credits_left(pipe) == 20


def test_two_producers_that_hold_a_part_of_what_they_need_do_not_wait_for_each_other() -> None:
    with channel(20, producers=2, buffer_bytes=2000) as pipe:
        one, two, consumer = Producer(pipe, 0), Producer(pipe, 1), Consumer(pipe, 0)
        assert send(one, BIG) == 1
        assert one.acquire(1, 800) == 1  # eight credits
        assert send(two, BIG) == 0  # the last one
        assert receive(consumer) == BIG
        pipe.free.take(pipe.layout.producer(0), 20)  # somebody else is quicker
        assert send(two, BIG) == 1


def test_credits_that_are_given_back_can_be_used_by_others_and_a_crash_in_it_loses_none() -> None:
    def scenario(fuse: int) -> bool:
        with channel(20, producers=2, buffer_bytes=2000) as pipe:
            consumer = Consumer(pipe, 0)
            assert send(Producer(pipe, 1), BIG) == 1
            crashed = True
            try:
                dying = crashing(Producer(pipe, 0), fuse)
                assert send(dying, BIG) == 0
                dying.give_back()
                crashed = False
            except Crash:
                pass
            replacement = Producer(pipe, 0)
            replacement.recover()
            send_all(Producer(pipe, 1), list(range(9)))
            assert receive_all(consumer) == [*BIG, *range(9)]
            assert credits_left(pipe) == 20
        return crashed

    assert crash_everywhere(scenario) > 6


@pytest.mark.parametrize(("items", "buffer_bytes"), [([10, 11, 12], 1 << 40), ([bytes(30)], 80)])
def test_a_producer_that_crashes_at_any_step_loses_and_doubles_nothing(
    items: list[Any], buffer_bytes: int
) -> None:
    """Three credits each: one for each item, or all for a large one."""

    def scenario(fuse: int) -> bool:
        with channel(4, producers=2, buffer_bytes=buffer_bytes) as pipe:
            consumer = Consumer(pipe, 0)
            crashed = True
            try:
                send(crashing(Producer(pipe, 0), fuse), items)
                crashed = False
            except Crash:
                pass
            replacement = Producer(pipe, 0)
            replacement.recover()
            missing = items[replacement.published :]
            assert missing in ([], items)
            if missing:
                send_all(replacement, missing)
            assert receive_all(consumer) == items
            assert credits_left(pipe) == 4
        return crashed

    assert crash_everywhere(scenario) > 6


def test_a_producer_whose_replacement_crashes_too_loses_and_doubles_nothing() -> None:
    def pair(first: int, second: int) -> tuple[bool, bool]:
        with channel(4, producers=2) as pipe:
            consumer = Consumer(pipe, 0)
            crashed = [False, False]
            try:
                send(crashing(Producer(pipe, 0), first), [10, 11, 12])
            except Crash:
                crashed[0] = True
            try:
                crashing(Producer(pipe, 0), second).recover()
            except Crash:
                crashed[1] = True
            third = Producer(pipe, 0)
            third.recover()
            if third.published == 0:
                send_all(third, [10, 11, 12])
            assert receive_all(consumer) == [10, 11, 12]
            assert credits_left(pipe) == 4
        return crashed[0], crashed[1]

    first = 0
    while True:
        second = 0
        while (result := pair(first, second))[1]:
            second += 1
        if not result[0]:
            break
        first += 1
    assert first > 6


@pytest.mark.parametrize("riders", [0, 2, 10])
def test_a_consumer_that_crashes_at_any_step_loses_and_doubles_nothing(riders: int) -> None:
    items = list(range(riders + 1))

    def scenario(fuse: int) -> bool:
        with channel(riders + 2, consumers=2) as pipe:
            producer = Producer(pipe, 0)
            send(producer, items)
            send(producer, ["next"])
            done: list[Any] = []
            crashed = True
            try:
                dying = crashing(Consumer(pipe, 0), fuse)
                dying.take()
                dying.claim()
                done = dying.load()
                dying.release()
                crashed = False
            except Crash:
                pass
            replacement = Consumer(pipe, 0)
            replacement.recover()
            again = receive(replacement) if replacement.token else None
            if again is not None:
                assert again in (items, done)
                done = again
            assert (done or receive(replacement)) == items
            assert receive_all(Consumer(pipe, 1)) == ["next"]
            assert credits_left(pipe) == riders + 2
        return crashed

    assert crash_everywhere(scenario) > 4


CREDITED_FUSE = 4
"""The access of a consumer at which it notes that it has returned the credits of two items."""


def crash_before_credited(pipe: Channel, seat: int = 0) -> None:
    """Take a frame and die when its credits are back and nobody can know."""
    dying = crashing(Consumer(pipe, seat), CREDITED_FUSE)
    before = pipe.free.waiting()
    dying.take()
    with pytest.raises(Crash):
        dying.claim()
    assert pipe.free.waiting() > before
    assert dying._words[dying._block + CREDITED] != dying.token


def test_a_seat_that_dies_hundreds_of_times_while_it_returns_credits_doubles_none() -> None:
    with channel(2, producers=2) as pipe:
        producer = Producer(pipe, 0)
        for _ in range(300):  # more than there are attempts in a token
            assert send(producer, ["x", "y"]) == 2
            crash_before_credited(pipe)
            replacement = Consumer(pipe, 0)
            replacement.recover()
            assert receive(replacement) == ["x", "y"]
            everything = Producer(pipe, 1)
            assert [everything.acquire(9) for _ in range(3)][-1] == 2
            everything.recover()


def test_however_often_replacements_die_the_pipe_of_credits_does_not_fill_up() -> None:
    items, deaths = list(range(60)), 40
    with channel(len(items)) as pipe:
        assert send(Producer(pipe, 0), items) == len(items)
        fuse = len(items) + 2  # all credits are put, and nobody can know
        for turn in range(deaths):
            dying = crashing(Consumer(pipe, 0), fuse)
            assert dying.recover() or dying.take()
            with pytest.raises(Crash):
                dying.claim()
            fuse = 2 + turn % 2  # one more is put, and nobody can know, or they can
        assert pipe.free.waiting() <= len(items) + deaths
        survivor = Consumer(pipe, 0)
        survivor.recover()
        assert receive(survivor) == items
        assert credits_left(pipe) == len(items)


def test_a_seat_that_died_while_it_gave_credits_back_verifies_what_it_takes_later() -> None:
    def scenario(fuse: int) -> bool:
        with channel(1, producers=2) as pipe:
            Producer(pipe, 0).acquire(1)  # and dies
            crashed = True
            try:
                crashing(Producer(pipe, 0), fuse).recover()
                crashed = False
            except Crash:
                Producer(pipe, 0).recover()
            holder, hand = Producer(pipe, 1), pipe.layout.producer(0) + HAND
            assert holder.acquire(1) == 1
            double = pipe.words[pipe.layout.producer(1) + HAND] | 0xFF << 16
            pipe.free.put(double.to_bytes(8, "little"))
            assert pipe.free.take(hand) == 1  # and dies before it verifies
            Producer(pipe, 0).recover()
            holder.publish(encode(["x"], LIMIT), TAG)
            assert receive_all(Consumer(pipe, 0)) == ["x"]
            assert credits_left(pipe) == 1
        return crashed

    assert crash_everywhere(scenario) > 4


def test_a_token_put_twice_is_taken_once() -> None:
    with channel(3, consumers=2, producers=2) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        send(producer, ["x"])
        assert consumer.take()
        double = plain(consumer.token) | 1 << 16
        pipe.ready.put(double.to_bytes(8, "little"))
        other = Consumer(pipe, 1)
        assert other.take()
        assert other.claim() is None, "the first is still in hand"
        consumer.claim()
        consumer.release()
        pipe.ready.put(double.to_bytes(8, "little"))
        assert receive(other) is None, "the first is now a spare"
        assert credits_left(pipe) == 3


def test_a_credit_returned_twice_is_used_once() -> None:
    with channel(2, producers=2) as pipe:
        first, second = Producer(pipe, 0), Producer(pipe, 1)
        assert first.acquire(1) == 1
        token = pipe.words[pipe.layout.producer(0) + HAND]
        pipe.free.put((plain(token) | 1 << 16).to_bytes(8, "little"))
        assert second.acquire(2) == 1, "the double is thrown away"
        assert pipe.words[pipe.layout.producer(1) + HAND] & SLOT_MASK != token & SLOT_MASK


def test_whichever_bit_of_a_frame_s_head_is_wrong_it_is_an_error_and_never_handed_on() -> None:
    with channel(4) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        assert producer.acquire(3) == 3
        tag = Tag(1, 2, 3, 4, 0, 5, (6, 7, 8))
        producer.publish(encode(["x", "y", "z"], 1000), tag)
        consumer.take()
        head = pipe.slot(consumer.token & SLOT_MASK)[: HEADER_BYTES + 8 * (len(tag.path) + 2)]
        for bit in range(8 * len(head)):
            head[bit // 8] ^= 1 << bit % 8
            with pytest.raises(MPipeError, match="corrupted frame"):
                consumer.claim()
            head[bit // 8] ^= 1 << bit % 8
        consumer.claim()
        assert consumer.load() == ["x", "y", "z"]


def memory_bytes(pipe: Channel) -> int:
    """What the channel's file takes, as the kernel has it."""
    return os.fstat(pipe.fds.file).st_blocks * 512


def test_large_payloads_go_where_others_were_before_them() -> None:
    """To get new pages takes as long as to fill them."""
    with channel(1000, buffer_bytes=16 << 20) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        large = bytes(900_000)
        for _ in range(40):
            send_all(producer, [large])
            assert receive(consumer) == [large]
        once = memory_bytes(pipe)
        assert once < 22 << 20, "a slot in each share of the credits that a frame takes"
        for _ in range(200):
            send_all(producer, [large])
            receive(consumer)
        assert memory_bytes(pipe) < 1.3 * once


def test_memory_that_large_payloads_leave_behind_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpipe.transport.consumer.RETAINED_BYTES", 1 << 20)
    with channel(500, buffer_bytes=4 << 20) as pipe:
        producer, consumer = Producer(pipe, 0), Consumer(pipe, 0)
        for size in range(70_000, 1_000_000, 7_000):
            send_all(producer, [bytes(size)])
            receive(consumer)
            assert memory_bytes(pipe) < 7 << 20
