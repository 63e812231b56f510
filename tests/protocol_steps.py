"""The ends of a channel as processes made of steps, for `explorer.py` to interleave.

What runs are the real `Producer` and `Consumer`. Each load or store of a shared word, each pipe
operation, each frame written or read is a step. What a process does next depends only on what its
steps answered: it is run once for each such history, up to its first unanswered step, and that is
remembered as a `Node`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from mpipe.transport.channel import Channel
from mpipe.transport.consumer import Consumer
from mpipe.transport.frame import HEADER_BYTES, Payload, Tag, encode
from mpipe.transport.layout import ChannelLayout
from mpipe.transport.producer import Producer
from mpipe.transport.token import END

LOAD, READ, COUNT, DONE = range(4)
"""Steps that only look, and the end of a process."""

STORE, DELIVER, WRITE, PUT, TAKE, TRY_TAKE, AWAIT_ROOM, AWAIT_OTHERS = range(4, 12)
"""Steps that change something or wait: a crash before one is not the same as after it."""

FREE, READY = 0, 1
"""The pipes."""

FRAME_BYTES = 256
"""Room for a header, a few riders and a few small numbers."""

GARBAGE = bytes(FRAME_BYTES)
"""What one finds in a slot that is free."""

CREDIT_BYTES = 100
"""Bytes that a credit stands for."""


@dataclass(frozen=True)
class Setup:
    """One configuration. Each producer sends `items` items in frames of at most `batch`."""

    producers: int = 1
    consumers: int = 1
    credits: int = 1
    items: int = 1
    batch: int = 1
    crashes: int = 0
    price: int = 1
    """Credits that an item costs, because it is large."""
    slow: bool = False
    """A producer's replacement gets to work only when the other producers are done."""
    producer: type[Producer] = Producer
    consumer: type[Consumer] = Consumer

    @property
    def layout(self) -> ChannelLayout:
        room = self.credits * CREDIT_BYTES
        return ChannelLayout(self.credits, self.consumers, self.producers, 1 << 20, room)

    @property
    def polls(self) -> bool:
        """Whether producers look into the pipes without waiting."""
        return self.batch > 1 or self.price > 1


class Unanswered(BaseException):
    """Ends the run of a process at its first step without an answer."""


