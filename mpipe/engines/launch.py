"""Starting a run: its shared memory, its pipes, its coordinator; and letting go of all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from ..errors import MPipeError
from ..plan import Plan, RunOptions
from ..routes import find_routes
from ..runtime import control
from ..runtime.nesting import next_level
from ..runtime.scarcity import explain
from ..runtime.spec import RunSpec
from ..transport import memory
from ..transport.channel import ChannelFds, create_channel
from ..transport.counters import board_bytes
from ..transport.descriptors import fill_standard, limit, socket_pair
from ..transport.gaps import create_gap_pipe
from ..transport.gate import GateFds, create_gate
from ..transport.layout import ChannelLayout
from ..transport.store import STORE_BYTES
from . import standby
from .packing import pack_function
from .standby import Child

_LETTERS, _LETTERS_BYTES = 1000, 1 << 26
"""Dead letters that wait for the caller to read them, at most, and their bytes."""

_BLAS_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Launched:
    """What the caller holds of a run."""

    def __init__(self, spec: RunSpec, coordinator: Child) -> None:
        self.spec = spec
        self.coordinator = coordinator
        self.released = False
        self._to_close = iter(spec.channel_descriptors())

    def release(self, keep: bool = False) -> None:
        """Let go of everything, but `keep` the coordinator for the next run if it stays.

        Ends the run if it still goes on. To be called again when an exception from outside
        interrupts it.
        """
        ours = self.coordinator.run is self.spec  # not another run's by now
        if ours and not keep:
            self.coordinator.hang_up()
        _close_each(self._to_close)
        if ours and keep:
            standby.keep(self.coordinator)
        elif ours:
            self.coordinator.join()
        self.released = True


def _close_each(fds: Iterator[int]) -> None:
    """Close each once, in one call into C that nothing interrupts, even if user code closed one."""
    while True:
        with contextlib.suppress(OSError):
            any(map(os.close, fds))
            return


def launch(plan: Plan, options: RunOptions) -> Launched:
    """Start a coordinator and tell it the run; it starts the workers while this returns.

    When that fails, nothing is left.
    """
    functions = tuple(pack_function(stage) for stage in plan.graph.stages)
    opened: list[int] = []
    coordinator = None
    fill_standard()
    try:
        spec = _create(plan, options, functions, opened)
        file = control.put_in_file(spec)
        opened.append(file)
        coordinator = _start(spec, file)
        for fd in set(opened).difference(spec.channel_descriptors()):
            opened.remove(fd)
            os.close(fd)
    except BaseException:
        for fd in opened:
            os.close(fd)
        if coordinator is not None:
            coordinator.end()
        raise
    return Launched(spec, coordinator)


def not_started(error: OSError) -> MPipeError:
    """What to raise where the machine has not enough of something to start a run."""
    return MPipeError(f"the run could not be started: {explain(error)}")


def _create(
    plan: Plan, options: RunOptions, functions: tuple[bytes, ...], opened: list[int]
) -> RunSpec:
    """Make all shared memory and pipes; `opened` collects their descriptors."""

    def channel(items: int, size: int, consumers: int, producers: int) -> ChannelFds:
        layout = ChannelLayout(items, consumers, producers, options.max_item_bytes, size)
        fds = create_channel(layout)
        opened.extend(fds.all())
        return fds

    stages = plan.graph.stages
    channels = {
        i: channel(
            stages[i].buffer_size,
            stages[i].buffer_bytes,
            plan.workers[i],
            max(1, len(plan.producers_of(i))),
        )
        for i in plan.pools
    }
    results = letters = None
    if options.results:
        ends = [stages[plan.place[name]] for name in plan.graph.terminals]
        most = max(stage.buffer_size for stage in ends), max(stage.buffer_bytes for stage in ends)
        results = channel(*most, 1, len(plan.terminal_seats))
    if plan.dead_letter_seats:
        letters = channel(_LETTERS, _LETTERS_BYTES, 1, len(plan.dead_letter_seats))
    gates = tuple(_gate(plan, i, opened) for i in range(len(stages)))
    routes = find_routes(plan.graph, options.ordered_results)
    gaps = {}
    for name in routes.ordered:
        gaps[name] = create_gap_pipe()
        opened.extend(gaps[name].all())
    seats = len(plan.leaders)
    for size in (board_bytes(seats, len(stages)), seats * STORE_BYTES):
        opened.append(memory.create_file(size))
    board, stores = opened[-2:]
    reports_in, reports = socket_pair()
    opened.extend((reports_in.detach(), reports.detach()))
    opened.append(memory.create_file(0))
    return RunSpec(
        plan._replace(graph=plan.graph.without_functions()),
        functions,
        channels,
        results,
        letters,
        gates,
        board,
        stores,
        routes,
        gaps,
        last_words=opened[-1],
        reports=opened[-2],
        reports_in=opened[-3],
        start_method=options.start_method,
        max_item_bytes=options.max_item_bytes,
        level=next_level(),
        max_descriptors=limit(),
        environment=_environment(plan),
    )


def _environment(plan: Plan) -> Mapping[str, str]:
    """Let the workers' numerical libraries share the cores, unless the caller says otherwise."""
    threads = str(max(1, plan.cores // plan.processes))
    return {name: threads for name in _BLAS_THREADS if name not in os.environ}


def _gate(plan: Plan, stage: int, opened: list[int]) -> GateFds | None:
    if plan.graph.stages[stage].breaker is None:
        return None
    gate = create_gate(plan.workers[stage])
    opened.extend(gate.all())
    return gate


def _start(spec: RunSpec, file: int) -> Child:
    """A coordinator that begins the run in the file: that which is kept if it will do, or new."""
    child = standby.take(spec, file)
    if child is None:
        child = standby.start((file, spec.reports_in, *spec.descriptors()))
        child.run = spec
        with contextlib.suppress(OSError):  # it died while starting; who asks next learns so
            child.begin(file)
    return child
