"""Which steps need no interleaving, as they commute with all that others may do before them.

- A load of one's own words, a store to one that nobody else reads, a delivery.
- A store to the table or to a hand, when nobody else will look there for the old or the new value.
  One looks for the tokens in his words, for those he takes from a pipe and for the riders of his
  frames, and may put their successors; but only in recovery, or when the attempt is above 0.
  Producers look at producers' hands only, consumers at consumers' (which the search checks).
- A load from the table, when nobody else has the token that is found there: he alone could store.
- A frame read or written, when no other has a token that could make him write or read it.
- A put or take at an end of a pipe that no other process will use, unless somebody polls.
"""

from __future__ import annotations

from protocol_state import State, Words, has_attempt
from protocol_steps import (
    DELIVER,
    DONE,
    FREE,
    LOAD,
    PUT,
    READ,
    READY,
    STORE,
    TAKE,
    WRITE,
    Setup,
    riders_of,
)

from mpipe.transport.layout import IN_HAND, INTENT
from mpipe.transport.token import END, SERIAL_ONE, SLOT_MASK, plain


class Order:
    """Decides for one configuration."""

    def __init__(self, setup: Setup, words: Words) -> None:
        self._words = words
        self._layout = words.layout
        self._producers = range(setup.producers)
        self._consumers = range(setup.producers, setup.producers + setup.consumers)
        self._setup = setup

    def is_free(self, state: State, process: int, crashes: int) -> bool:
        """Whether the next step of the process needs no interleaving, so many crashes ahead."""
        node = state.nodes[process]
        kind, where = node.kind, node.where
        if kind in (LOAD, STORE):
            owner = self._words.owner[where]
            if owner is None:
                return self._table(state, process, crashes)
            if kind == LOAD:
                return owner == process
            return self._words.private[where] or self._hand(state, process, crashes)
        if kind in (READ, WRITE):
            return self._frame(state, process)
        if kind == PUT:
            return self._put(state, process, crashes)
        if kind == TAKE:
            return self._take(state, process)
        return kind == DELIVER

    def _table(self, state: State, process: int, crashes: int) -> bool:
        node, owned = state.nodes[process], self._sought(state, process, True)
        if node.kind == LOAD:
            return state.words[node.where] not in owned
        token = plain(node.what)
        if token in owned or token - SERIAL_ONE in owned:  # two might store, if there is a fault
            return False
        return token - 2 * SERIAL_ONE not in self._sought(state, process, crashes > 0)

    def _hand(self, state: State, process: int, crashes: int) -> bool:
        if not self._has_peers(state, process):
            return True
        node = state.nodes[process]
        wanted = set()
        for token in (state.words[node.where], node.what):
            if token and token != END:
                wanted |= {plain(token) - SERIAL_ONE, plain(token)}
        return wanted.isdisjoint(self._sought(state, process, crashes > 0))

    def _has_peers(self, state: State, process: int) -> bool:
        """Whether others on the side of the process are not done."""
        side = self._producers if process in self._producers else self._consumers
        return any(peer != process and state.nodes[peer].kind != DONE for peer in side)

    def _sought(self, state: State, process: int, in_doubt: bool) -> set[int]:
        """Tokens, plain, for which other processes may look into the table and into hands.

        If not `in_doubt`, they do that only for attempts above 0 or while they recover.
        """
        words, free, ready, frames, nodes, _ = state
        sought: list[int] = []  # in any case
        others: list[int] = []  # if the attempt is above 0
        in_frames: list[int] = []  # with their riders
        for seat in self._producers:
            if seat != process and nodes[seat].kind != DONE:
                recovers = in_doubt or nodes[seat].replaces
                (sought if recovers else others).extend(self._words.hand(words, seat))
        one_recovers = in_doubt  # and takes further frames as one who recovers
        for seat, consumer in enumerate(self._consumers):
            if consumer == process or nodes[consumer].kind == DONE:
                continue
            start = self._layout.consumer(seat)
            token, spare, credited = words[start : start + 3]
            if in_doubt or nodes[consumer].replaces:
                one_recovers = True
                in_frames.append(token)
                if not token or token != credited:
                    sought.append(spare)
            else:
                others.append(token)
        (in_frames if one_recovers else others).extend(ready)
        (sought if in_doubt else others).extend(free)
        for token in in_frames:
            if token and token != END:
                sought.append(token)
                sought += riders_of(frames[token & SLOT_MASK])
        return {plain(token) for token in sought} | {plain(t) for t in others if has_attempt(t)}

    def _frame(self, state: State, process: int) -> bool:
        """Who is past its intent does not write any more; a spare is neither written nor read."""
        words, layout, slot = state.words, self._layout, state.nodes[process].where
        tokens = [*state.free, *state.ready]
        for seat in self._producers:
            if seat != process and not words[layout.producer(seat) + INTENT]:
                tokens += self._words.hand(words, seat)
        for seat, consumer in enumerate(self._consumers):
            if consumer != process:
                tokens.append(words[layout.consumer(seat) + IN_HAND])
        return not any(token and token & SLOT_MASK == slot for token in tokens)

    def _put(self, state: State, process: int, crashes: int) -> bool:
        nodes, to_free = state.nodes, state.nodes[process].where == FREE
        if to_free and self._setup.polls:
            return False
        for producer in self._producers:
            may_put = not to_free or crashes > 0 or nodes[producer].replaces
            if producer != process and nodes[producer].kind != DONE and may_put:
                return False
        return not to_free or all(
            consumer == process or nodes[consumer].kind == DONE for consumer in self._consumers
        )

    def _take(self, state: State, process: int) -> bool:
        """Fewer tokens than wanted are there: a put before would change what is taken."""
        node = state.nodes[process]
        pipe = state.ready if node.where == READY else state.free
        if node.where == READY and self._setup.price > 1:
            return False
        return len(pipe) >= node.what[1] and not self._has_peers(state, process)
