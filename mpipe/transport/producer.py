"""The producing end of a channel: takes credits, publishes frames, recovers what a crash left.

`acquire` moves credits from the free pipe into the hand. `publish`, in order:

    1. write the frame into the slot of one of the credits, the carrier; the others are its riders
    2. carrier = its place in the hand; intent = items published after this frame, plus 1
    3. give the riders, then the carrier, their next serial in the table: the commit point
    4. put the carrier to the ready pipe
    5. published = intent - 1
    6. clear the hand
    7. intent = 0

Invariant: a slot's token is in one pipe or one hand, or rides in a frame, and only who holds it
stores into the slot and its table entry. The block of words has this seat as its only writer.
"""

from __future__ import annotations

import time

from ..policy.batching import credits_for, items_for
from . import frame
from .channel import Channel
from .layout import (
    BASE,
    BASE_OF,
    CARRIER,
    DROPPED,
    HAND,
    INTENT,
    PAGE,
    PUBLISHED,
    RETURNING,
    SERVICE_NS,
    SLOT_BYTES,
)
from .token import (
    ATTEMPT_ONE,
    SERIAL_ONE,
    SLOT_MASK,
    any_attempt,
    attempt,
    commit,
    held,
    plain,
    successors,
    to_bytes,
)

ROOM_S = 0.02
"""How often to look whether a frame that costs more credits than there are may go, in seconds."""

GATHER_NAPS = 4
"""How often to wait for more credits before a frame goes with those that are there."""


