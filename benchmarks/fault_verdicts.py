"""What a cell of faults.py amounts to: from the record of a run to numbers, and to words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from records import Event

HANGS = "hangs"


@dataclass(frozen=True)
class Record:
    """What a program wrote down: see fault_programs.py. `end` is the clock when it had ended."""

    results: Sequence[Event]
    fault: Event | None
    told: Sequence[Event]
    outcome: Event | None
    ahead: Sequence[Event]
    log: str
    end: float | None
    starved: bool


@dataclass(frozen=True)
class Remains:
    """What outlived the program by some time, and when the last of its processes had ended."""

    processes: int = 0
    names: int = 0
    gone_s: float | None = None


@dataclass(frozen=True)
class Seen:
    """The facts of one cell. Times are in seconds from the fault; None: it did not happen."""

    befell: bool
    ended_s: float | None
    """Until the program had ended."""
    error: str | None
    """The exception the caller got, by name."""
    text: str
    """What it said."""
    told: str
    """What the caller could read of the item that failed."""
    log: str
    """The last line about an error that was printed."""
    finished: bool
    """The caller came to the end of the results, or to an exception."""
    delivered: int
    lost: int
    """Items that had to come out and did not."""
    twice: int
    wrong: int
    """Outputs that are none of the items."""
    noticed_s: float | None
    """Until the exception, until the failed item was told of, or until the item came out."""
    ahead: int
    ahead_grows: bool
    left: int
    """Processes still there some time after the program's end."""
    gone_s: float | None
    """From the program's end until its last process had ended."""
    names: int
    """Names still there in shared memory then."""
    peak_bytes: int
    """The most memory of all its processes together that was seen."""
    starved: bool
    """It was ended because no memory was left on the machine."""


def facts(record: Record, due: Collection[Any], victim: Any, remains: Remains, peak: int) -> Seen:
    """Count what is due against what came, and find out when the fault was noticed."""
    came = Counter(event.what for event in record.results)
    outcome: dict[str, Any] = record.outcome.what if record.outcome else {}
    ahead = [event.what for event in record.ahead]
    half = len(ahead) // 2
    return Seen(
        befell=record.fault is not None,
        ended_s=since(record.fault, record.end),
        error=outcome.get("error"),
        text=outcome.get("text", ""),
        told=next((str(event.what) for event in record.told), ""),
        log=record.log,
        finished=record.outcome is not None,
        delivered=len(record.results),
        lost=len(set(due) - came.keys()),
        twice=sum(count - 1 for count in came.values()),
        wrong=len(came.keys() - set(due)),
        noticed_s=noticed_s(record, victim),
        ahead=max(ahead, default=0),
        ahead_grows=half > 0 and max(ahead[half:]) > 1.3 * max(ahead[:half]) + 10,
        left=remains.processes,
        gone_s=remains.gone_s,
        names=remains.names,
        peak_bytes=peak,
        starved=record.starved,
    )


def noticed_s(record: Record, victim: Any) -> float | None:
    if record.outcome and record.outcome.what["error"]:
        return since(record.fault, record.outcome.at)
    came = (event.at for event in record.results if event.what == victim)
    at = next((event.at for event in record.told), None) or next(came, None)
    return since(record.fault, at)


def since(fault: Event | None, at: float | None) -> float | None:
    return None if fault is None or at is None else at - fault.at


def of_items(seen: Seen, spoils: bool) -> str:
    """In a word: did all items come through, or all but the one that `spoils`?"""
    if not seen.befell:
        return "not verified: the fault did not happen"
    if seen.starved:
        return "uses up the memory"
    if not seen.finished:
        return HANGS if seen.ended_s is None else "ends without a word"
    if seen.error:
        return f"fails: {seen.error}" + ("" if seen.ended_s is not None else ", then hangs")
    if seen.lost:
        return f"no exception, {counted(seen.lost, 'item')} missing"
    if seen.wrong:
        return counted(seen.wrong, "wrong output")
    if seen.twice:
        return f"{counted(seen.twice, 'item')} twice"
    if not spoils:
        return "all items once"
    if seen.told:
        return "the others once, tells of it"
    return "the others once" + (", logs it" if seen.log else ", item not told of")


def counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else plural}"


def of_end(seen: Seen) -> str:
    """In a word: did the program and its processes end, when it was told to?"""
    if not seen.befell:
        return "not verified: it had ended before"
    if seen.ended_s is None:
        return HANGS
    if seen.left:
        return f"{counted(seen.left, 'process', 'es')} left"
    if seen.names:
        return f"{counted(seen.names, 'name')} left in shared memory"
    return f"all ended in {all_ended_s(seen):.1f} s"


def all_ended_s(seen: Seen) -> float | None:
    """From the fault until the last process had ended."""
    return None if seen.ended_s is None or seen.gone_s is None else seen.ended_s + seen.gone_s


def of_reading(seen: Seen) -> str:
    """In a word: was the source held back by a slow reader?"""
    if not seen.delivered:
        return "no result until the source was pulled whole"
    return f"{seen.ahead:,} items ahead" + (" and growing" if seen.ahead_grows else "")