class Tape:
    """The answers to a process's steps so far; raises at the first step without one."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = iter(answers)
        self._written: list[tuple[int, bytearray]] = []
        self.step: tuple[int, int, Any] = (DONE, 0, None)
        self.has_seen_frames = False
        """Whether frames were waiting when the process looked last."""

    def perform(self, kind: int, where: int, what: Any = None) -> Any:
        if self._written:  # by the process since its last step
            slot, content = self._written.pop()
            self.perform(WRITE, slot, bytes(content))
        for answer in self._answers:
            return answer
        self.step = (kind, where, what)
        raise Unanswered

    def frame_to_write(self, slot: int) -> memoryview:
        content = bytearray(FRAME_BYTES)
        self._written.append((slot, content))
        return memoryview(content)


class _Words:
    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            indices = range(index.start, index.stop)
            return array("Q", [self._tape.perform(LOAD, i) for i in indices])
        return self._tape.perform(LOAD, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            for i, one in zip(range(index.start, index.stop), value, strict=True):
                self._tape.perform(STORE, i, one)
        else:
            self._tape.perform(STORE, index, value)


class _Pipe:
    def __init__(self, tape: Tape, number: int) -> None:
        self._tape, self._number = tape, number

    def put(self, tokens: bytes) -> None:
        self._tape.perform(PUT, self._number, tuple(array("Q", tokens)))

    def take(self, index: int, count: int = 1) -> int:
        return int(self._tape.perform(TRY_TAKE, self._number, (index, count)))

    def wait_take(self, index: int, count: int = 1) -> int:
        return int(self._tape.perform(TAKE, self._number, (index, count)))

    def waiting(self) -> int:
        count = int(self._tape.perform(COUNT, self._number))
        self._tape.has_seen_frames = count > 0
        return count


class ModelChannel(Channel):
    """A channel whose every access is a step on `tape`."""

    def __init__(self, layout: ChannelLayout, tape: Tape, writes: bool) -> None:
        self.layout = layout
        self.tape = tape
        self.words = _Words(tape)  # type: ignore[assignment]
        self.free = _Pipe(tape, FREE)  # type: ignore[assignment]
        self.ready = _Pipe(tape, READY)  # type: ignore[assignment]
        self._writes = writes

    def slot(self, slot: int) -> memoryview:
        if self._writes:
            return self.tape.frame_to_write(slot)
        return memoryview(self.tape.perform(READ, slot))


# What the processes do, in parts; an end remembers nothing from one part to the next.


def produce(setup: Setup, seat: int, tape: Tape, replaces: bool) -> bool:
    """Recover, or send one frame as an `Emitter` does; returns whether there is more to do."""
    channel = ModelChannel(setup.layout, tape, writes=True)
    producer = setup.producer(channel, seat)
    if replaces:
        producer.recover()
        if setup.slow:
            tape.perform(AWAIT_OTHERS, seat)
        if vars(producer) == vars(setup.producer(channel, seat)):
            return True
    left = range(producer.published, setup.items)
    if not left:
        return False
    items = tuple(seat * setup.items + i for i in left[: setup.batch])
    got = gather(setup, producer, len(items))
    producer.publish(payload_of(items[:got]), Tag(0, 0, 0, 1, 1))
    assert vars(producer) == vars(setup.producer(channel, seat)), "it remembers something"
    return True


def gather(setup: Setup, producer: Producer, items: int) -> int:
    """As an `Emitter` does, with and without `drop_on_full`, and as `Producer.gather`.

    That looks again every now and then; here it looks when it can find something else.
    """
    size = items * setup.price * CREDIT_BYTES if setup.price > 1 else 0
    tape = producer.channel.tape
    if setup.price > 1 and not producer.acquire(items, size):
        producer.give_back()
    got, topped_up = producer.acquire(items, size, wait=True), False
    while not got or (got < items and not topped_up):
        if got:
            topped_up = True
        else:
            tape.perform(AWAIT_ROOM, producer.can_take_more, tape.has_seen_frames)
        got = producer.acquire(items, size)
    return got


def consume(setup: Setup, seat: int, tape: Tape, replaces: bool) -> bool:
    """Recover and handle one frame, as a `Worker` does; returns whether there is more to do."""
    channel = ModelChannel(setup.layout, tape, writes=False)
    consumer = setup.consumer(channel, seat)
    committed = committed_word(channel.layout, seat)
    if replaces and consumer.recover() in (0, END):
        return True
    while True:
        if not consumer.token:
            consumer.wait_take()
        if consumer.token == END:
            return False
        if consumer.claim() is not None:
            break
    if channel.words[committed] != consumer.token:
        tape.perform(DELIVER, committed, (consumer.token, tuple(consumer.load())))
    consumer.release()
    assert vars(consumer) == vars(setup.consumer(channel, seat)), "it remembers something"
    return True


def committed_word(layout: ChannelLayout, seat: int) -> int:
    """Where the model has the frame that a consumer counted last (in truth, on the board)."""
    return layout.producer(layout.producers) + seat


@lru_cache(None)
def payload_of(items: tuple[int, ...]) -> Payload:
    return encode(items, 1 << 20)


@lru_cache(None)
def riders_of(content: bytes) -> tuple[int, ...]:
    """The riders of a frame."""
    count = int.from_bytes(content[16:24], "little")
    return tuple(memoryview(content)[HEADER_BYTES : HEADER_BYTES + 8 * count].cast("Q"))


# Processes as steps.


class Node:
    """Where a process is: its next step, given what its steps since the part began answered."""

    def __init__(self, life: Life, replaces: bool, parent: Node | None = None, answer: Any = None):
        self._life = life
        self._parent = parent
        self._answer = answer
        self._next: dict[Any, Node] = {}
        self.kind, self.where, self.what = DONE, 0, None
        self.replaces = replaces
        """Whether it recovers, or handles the frame that it recovered."""
        self.changed = parent is not None and (parent.changed or parent.kind >= STORE)
        """Whether some step since the part began may have changed something, or waited."""

    def after(self, answer: Any) -> Node:
        """Where the process is when its step has answered this."""
        if answer not in self._next:
            new = Node(self._life, self.replaces, self, answer)
            self._next[answer] = self._life.run(new)
        return self._next[answer]

    def history(self) -> list[Any]:
        """What the steps answered."""
        answers, node = [], self
        while node._parent is not None:
            answers.append(node._answer)
            node = node._parent
        return answers[::-1]

    def behaviours(self, before: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
        """All sequences of steps that are known to be possible from here."""
        steps = (*before, self.kind, self.where, self.what)
        found = {steps}
        for node in self._next.values():
            if node._parent is self:
                found |= node.behaviours(steps)
            else:
                found.add((*steps, node.kind == DONE))  # the next part
        return found


class Life:
    """All that one process may do, as far as it is known."""

    def __init__(self, name: str, program: Callable[[Tape, bool], bool]) -> None:
        self.name = name
        self.histories = 0
        self._program = program
        self._done = Node(self, False)
        self.first = self.run(Node(self, False))
        self.replacement = self.run(Node(self, True))

    def run(self, node: Node) -> Node:
        """Find the step of a new node; returns where the process is, which may be another part."""
        self.histories += 1
        tape = Tape(node.history())
        try:
            return self.first if self._program(tape, node.replaces) else self._done
        except Unanswered:
            node.kind, node.where, node.what = tape.step
            return node


def lives(setup: Setup) -> list[Life]:
    """The processes of a configuration: the producers, then the consumers."""
    producers = [
        Life(f"producer {seat}", partial(produce, setup, seat)) for seat in range(setup.producers)
    ]
    consumers = [
        Life(f"consumer {seat}", partial(consume, setup, seat)) for seat in range(setup.consumers)
    ]
    return producers + consumers
