"""The state of a channel while `explorer.py` explores it, and what must hold in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from protocol_steps import DONE, Life, Node, Setup, committed_word, riders_of

from mpipe.transport.layout import CREDITED, HAND, IN_HAND, SPARE
from mpipe.transport.token import ATTEMPT_MASK, END, SERIAL_ONE, SLOT_MASK, first_token, plain


class State(NamedTuple):
    words: tuple[int, ...]
    free: tuple[int, ...]
    ready: tuple[int, ...]
    frames: tuple[bytes, ...]
    """Content of each slot; garbage while it is free."""
    nodes: tuple[Node, ...]
    """Where each process is."""
    delivered: int
    """A bit for each item."""


class Wrong(Exception):
    """Something that must hold does not."""


class Words:
    """Which shared word is what, and whose: that process alone stores it, None for the table."""

    def __init__(self, setup: Setup) -> None:
        layout = self.layout = setup.layout
        self.senders = setup.producers
        size = committed_word(layout, layout.consumers)
        self.names = [f"entry of slot {index}" for index in range(size)]
        self.owner: list[int | None] = [None] * size
        self.private = [False] * size
        """Words that only their owner reads."""
        for seat in range(setup.producers):
            start = layout.producer(seat)
            noted = ["intent", "published", "dropped", "returning", "base", "base of", "carrier"]
            hand = [f"hand {index}" for index in range(layout.hand_words)]
            self._own(seat, start, noted, private=True)
            self._own(seat, start + HAND, hand, private=False)
        for seat in range(setup.consumers):
            process, start = setup.producers + seat, layout.consumer(seat)
            noted = ["credited", "returned", "return attempt"]
            self._own(process, start + IN_HAND, ["in hand", "spare"], private=False)
            self._own(process, start + CREDITED, noted, private=True)
            self._own(process, committed_word(layout, seat), ["committed"], private=True)

    def _own(self, process: int, start: int, names: list[str], private: bool) -> None:
        for index, name in enumerate(names, start):
            self.names[index] = name
            self.owner[index] = process
            self.private[index] = private

    def hand(self, words: tuple[int, ...], seat: int) -> tuple[int, ...]:
        """What is in a producer's hand."""
        start = self.layout.producer(seat) + HAND
        return words[start : start + self.layout.hand_words]

    def start(self) -> tuple[int, ...]:
        layout = self.layout
        tokens = [first_token(slot) for slot in range(layout.slots)]
        words = tokens + [0] * (len(self.owner) - layout.slots)
        for seat in range(layout.consumers):
            words[layout.consumer(seat) + SPARE] = tokens[layout.credits + seat]
        return tuple(words)

    def check_load(self, process: int, index: int) -> None:
        """Nobody reads private words of others, nor hands of the other side."""
        owner = self.owner[index]
        if owner is not None and owner != process:
            same_side = (owner < self.senders) == (process < self.senders)
            if self.private[index] or not same_side:
                raise Wrong(f"{self.names[index]} is read by another process")

    def check_store(self, words: tuple[int, ...], process: int, index: int, value: int) -> None:
        """Each word has one writer; an entry of the table goes from each serial to the next."""
        owner, old = self.owner[index], words[index]
        if owner is None and value not in (old, old + SERIAL_ONE):
            raise Wrong(f"{self.names[index]} goes from {old:#x} to {value:#x}")
        if owner not in (None, process):
            raise Wrong(f"{self.names[index]} is stored by another process")

    def check_slots(self, state: State) -> None:
        """Each slot has one owner at most, and can be found again."""
        table = state.words[: self.layout.slots]
        places = list(self._places(state))
        owners = Counter(token for token in places if table[token & SLOT_MASK] == token)
        if twice := [token & SLOT_MASK for token, count in owners.items() if count > 1]:
            raise Wrong(f"two own slot {twice[0]}")
        known = {plain(token) for token in places}
        for slot, token in enumerate(table):
            if token not in known and token - SERIAL_ONE not in known:
                raise Wrong(f"slot {slot} is lost")

    def _places(self, state: State) -> Iterator[int]:
        """The tokens in pipes, hands, spares and frames; doubles of a frame count once."""
        words, free, ready, frames, _, _ = state
        yield from free
        frame_tokens = [token for token in ready if token != END]
        yield from frame_tokens
        for seat in range(self.senders):
            yield from filter(None, self.hand(words, seat))
        for seat in range(self.layout.consumers):
            start = self.layout.consumer(seat)
            token, spare, credited = words[start : start + 3]
            if token and token != END:
                yield token
                frame_tokens += [token] * (token != credited)
            if not token or token != credited:
                yield spare
        table = words[: self.layout.slots]
        for token in {plain(token) for token in frame_tokens}.intersection(table):
            yield from riders_of(frames[token & SLOT_MASK])

    def check_end(self, state: State, processes: list[Life], items: int) -> None:
        """All are done, all items delivered, all credits free, and nothing else is left."""
        words, free, ready, _, nodes, delivered = state
        names = [
            life.name for life, node in zip(processes, nodes, strict=True) if node.kind != DONE
        ]
        if names:
            raise Wrong(f"deadlock: {', '.join(names)} cannot go on")
        if lost := [item for item in range(items) if not delivered >> item & 1]:
            raise Wrong(f"items {lost} are lost")
        layout = self.layout
        table = words[: layout.slots]
        credit = {plain(token) for token in free if table[token & SLOT_MASK] == plain(token)}
        spares = {words[layout.consumer(seat) + SPARE] for seat in range(layout.consumers)}
        if len(credit) != layout.credits or credit | spares != set(table):
            raise Wrong(f"{len(credit)} of {layout.credits} credits come back")
        if ready:
            raise Wrong("a token is left in the ready pipe")
        for index, value in enumerate(words):
            if value and self.names[index].startswith(("hand", "intent", "returning")):
                raise Wrong(f"{self.names[index]} is left behind")


def has_attempt(token: int) -> bool:
    return bool(token & ATTEMPT_MASK)
