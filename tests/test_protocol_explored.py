"""The hand-over in every interleaving of small configurations, with crashes anywhere.

`explorer.py` drives the real `Producer` and `Consumer`. What must hold: one owner of each slot, no
token lost, none doubled, every item delivered once, all credits back, no deadlock. Then each
protection of the protocol is taken away, by an edit of the real source: that must be found.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from explorer import Explorer, Violation
from protocol_steps import Setup

from mpipe.transport.consumer import Consumer
from mpipe.transport.producer import Producer

CONFIGURATIONS = [
    Setup(items=3, crashes=3),
    Setup(items=2, credits=2, crashes=3),
    Setup(items=3, credits=3, batch=2, crashes=3),
    Setup(items=2, credits=2, price=2, crashes=2),
    Setup(producers=2, items=2, crashes=1),
    Setup(producers=2, crashes=2),
    Setup(producers=2, items=2, credits=3, batch=2, crashes=1),
    Setup(producers=2, credits=2, price=2, crashes=2),
    Setup(producers=2, credits=3, price=2, crashes=1),
    Setup(producers=3, crashes=2),
    Setup(consumers=2, items=3, credits=2, crashes=1),
    Setup(consumers=2, items=2, crashes=2),
    Setup(consumers=2, items=3, credits=2, batch=2, crashes=2),
    Setup(consumers=3, items=2, crashes=1),
    Setup(producers=2, consumers=2, crashes=2),
    Setup(producers=2, consumers=2, items=2, crashes=1),
    Setup(producers=2, consumers=2, items=2, credits=3, batch=2, crashes=1),
    Setup(producers=3, consumers=2, crashes=1),
    Setup(producers=2, consumers=3, crashes=1),
]

SMALL = [
    Setup(items=2, crashes=3),
    Setup(items=3, credits=2, batch=2, crashes=2),
    Setup(producers=2, crashes=1),
    Setup(producers=2, credits=2, price=2, crashes=1),
    Setup(consumers=2, items=3, credits=2, batch=2, crashes=1),
    Setup(consumers=2, items=2, crashes=1),
    Setup(producers=2, consumers=2, crashes=1),
]


def name(setup: Setup) -> str:
    numbers = {key: value for key, value in vars(setup).items() if type(value) is int}
    return ", ".join(f"{value} {key}" for key, value in numbers.items())


@pytest.mark.parametrize("setup", CONFIGURATIONS, ids=name)
def test_no_interleaving_with_crashes_loses_doubles_or_blocks_anything(setup: Setup) -> None:
    explorer = Explorer(setup)
    explorer.run()
    assert explorer.ends


@pytest.mark.parametrize("setup", SMALL, ids=name)
def test_interleavings_that_are_left_out_would_show_nothing_new(setup: Setup) -> None:
    explorers = Explorer(setup), Explorer(setup, reduce=False)
    for explorer in explorers:
        explorer.run()
    some, all_of_them = ({state._replace(nodes=()) for state in e.ends} for e in explorers)
    assert some == all_of_them
    for life, other in zip(*(e.processes for e in explorers), strict=True):
        assert life.first.behaviours() == other.first.behaviours()
        assert life.replacement.behaviours() == other.replacement.behaviours()


def edited(end: type, *edits: tuple[str, str]) -> Any:
    """The class with some of its source replaced."""
    source = "from __future__ import annotations\n" + inspect.getsource(end)
    for old, new in edits:
        assert source.count(old) == 1, f"{end.__name__} has changed, adapt the fault: {old}"
        source = source.replace(old, new)
    namespace = dict(vars(sys.modules[end.__module__]))
    exec(source, namespace)
    return namespace[end.__name__]


WITH_RIDERS = [setup for setup in CONFIGURATIONS if setup.credits > 1 and setup.producers < 3]


@pytest.mark.parametrize("setup", WITH_RIDERS, ids=name)
def test_any_of_its_credits_may_carry_a_frame(setup: Setup) -> None:
    explorer = Explorer(replace(setup, producer=edited(Producer, *LAST_CARRIES)))
    explorer.run()
    assert explorer.ends


class Fault(NamedTuple):
    end: str
    what: str
    setup: Setup
    """Where it shows."""
    found: str
    edits: tuple[tuple[str, str], ...]


def fault(end: str, what: str, setup: Setup, found: str, *edits: tuple[str, str]) -> Any:
    return pytest.param(Fault(end, what, setup, found, edits), id=f"{end}: {what}")


VERIFY = "genuine = self._is_genuine(token)"
LOOK_AGAIN = "return words[slot] == plain(token)"
COMMIT_RIDERS = "commit(words, riders)"
PUT_FRAME = 'self.channel.ready.put(token.to_bytes(8, "little"))'
SAY_INTENT = "words[block + INTENT] = words[block + PUBLISHED] + payload.items + 1"
NOTE_CARRIER = "words[block + CARRIER] = carrier"
CLEAR_HAND = "words[self._hand : self._end] = self._zeros[: self._end - self._hand]"
GIVE_BACK = "else:\n            self._give_back("
LAST_CARRIES = (
    ("if size < SLOT_BYTES:", "if size < 0:"),
    (", key=lambda index: words[touched + (words[index] & SLOT_MASK)]", ""),
)
RETURN_CREDITS = "self._return_credits(words[block + SPARE], riders)"
NOTE_CREDITED = "words[block + CREDITED] = token"
MAKE_SPARE = "words[block + SPARE] = token"
READ_ITEMS = "return frame.read_items(header, frame.owned(header, self.payload()))"

FAULTS = [
    fault(
        "producer",
        "an attempt above 0 is not verified",
        Setup(items=3, crashes=1),
        "items [2] are lost",
        (VERIFY, "genuine = True"),
    ),
    fault(
        "producer",
        "hands are not looked at",
        Setup(producers=2, items=2, crashes=1),
        "two own slot 0",
        ("for seat in range(layout.producers):", "for seat in ():"),
    ),
    fault(
        "producer",
        "the table is not looked at again after the hands",
        Setup(producers=2, items=2, crashes=1),
        "items [1] are lost",
        (LOOK_AGAIN, "return True"),
    ),
    fault(
        "producer",
        "a genuine token keeps its attempt",
        Setup(items=3, crashes=1),
        "entry of slot",
        ("words[index] = plain(token) if genuine", "words[index] = token if genuine"),
    ),
    fault(
        "producer",
        "a replacement keeps credits without input",
        Setup(producers=2, crashes=1, slow=True),
        "deadlock: producer 0, producer 1, consumer 0",
        (GIVE_BACK, f"elif words[self._hand]:\n            return\n        {GIVE_BACK}"),
    ),
    fault(
        "producer",
        "credits for a part of a large item are kept even when nothing waits",
        Setup(producers=2, credits=2, price=2, crashes=1),
        "deadlock: producer 0, producer 1, consumer 0",
        ("not self.channel.ready.waiting()", "False"),
    ),
    fault(
        "producer",
        "the hand is cleared before the commit",
        Setup(crashes=1),
        "slot 0 is lost",
        (COMMIT_RIDERS, f"{CLEAR_HAND}; {COMMIT_RIDERS}"),
    ),
    fault(
        "producer",
        "the intent comes after the put",
        Setup(crashes=1),
        "item 0 is delivered twice",
        (SAY_INTENT, "pass"),
        (PUT_FRAME, f"{PUT_FRAME}; {SAY_INTENT}"),
    ),
    fault(
        "producer",
        "riders are committed after the put",
        Setup(credits=2, items=2, batch=2),
        "entry of slot 1",
        (COMMIT_RIDERS, "pass"),
        (PUT_FRAME, f"{PUT_FRAME}; {COMMIT_RIDERS}"),
    ),
    fault(
        "producer",
        "which credit carries the frame is not noted",
        Setup(credits=2, items=2, batch=2, crashes=1),
        "in hand is read by another process",
        *LAST_CARRIES,
        (NOTE_CARRIER, "pass"),
    ),
    fault(
        "producer",
        "a frame in doubt is put with the same attempt",
        Setup(crashes=1),
        "two own slot 0",
        ("words[carrier] += ATTEMPT_ONE", "pass"),
    ),
    fault(
        "producer",
        "a credit in doubt is put with the same attempt",
        Setup(items=2, crashes=2),
        "two own slot 1",
        ("words[index] += ATTEMPT_ONE", "pass"),
    ),
    fault(
        "producer",
        "credits on their way back are verified again",
        Setup(items=2, crashes=3),
        "slot 1 is lost",
        ("words[block + RETURNING] = 1", "pass"),
    ),
    fault(
        "producer",
        "that credits are verified is still said when they are gone",
        Setup(crashes=2),
        "returning is left behind",
        (GIVE_BACK, "elif any(words[self._hand : self._end]):\n            self._give_back("),
    ),
    fault(
        "consumer",
        "an attempt above 0 is not verified",
        Setup(producers=2, items=2, crashes=1),
        "consumer 0 fails",
        (VERIFY, "genuine = True"),
    ),
    fault(
        "consumer",
        "the table is not looked at again after the hands",
        Setup(consumers=2, items=2, crashes=1),
        "consumer 0 fails",
        (LOOK_AGAIN, "return True"),
    ),
    fault(
        "consumer",
        "the spare is looked at before the hand",
        Setup(consumers=2, credits=2, items=2, batch=2, crashes=1),
        "two own slot 0",
        ("(IN_HAND, SPARE)", "(SPARE, IN_HAND)"),
    ),
    fault(
        "consumer",
        "a genuine token keeps its attempt",
        Setup(crashes=1),
        "credits come back",
        ("words[block + IN_HAND] = token\n", "words[block + IN_HAND] *= genuine\n"),
    ),
    fault(
        "consumer",
        "the hand is cleared before the slot is the spare",
        Setup(crashes=1),
        "slot 0 is lost",
        (MAKE_SPARE, f"words[block + IN_HAND] = 0; {MAKE_SPARE}"),
    ),
    fault(
        "consumer",
        "the hand is cleared before the items are counted",
        Setup(crashes=1),
        "items [0] are lost",
        (READ_ITEMS, f"items = {READ_ITEMS[7:]}; self.release(); return items"),
        (MAKE_SPARE, f"if token: {MAKE_SPARE}"),
    ),
    fault(
        "consumer",
        "credits are noted as returned before they are",
        Setup(crashes=1),
        "slot 1 is lost",
        (RETURN_CREDITS, f"{NOTE_CREDITED}; {RETURN_CREDITS}"),
    ),
    fault(
        "consumer",
        "credits are not noted as returned",
        Setup(consumers=2, credits=2, items=2, batch=2, crashes=1),
        "two own slot 0",
        (NOTE_CREDITED, "pass"),
    ),
    fault(
        "consumer",
        "a replacement returns credits as if nobody had begun to",
        Setup(crashes=1),
        "two own slot 1",
        ("self._recovering = words[block + IN_HAND] not in (0, END)", "pass"),
    ),
    fault(
        "consumer",
        "credits in doubt are put with the same attempt",
        Setup(crashes=1),
        "two own slot 1",
        ("words[block + RETURN_ATTEMPT] += ATTEMPT_ONE", "pass"),
    ),
    fault(
        "consumer",
        "credits returned for one frame count for the next",
        Setup(items=2, crashes=2),
        "slot 0 is lost",
        ("words[block + RETURNED] = 0", "pass"),
    ),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_protocol_fails_if_one_of_its_protections_is_taken_away(fault: Fault) -> None:
    Explorer(fault.setup).run()
    end = {"producer": Producer, "consumer": Consumer}[fault.end]
    without = replace(fault.setup, **{fault.end: edited(end, *fault.edits)})
    with pytest.raises(Violation) as violation:
        Explorer(without).run()
    assert fault.found in violation.value.what