class Producer:
    """Seat number `seat` of those that produce into `channel`."""

    def __init__(self, channel: Channel, seat: int) -> None:
        self.channel = channel
        layout = channel.layout
        self._words = channel.words
        self._block = layout.producer(seat)
        self._hand = self._block + HAND
        self._unit = layout.unit
        self._credit_bytes = layout.credit_bytes
        self._most = layout.hand_words
        self._hand_end = self._hand + self._most
        self._end = self._hand  # of the words that may hold tokens now
        self._doubles = 0  # of them, those that held a double and are empty
        self._zeros = memoryview(bytes(8 * layout.hand_words)).cast("Q")

    @property
    def published(self) -> int:
        """Items published so far from this seat, whoever sat in it."""
        return self._words[self._block + PUBLISHED]

    @property
    def dropped(self) -> int:
        """Items dropped so far at this channel from this seat."""
        return self._words[self._block + DROPPED]

    def drop(self, items: int) -> None:
        """Count items that are not published because the queue is full."""
        self._words[self._block + DROPPED] += items

    def begin(self, work: int) -> None:
        """The frame `work` is about to be handled, perhaps not for the first time."""
        words, block = self._words, self._block
        if words[block + BASE_OF] != work:
            words[block + BASE] = words[block + PUBLISHED]
            words[block + BASE_OF] = work

    @property
    def offset(self) -> int:
        """Items published so far of what comes out of the frame named to `begin`."""
        return self._words[self._block + PUBLISHED] - self._words[self._block + BASE]

    def consumer_service_ns(self) -> float:
        """Mean service time of the consumers, in nanoseconds; 0 while unknown."""
        layout, words = self.channel.layout, self._words
        times = [words[layout.consumer(seat) + SERVICE_NS] for seat in range(layout.consumers)]
        known = [value for value in times if value]
        return sum(known) / len(known) if known else 0.0

    def acquire(self, items: int, size: int = 0, wait: bool = False) -> int:
        """Have credits for up to `items` items in hand, of `size` bytes in all.

        Returns for how many there are. With `wait`, blocks until there is at least one credit,
        though that may be too little for an item. Credits that are not used stay in hand.
        """
        price = min(credits_for(items, size, self._unit, self._credit_bytes), self._most)
        words, pipe = self._words, self.channel.free
        have = self._end - self._hand - self._doubles
        while have < price and self._end < self._hand_end:
            take = pipe.wait_take if wait and not have else pipe.take
            got = take(self._end, min(price - have, self._hand_end - self._end))
            self._end += got
            if got and any_attempt(words[self._end - got : self._end]):
                self._doubles += self._drop_doubles()
            have = self._end - self._hand - self._doubles
            if have or not got:
                break
            self._empty_hand()
        if have >= price:
            return min(items, have * self._unit)
        got = items_for(have, items, size, self._unit, self._credit_bytes)
        if have and not got and not self.channel.ready.waiting():
            return 1  # when nothing waits, whoever holds the rest may wait for ours
        return got

    def gather(self, items: int, size: int, nap: float) -> int:
        """As `acquire`, but waits for one item, and naps (seconds) for more while consumers work.

        Else credits that came back a few at a time would be spent a few at a time for ever.
        """
        naps, got = 0, self.acquire(items, size, wait=True)
        while got < items:
            if not got:
                self._wait_for_credits()
            elif naps < GATHER_NAPS and self.consumers_are_busy():
                time.sleep(nap)
                naps += 1
            else:
                break
            got = self.acquire(items, size)
        return got

    def _wait_for_credits(self) -> None:
        if self.can_take_more:
            self.channel.free.wait(ROOM_S)
        else:
            time.sleep(ROOM_S)

    @property
    def can_take_more(self) -> bool:
        """Whether the hand has room for further credits."""
        return self._end < self._hand_end

    @property
    def holds_credits(self) -> bool:
        """Whether there are credits in the hand, though perhaps too few."""
        return self._end > self._hand

    def give_back(self) -> None:
        """Return the credits in hand."""
        if full := self._full():
            self._give_back(full)
        self._empty_hand()

    def trim(self, items: int, size: int) -> None:
        """Return those that `items` items, `size` bytes in all, do not cost."""
        price = min(credits_for(items, size, self._unit, self._credit_bytes), self._most)
        if self._end - self._hand - self._doubles > price:
            full = self._full()
            self._give_back(full[price:])
            self._end = full[price - 1] + 1
            self._doubles = self._end - self._hand - price

    def _full(self) -> list[int]:
        """Indices of the words of the hand that hold a credit."""
        words = self._words
        return [index for index in range(self._hand, self._end) if words[index]]

    def consumers_are_busy(self) -> bool:
        """Whether a frame waits for each consumer."""
        return self.channel.ready.waiting() >= self.channel.layout.consumers

    def publish(self, payload: frame.Payload, tag: frame.Tag) -> None:
        """Send a frame in exchange for all credits in the hand, which must cover its items."""
        words, block = self._words, self._block
        carrier, riders = self._hand, b""
        if self._end > carrier + 1:
            carrier = self._choose_carrier(payload.size)
            riders = successors(self._others(carrier))
        token = words[carrier] + SERIAL_ONE
        slot = token & SLOT_MASK
        frame.write(
            self.channel.slot(slot),
            lambda: self._spill(slot, payload.size),
            token,
            payload,
            riders,
            tag,
        )
        words[block + CARRIER] = carrier
        words[block + INTENT] = words[block + PUBLISHED] + payload.items + 1
        commit(words, riders)
        words[slot] = token
        self.channel.ready.put(token.to_bytes(8, "little"))
        self._settle()

    def _choose_carrier(self, size: int) -> int:
        """Index of the credit whose slot is to carry a payload of `size` bytes.

        A large one goes where most memory is there already: to get new pages takes as long as to
        fill them.
        """
        words, touched = self._words, self.channel.layout.touched(0)
        if size < SLOT_BYTES:
            carrier = self._hand
            while not words[carrier]:
                carrier += 1
            return carrier
        return max(self._full(), key=lambda index: words[touched + (words[index] & SLOT_MASK)])

    def _others(self, carrier: int) -> bytes:
        """The credits in hand but the carrier."""
        words, end = self._words, self._end
        return held(words, self._hand, carrier) + held(words, carrier + 1, end)

    def _spill(self, slot: int, size: int) -> memoryview:
        touched = self.channel.layout.touched(slot)
        self._words[touched] = max(self._words[touched], -(-size // PAGE) * PAGE)
        return self.channel.spills.part(slot, size)

    def _settle(self) -> None:
        """Steps 5 to 7."""
        words, block = self._words, self._block
        words[block + PUBLISHED] = words[block + INTENT] - 1
        words[self._hand : self._end] = self._zeros[: self._end - self._hand]
        words[block + INTENT] = 0
        self._empty_hand()

    def _empty_hand(self) -> None:
        self._end = self._hand
        self._doubles = 0

    # Recovery, by the process that takes the seat over, before anything else.

    def recover(self) -> None:
        """Finish a publication that was under way, and give back credits without a frame."""
        words, block = self._words, self._block
        self._end = self._hand_end
        if words[block + INTENT]:
            carrier = words[block + CARRIER]
            if words[carrier]:
                self._finish_publication(carrier)
            self._settle()
        else:
            self._give_back(self._full())
        self._empty_hand()

    def _finish_publication(self, carrier: int) -> None:
        words = self._words
        token = plain(words[carrier]) + SERIAL_ONE
        slot = token & SLOT_MASK
        if words[slot] == plain(words[carrier]):  # not committed yet
            commit(words, successors(self._others(carrier)))
            words[slot] = token
            self.channel.ready.put(to_bytes([token]))
        elif words[slot] == token:  # committed; whether it was put is in doubt
            words[carrier] += ATTEMPT_ONE
            self.channel.ready.put(to_bytes([token | attempt(words[carrier])]))

    def _give_back(self, full: list[int]) -> None:
        """Put verified credits, in the words `full`, back to the free pipe, one by one.

        Even if there are none any more, as `returning` may be left of one who died in here: it
        must not stand when other tokens are taken, which are not verified.
        """
        words, block = self._words, self._block
        if not words[block + RETURNING]:
            self._drop_doubles()
            words[block + RETURNING] = 1
        for index in full:
            old = words[index]
            if not old:
                continue
            token = plain(old) + SERIAL_ONE
            slot = token & SLOT_MASK
            if words[slot] == plain(old):
                words[slot] = token
                self.channel.free.put(to_bytes([token]))
            elif words[slot] == token:
                words[index] += ATTEMPT_ONE
                self.channel.free.put(to_bytes([token | attempt(words[index])]))
            words[index] = 0
        words[block + RETURNING] = 0

    def _drop_doubles(self) -> int:
        """Verify tokens of attempts above 0; returns how many were doubles and are gone."""
        words, dropped = self._words, 0
        for index in range(self._hand, self._end):
            token = words[index]
            if attempt(token):
                genuine = self._is_genuine(token)
                words[index] = plain(token) if genuine else 0
                dropped += not genuine
        return dropped

    def _is_genuine(self, token: int) -> bool:
        """Whether no earlier attempt of `token` was taken: pipes are first-in-first-out.

        It was if the table has moved on, or if some hand on this side still holds it. The table is
        looked at again last, because a hand may have passed the token on while we searched.
        """
        words, layout = self._words, self.channel.layout
        slot = token & SLOT_MASK
        if words[slot] != plain(token):
            return False
        for seat in range(layout.producers):
            start = layout.producer(seat) + HAND
            for other in words[start : start + layout.hand_words].tolist():
                if plain(other) == plain(token) and attempt(other) < attempt(token):
                    return False
        return words[slot] == plain(token)
