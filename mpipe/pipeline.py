"""The builder: a pipeline is a value that is described, checked, printed and started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .checks import is_some_seconds, is_whole
from .engines import make_engine
from .errors import GraphError, OptionError
from .graph import Graph, unknown_stage
from .plan import RunOptions, make_plan
from .run import Outputs, Run
from .schema import OPTIONS, make_spec
from .stage import Kind, StageSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import ImapOptions, StageOptions, StartOptions, StreamOptions

ENGINES = ("processes", "inline")
START_METHODS = ("fork", "spawn")


class Pipeline:
    """A graph of named stages. Describe it with `add_*` and `connect`; then `start` or `run` it.

    The same pipeline may be started any number of times; each start is a run of its own.
    """

    def __init__(self, name: str = "pipeline") -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise OptionError(f"a pipeline's name must be a non-empty, printable str, not {name!r}")
        self.name = name
        self._stages: dict[str, StageSpec] = {}
        self._edges: list[tuple[str, str]] = []

    def add_stage(self, name: str, fn: Any, **options: Unpack[StageOptions]) -> Pipeline:
        """Add a stage that runs `fn`: a function of an item, an `mpipe.Stage`, or a factory of one.

        `fn(item)` returns a list, tuple, generator or iterator of outputs, or `None` for none.
        Options (checked here; an unknown or bad one raises `OptionError`):

        - `workers` (None): exactly so many processes, up to 1,024; None leaves it to mpipe: where
          a stage without options follows a map without options, the same processes run both,
          without a buffer in between.
        - `buffer_size` (32768): most items that wait in front of the stage; at most 1,024 (where
          it is larger than that, 512 to 1,024) of those that travel one by one, as they do when
          they are pushed so or take long.
        - `buffer_bytes` (2**23): most bytes of them, pickled; but one frame may always wait.
        - `drop_on_full` (False): items that find the buffer full are dropped and counted.
        - `ordered` (False): the stage's one worker sees the items in source order; of one source
          item, in the order of the stage's incoming edges.
        - `on_error` ("raise"): fail the run; "skip": count, log and go on; "dead_letter": count and
          hand the item to `run.dead_letters()`. What an iterator gave before it failed is kept.
        - `retries` (0): further attempts for an item that raised; the function gets the same
          object again, as it left it. Items behind it wait.
        - `retry_delay` (0.0): seconds before the first retry; doubles with each further one, up to
          a day.
        - `max_crashes` (3): an item that kills so many workers counts as failed.
        - `breaker` (None): an `mpipe.CircuitBreaker`, which pauses the stage while too many calls
          of its function fail. Meanwhile its buffer fills up and holds the source back.
        - `timeout` (None): seconds that the function may be at work on an item, its iterator
          included, before its worker is killed for it.
        - `max_items` (None): a worker that has handled so many items, or up to twice as many, makes
          way for a new process, for libraries that leak.
        - `max_memory` (None): likewise with so many bytes of memory of its own (shared memory does
          not count). An item that takes a new worker over it counts as having killed that worker.

        The inline engine has no workers to replace: it does not enforce the last three.
        """
        return self._add(name, fn, "flat", options)

    def add_map(
        self, name: str, fn: Callable[[Any], Any], **options: Unpack[StageOptions]
    ) -> Pipeline:
        """Add a stage with one output per item, `fn(item)`. Options as in `add_stage`."""
        return self._add(name, fn, "map", options)

    def add_filter(
        self, name: str, predicate: Callable[[Any], Any], **options: Unpack[StageOptions]
    ) -> Pipeline:
        """Add a stage that passes the items whose `predicate(item)` is true. Options as above."""
        return self._add(name, predicate, "filter", options)

    def _add(self, name: str, fn: Any, kind: Kind, options: StageOptions) -> Pipeline:
        spec = make_spec(name, fn, kind, options)
        if name in self._stages:
            raise GraphError(f"there is already a stage {name!r}; names must be unique")
        self._stages[name] = spec
        return self

    def connect(self, source: str, target: str) -> Pipeline:
        """Send the outputs of stage `source` to stage `target`.

        Connect a source again to send each output to several stages; connect several sources to
        one target to merge them. Names are looked up when the pipeline starts.
        """
        for name in (source, target):
            if not isinstance(name, str):
                raise GraphError(f"connect takes names of stages, not {name!r}")
        if (source, target) in self._edges:
            raise GraphError(f"{source!r} is already connected to {target!r}")
        if source == target:
            raise GraphError(f"stage {source!r} cannot feed itself; a pipeline must be acyclic")
        self._edges.append((source, target))
        return self

    @property
    def graph(self) -> Graph:
        """The graph as described so far, not yet checked."""
        return Graph(self.name, tuple(self._stages.values()), tuple(self._edges))

    def start(self, engine: str = "processes", **options: Unpack[StartOptions]) -> Run:
        """Check the graph, start its workers and return the `Run` that takes items.

        - `engine` ("processes"): or "inline", to run everything in this process, to debug.
        - `results` (False): keep the terminal stages' outputs for `run.results()`.
        - `deadline` (None): seconds after which the run is cancelled.
        - `cancel` (None): an event (`is_set()`) that cancels the run when set.
        - `start_method` ("fork"): fork workers from the clean coordinator; or "spawn", to make each
          a fresh interpreter.
        - `max_item_bytes` (2**30): largest pickled size of an item.

        Raises `GraphError` or `OptionError` at once, before any process is started.
        """
        checked = _run_options("start", engine, options)
        graph = self.graph
        graph.validate()
        plan = make_plan(graph, cores())
        return Run(graph, make_engine(engine, plan, checked), checked.results)

    def run(
        self,
        items: Iterable[Any],
        engine: str = "processes",
        *,
        ordered: bool = False,
        **options: Unpack[StreamOptions],
    ) -> Outputs:
        """Run a whole iterable through and iterate the terminal stages' outputs as they come.

        `ordered` gives them in source order; of one source item, in the order of the stages they
        come from, as `stats()` lists them. The iterable is pulled lazily, by a thread of this
        process, as fast as the stages take its items; when it raises, the run is cancelled, and the
        iterator raises that. Takes the options of `start`, except `results`. The iterator's
        `stats()` tell how the run is going; closing it early cancels the run.
        """
        if not isinstance(ordered, bool):
            raise OptionError(f"run: ordered must be True or False, not {ordered!r}")
        if "results" in options:
            raise OptionError("run: results are always kept; leave out results=")
        checked = _run_options("run", engine, options)
        checked = checked._replace(results=True, ordered_results=ordered)
        graph = self.graph
        graph.validate()
        source = iter(items)
        running = make_engine(engine, make_plan(graph, cores()), checked)
        return Outputs(running, running.stream(source, ordered))

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart, for documentation."""
        ids = {name: f"s{i}" for i, name in enumerate(self._stages)}
        lines = ["flowchart LR"]
        for name, spec in self._stages.items():
            label = name.replace('"', "#quot;")
            lines.append(f'    {ids[name]}["{label} x {spec.workers or "auto"}"]')
        for source, target in self._edges:
            for name in (source, target):
                if name not in ids:
                    raise GraphError(unknown_stage(name, ids))
            lines.append(f"    {ids[source]} -->|{self._stages[target].buffer_size}| {ids[target]}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        lines = [f"Pipeline({self.name!r})"]
        for name, spec in self._stages.items():
            targets = ", ".join(target for source, target in self._edges if source == name)
            workers = spec.workers or "auto"
            lines.append(
                f"  {name}: workers={workers} buffer_size={spec.buffer_size} -> {targets or 'out'}"
            )
        return "\n".join(lines)


def imap(
    fn: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int | None = None,
    ordered: bool = True,
    engine: str = "processes",
    **options: Unpack[ImapOptions],
) -> Outputs:
    """Map `fn` over `items` on all cores, lazily; yields `fn(item)` in source order.

    `ordered=False` yields each result as soon as it is there. Takes the options of `add_map` and
    of `Pipeline.run`.
    """
    if not isinstance(ordered, bool):
        raise OptionError(f"imap: ordered must be True or False, not {ordered!r}")
    of_stage: dict[str, Any] = {**options}
    of_run = {name: of_stage.pop(name) for name in [*of_stage] if name in _RUN_OPTIONS}
    if unknown := [name for name in of_stage if name not in OPTIONS]:
        valid = ", ".join([*OPTIONS, "engine", *_STREAM_OPTIONS])
        raise OptionError(f"imap: unknown option {unknown[0]!r}; valid options: {valid}")
    pipeline = Pipeline("imap").add_map("map", fn, workers=workers, **of_stage)
    return pipeline.run(items, engine, ordered=ordered, **of_run)


def cores() -> int:
    """Number of CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_options(call: str, engine: str, given: Mapping[str, Any]) -> RunOptions:
    """Check the options of `start` or `run`; raise `OptionError`: the culprit, and the choices."""
    if engine not in ENGINES:
        raise OptionError(f"engine must be {_either(ENGINES)}, not {engine!r}")
    for name, value in given.items():
        if name in OPTIONS:
            raise OptionError(f"{call}: {name!r} is an option of a stage: give it to add_stage")
        if name not in _RUN_OPTIONS:
            others = ["engine", "ordered"] if call == "run" else ["engine", "results"]
            valid = ", ".join([*others, *_STREAM_OPTIONS])
            raise OptionError(f"{call}: unknown option {name!r}; valid options: {valid}")
        accepts, expects = _RUN_OPTIONS[name]
        if not accepts(value):
            raise OptionError(f"{call}: {name} must be {expects}, not {value!r}")
    return RunOptions(**given)


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(map(repr, choices))


_RUN_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "results": (lambda value: isinstance(value, bool), "True or False"),
    "deadline": (lambda value: value is None or is_some_seconds(value), "seconds above 0"),
    "cancel": (
        lambda value: value is None or (hasattr(value, "is_set") and not isinstance(value, type)),
        "an event with is_set()",
    ),
    "start_method": (lambda value: value in START_METHODS, _either(START_METHODS)),
    "max_item_bytes": (is_whole(4096, 1 << 36), "a whole number of bytes from 4096 to 2**36"),
}
_STREAM_OPTIONS = [name for name in _RUN_OPTIONS if name != "results"]
