"""How a run is doing, for people: a table of its stages, a line for logs, a live view of both."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..stats import Latency, StageStats, Stats

COLUMNS = (
    *("workers", "in", "out", "queued", "errors", "dropped"),
    *("items/s", "p50", "p99", "busy", "restarts"),
)
REFRESHES_PER_S = 4.0
LINE_EVERY_S = 5.0
WIDTH_IN_FILES = 100


def table(stats: Stats) -> Table:
    """One row a stage, the bottleneck marked; below it what holds for the whole run."""
    view = Table(
        title=Text(f"{stats.name} ({stats.state})", "bold"),
        caption=Text(_caption(stats)),
        title_justify="left",
        caption_justify="left",
        box=None,
        header_style="dim",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    view.add_column("stage", overflow="fold")
    for column in COLUMNS:
        view.add_column(column, justify="right", overflow="fold")
    for stage in stats.stages.values():
        slowest = stage.name == stats.bottleneck
        name = Text(f"{stage.name} *" if slowest else stage.name)
        view.add_row(name, *_cells(stage), style="bold yellow" if slowest else "")
    return view


def line(stats: Stats) -> str:
    """The same in one line: what each stage has handled, how fast, and what waits before it."""
    stages = "; ".join(map(_in_line, stats.stages.values()))
    return f"{stats.name} {stats.state} {seconds(stats.elapsed)}: {stages}"


def _in_line(stage: StageStats) -> str:
    notes = [f"{rate(stage.throughput)}/s", f"{stage.queued:,} queued"]
    if stage.failed:
        notes.append(f"{stage.failed:,} errors")
    if stage.breaker and stage.breaker.state != "closed":
        notes.append(f"breaker {stage.breaker.state}")
    return f"{stage.name} {stage.processed + stage.failed:,} ({', '.join(notes)})"


def show(stats: Stats) -> None:
    """Print the table to the standard output."""
    console().print(table(stats))


@contextmanager
def live(stats: Callable[[], Stats]) -> Iterator[None]:
    """Show `stats()`, such as `run.stats`, for as long as the `with` block takes.

    In a terminal that is the table, refreshed in place and gone at the end; anywhere else a line
    every few seconds.
    """
    screen = console()
    if screen.is_interactive:
        view = Live(
            get_renderable=lambda: table(stats()),
            console=screen,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )
        with view:
            yield
    else:
        with _every(LINE_EVERY_S, lambda: print(line(stats()), flush=True)):
            yield


def console() -> Console:
    """The standard output; wide enough for the table where no terminal sets the width."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=WIDTH_IN_FILES, force_interactive=False)


def seconds(value: float) -> str:
    """A time in the unit that suits it: `85us`, `12.3ms`, `4.56s`, `3m20s`."""
    if value >= 119.5:
        return "{}m{:02}s".format(*divmod(round(value), 60))
    if value >= 0.9995:
        return f"{_three_digits(value)}s"
    if value >= 0.9995e-3:
        return f"{_three_digits(value * 1e3)}ms"
    if value >= 0.9995e-6:
        return f"{value * 1e6:.0f}us"
    return f"{value * 1e9:.0f}ns"


def rate(value: float) -> str:
    """A number of items per second: `123k`, `1,234`, `12.3` or `0.12`."""
    return count(round(value)) if value >= 99.95 else _three_digits(value)


def count(value: int) -> str:
    """A number of items in at most six characters: `98,765`, `123k`, `1.23M`."""
    if value < 100_000:
        return f"{value:,}"
    if value < 999_500:
        return f"{value / 1e3:.0f}k"
    return f"{_three_digits(value / 1e6)}M"


def _three_digits(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def _cells(stage: StageStats) -> Iterator[Text]:
    """The stage's values, in the order of `COLUMNS`."""
    yield Text(f"{len(stage.workers)}")
    yield Text(count(stage.received))
    yield Text(count(stage.emitted))
    yield Text(count(stage.queued))
    yield _alarm(stage.failed)
    yield _alarm(stage.dropped)
    yield Text(rate(stage.throughput))
    yield _time(stage.latency, stage.latency.p50)
    yield _time(stage.latency, stage.latency.p99)
    yield Text(f"{stage.busy:.0%}")
    yield _alarm(stage.restarts)


def _alarm(number: int) -> Text:
    return Text(count(number), "bold red" if number else "")


def _time(latency: Latency, value: float) -> Text:
    return Text(seconds(value) if latency.count else "-")


def _caption(stats: Stats) -> str:
    cores = f" ({stats.cpu / stats.elapsed:.1f} cores)" if stats.elapsed else ""
    parts = [f"elapsed {seconds(stats.elapsed)}", f"CPU {seconds(stats.cpu)}{cores}"]
    if stats.latency.count:
        p50, p99 = seconds(stats.latency.p50), seconds(stats.latency.p99)
        parts.append(f"end to end p50 {p50}, p99 {p99}")
    mark = [] if stats.bottleneck is None else [f"* bottleneck: {stats.bottleneck}"]
    return "\n".join([*mark, *map(_breaker, _tripped(stats)), "; ".join(parts)])


def _tripped(stats: Stats) -> Iterator[StageStats]:
    """The stages whose circuit breaker has done something."""
    return (stage for stage in stats.stages.values() if stage.breaker and stage.breaker.trips)


def _breaker(stage: StageStats) -> str:
    breaker = stage.breaker
    assert breaker is not None
    times = "once" if breaker.trips == 1 else f"{count(breaker.trips)} times"
    return (
        f"{stage.name}: circuit breaker {breaker.state}; it tripped {times} and paused the stage "
        f"for {seconds(breaker.seconds_open)}"
    )


@contextmanager
def _every(interval: float, action: Callable[[], None]) -> Iterator[None]:
    """Run `action` in a thread every `interval` seconds until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(interval):
            action()

    thread = threading.Thread(target=repeat, name="mpipe-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
