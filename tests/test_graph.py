"""What is wrong with a graph, an option or a return value is said at the line that is wrong."""

from __future__ import annotations

import threading
import time
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import mpipe
from mpipe import options
from mpipe.plan import make_plan
from mpipe.runtime.apply import check_result
from mpipe.schema import ON_ERROR, OPTIONS, make_spec
from mpipe.stage import StageSpec


def same(item: Any) -> list[Any]:
    return [item]


def chain(*names: str) -> mpipe.Pipeline:
    pipeline = mpipe.Pipeline("p")
    for name in names:
        pipeline.add_stage(name, same, workers=1)
    for source, target in pairwise(names):
        pipeline.connect(source, target)
    return pipeline


class Total(mpipe.Stage):
    def finish(self) -> list[int]:
        return [1]


class Later(mpipe.Stage):
    async def process(self, item: Any) -> list[Any]:  # type: ignore[override]
        return [item]


async def run_later(item: Any) -> list[Any]:
    return [item]


async def give_later(item: Any) -> AsyncIterator[Any]:
    yield item


def give(item: Any) -> Iterator[Any]:
    yield item


class Giver:
    def __call__(self, item: Any) -> Iterator[Any]:
        yield item

    def __repr__(self) -> str:
        return "a Giver"


class Needy(mpipe.Stage):
    def __init__(self, path: str) -> None:
        self.path = path


OPTION_NAMES = (
    "workers, buffer_size, buffer_bytes, drop_on_full, ordered, on_error, retries, retry_delay, "
    "max_crashes, timeout, max_items, max_memory, breaker"
)

BAD_STAGES: list[tuple[dict[str, Any], str]] = [
    ({"workers": 0}, "stage 'a': workers must be a whole number of processes from 1 to 1024, or "
        "None to leave it to mpipe, not 0"),
    ({"workers": 1025}, "stage 'a': workers must be a whole number of processes from 1 to 1024, or "
        "None to leave it to mpipe, not 1025"),
    ({"workers": 2.0}, "stage 'a': workers must be a whole number of processes from 1 to 1024, or "
        "None to leave it to mpipe, not 2.0"),
    ({"workers": True}, "stage 'a': workers must be a whole number of processes from 1 to 1024, or "
        "None to leave it to mpipe, not True"),
    ({"buffer_size": 0}, "stage 'a': buffer_size must be a whole number of items, 1 or more, "
        "not 0"),
    ({"buffer_size": None}, "stage 'a': buffer_size must be a whole number of items, 1 or more, "
        "not None"),
    ({"buffer_bytes": 1e6}, "stage 'a': buffer_bytes must be a whole number of bytes, 1 or more, "
        "not 1000000.0"),
    ({"drop_on_full": 1}, "stage 'a': drop_on_full must be True or False, not 1"),
    ({"on_error": "ignore"}, "stage 'a': on_error must be \"raise\", \"skip\" or "
        "\"dead_letter\", not 'ignore'"),
    ({"retries": -1}, "stage 'a': retries must be a whole number of further attempts, 0 or more, "
        "not -1"),
    ({"retry_delay": float("nan")}, "stage 'a': retry_delay must be a number of seconds, 0 or "
        "more, not nan"),
    ({"retry_delay": float("inf")}, "stage 'a': retry_delay must be a number of seconds, 0 or "
        "more, not inf"),
    ({"retry_delay": "1s"}, "stage 'a': retry_delay must be a number of seconds, 0 or more, "
        "not '1s'"),
    ({"max_crashes": 0}, "stage 'a': max_crashes must be a whole number of worker deaths, 1 or "
        "more, not 0"),
    ({"timeout": 0}, "stage 'a': timeout must be a number of seconds above 0, or None for no "
        "limit, not 0"),
    ({"timeout": float("inf")}, "stage 'a': timeout must be a number of seconds above 0, or None "
        "for no limit, not inf"),
    ({"max_items": 0}, "stage 'a': max_items must be a whole number of items, 1 or more, or None "
        "for no limit, not 0"),
    ({"max_memory": 1e9}, "stage 'a': max_memory must be a whole number of bytes, 1 or more, or "
        "None for no limit, not 1000000000.0"),
    ({"worker": 4}, f"stage 'a': unknown option 'worker'; valid options: {OPTION_NAMES}"),
]  # fmt: skip

BAD_FUNCTIONS: list[tuple[Callable[[mpipe.Pipeline], Any], str]] = [
    (lambda p: p.add_stage("a", 3), "stage 'a': expected a function of one item, an mpipe.Stage "
        "or a factory of one, not int"),
    (lambda p: p.add_stage("a", None), "stage 'a': expected a function of one item, an "
        "mpipe.Stage or a factory of one, not NoneType"),
    (lambda p: p.add_stage("a", divmod), "stage 'a': 'divmod' cannot be called with one item"),
    (lambda p: p.add_map("a", lambda: 1), "stage 'a': '<lambda>' cannot be called with one item"),
    (lambda p: p.add_stage("a", run_later), "stage 'a': 'run_later' is an async function, and "
        "nothing here runs an event loop; pass a function that does, by asyncio.run()"),
    (lambda p: p.add_map("a", give_later), "stage 'a': 'give_later' is an async function, and "
        "nothing here runs an event loop; pass a function that does, by asyncio.run()"),
    (lambda p: p.add_stage("a", Later), "stage 'a': 'process' is an async function, and nothing "
        "here runs an event loop; pass a function that does, by asyncio.run()"),
    (lambda p: p.add_map("a", give), "stage 'a': 'give' is a generator function, of any number of "
        "outputs; pass it to add_stage, not add_map"),
    (lambda p: p.add_map("a", Giver()), "stage 'a': 'a Giver' is a generator function, of any "
        "number of outputs; pass it to add_stage, not add_map"),
    (lambda p: p.add_filter("a", give), "stage 'a': 'give' is a generator function, of any number "
        "of outputs; pass it to add_stage, not add_filter"),
    (lambda p: p.add_map("a", mpipe.Stage()), "stage 'a': pass an mpipe.Stage to add_stage, not "
        "add_map"),
    (lambda p: p.add_filter("a", mpipe.Stage), "stage 'a': pass an mpipe.Stage to add_stage, not "
        "add_filter"),
    (lambda p: p.add_stage("a", Needy), "stage 'a': Needy cannot be made without arguments; pass "
        "an instance, or a factory such as lambda: Needy(...)"),
    (lambda p: p.add_stage("a", Total, max_items=5), "stage 'a': max_items replaces workers, and "
        "what this stage remembers would be lost with them (it overrides finish() or is stateful); "
        "define snapshot() and restore(state) to keep it"),
    (lambda p: p.add_stage("a", Total(), max_memory=5), "stage 'a': max_memory replaces workers, "
        "and what this stage remembers would be lost with them (it overrides finish() or is "
        "stateful); define snapshot() and restore(state) to keep it"),
    (lambda p: p.add_stage("", same), "a stage's name must be a non-empty, printable str, not ''"),
    (lambda p: p.add_stage("a\n", same), "a stage's name must be a non-empty, printable str, not "
        "'a\\n'"),
    (lambda p: p.add_stage(same, same), "a stage's name must be a non-empty, printable str, not "
        f"{same!r}"),
    (lambda p: mpipe.Pipeline(""), "a pipeline's name must be a non-empty, printable str, not ''"),
]  # fmt: skip

BAD_CONNECTIONS: list[tuple[Callable[[mpipe.Pipeline], Any], str]] = [
    (lambda p: p.add_stage("a", same), "there is already a stage 'a'; names must be unique"),
    (lambda p: p.connect("a", "b"), "'a' is already connected to 'b'"),
    (lambda p: p.connect("a", "a"), "stage 'a' cannot feed itself; a pipeline must be acyclic"),
    (lambda p: p.connect("a", same), f"connect takes names of stages, not {same!r}"),
]  # fmt: skip

BAD_GRAPHS: list[tuple[mpipe.Pipeline, str]] = [
    (mpipe.Pipeline("p"), "pipeline 'p' has no stages; add one with add_stage"),
    (chain("parse").connect("parse", "sink"), "connect('parse', 'sink'): there is no stage "
        "'sink'; stages: 'parse'"),
    (chain("parse", "sink").connect("prase", "sink"), "connect('prase', 'sink'): there is no "
        "stage 'prase'; did you mean 'parse'?"),
    (chain("a", "b").add_stage("c", same), "stage 'c' is connected to no other stage; connect it "
        "or give it a pipeline of its own"),
    (chain("a", "b").connect("b", "a"), "the stages form a cycle: 'a' -> 'b' -> 'a'; a pipeline "
        "must be acyclic"),
    (chain("in", "a", "b", "c", "out").connect("c", "a"), "the stages form a cycle: 'a' -> 'b' -> "
        "'c' -> 'a'; a pipeline must be acyclic"),
]  # fmt: skip

START_OPTIONS = "engine, results, deadline, cancel, start_method, max_item_bytes"
RUN_OPTIONS = "engine, ordered, deadline, cancel, start_method, max_item_bytes"

BAD_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"engine": "threads"}, "engine must be 'processes' or 'inline', not 'threads'"),
    ({"results": 1}, "start: results must be True or False, not 1"),
    ({"deadline": 0}, "start: deadline must be seconds above 0, not 0"),
    ({"deadline": "soon"}, "start: deadline must be seconds above 0, not 'soon'"),
    ({"cancel": 5}, "start: cancel must be an event with is_set(), not 5"),
    ({"start_method": "forkserver"}, "start: start_method must be 'fork' or 'spawn', not "
        "'forkserver'"),
    ({"max_item_bytes": 12}, "start: max_item_bytes must be a whole number of bytes from 4096 to "
        "2**36, not 12"),
    ({"max_item_bytes": 1e6}, "start: max_item_bytes must be a whole number of bytes from 4096 to "
        "2**36, not 1000000.0"),
    ({"cancel": threading.Event}, "start: cancel must be an event with is_set(), not <class "
        "'threading.Event'>"),
    ({"result": True}, f"start: unknown option 'result'; valid options: {START_OPTIONS}"),
    ({"workers": 2}, "start: 'workers' is an option of a stage: give it to add_stage"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_STAGES, ids=str)
def test_a_bad_option_is_refused_where_the_stage_is_added(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        mpipe.Pipeline().add_stage("a", same, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("add", "message"), BAD_FUNCTIONS, ids=[m for _, m in BAD_FUNCTIONS])
def test_a_bad_function_or_name_is_refused_where_it_is_added(
    add: Callable[[mpipe.Pipeline], Any], message: str
) -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        add(mpipe.Pipeline())
    assert str(caught.value) == message


@pytest.mark.parametrize(("add", "message"), BAD_CONNECTIONS, ids=[m for _, m in BAD_CONNECTIONS])
def test_a_bad_connection_is_refused_where_it_is_made(
    add: Callable[[mpipe.Pipeline], Any], message: str
) -> None:
    with pytest.raises(mpipe.GraphError) as caught:
        add(chain("a", "b"))
    assert str(caught.value) == message


@pytest.mark.parametrize("engine", ["inline", "processes"])
@pytest.mark.parametrize(("pipeline", "message"), BAD_GRAPHS, ids=[m for _, m in BAD_GRAPHS])
def test_a_bad_graph_is_refused_by_start_and_run_before_anything_runs(
    pipeline: mpipe.Pipeline, message: str, engine: str
) -> None:
    for begin in (lambda: pipeline.start(engine), lambda: pipeline.run([1], engine)):
        with pytest.raises(mpipe.GraphError) as caught:
            begin()
        assert str(caught.value) == message


@pytest.mark.parametrize(("options", "message"), BAD_STARTS, ids=str)
def test_a_bad_start_option_is_refused_by_start_itself(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        chain("a", "b").start(**options)
    assert str(caught.value) == message


def test_run_says_that_results_are_always_kept() -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        chain("a", "b").run([1], results=True)
    assert str(caught.value) == "run: results are always kept; leave out results="


def test_run_names_the_options_that_are_its_own() -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        chain("a", "b").run([1], order=True)
    assert str(caught.value) == f"run: unknown option 'order'; valid options: {RUN_OPTIONS}"


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_imap_takes_the_options_of_a_run(engine: str) -> None:
    def wait(x: int) -> int:
        time.sleep(0.1)
        return x

    with pytest.raises(mpipe.Cancelled, match=r"its deadline of 0\.5 s passed"):
        list(mpipe.imap(wait, range(100), workers=1, engine=engine, deadline=0.5))


def test_run_refuses_what_is_not_iterable_before_anything_runs() -> None:
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        chain("a", "b").run(5)  # type: ignore[arg-type]


def test_imap_refuses_bad_options_at_the_call() -> None:
    with pytest.raises(mpipe.OptionError) as caught:
        mpipe.imap(same, [1], ordered="yes")  # type: ignore[arg-type]
    assert str(caught.value) == "imap: ordered must be True or False, not 'yes'"
    with pytest.raises(mpipe.OptionError) as caught:
        mpipe.imap(same, [1], chunksize=8)
    assert str(caught.value).startswith("imap: unknown option 'chunksize'; valid options: workers,")
    named = set(str(caught.value).rpartition(": ")[2].split(", "))
    assert named == {*OPTIONS, *START_OPTIONS.split(", ")} - {"results"}


def test_type_checkers_know_exactly_the_options_that_are_accepted() -> None:
    of_stage, of_start = set(options.StageOptions.__annotations__), START_OPTIONS.split(", ")
    assert of_stage == set(OPTIONS)
    assert {*options.StartOptions.__annotations__, "engine"} == set(of_start)
    assert {*options.StreamOptions.__annotations__, "engine", "results"} == set(of_start)
    accepted = (of_stage | set(of_start)) - {"workers", "ordered", "engine", "results"}
    assert set(options.ImapOptions.__annotations__) == accepted


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (lambda run: run.push(1, stage="b"), "push: stage 'b' is fed by other stages; push goes "
            "to: 'a'"),
        (lambda run: run.push(1, stage="bb"), "push: there is no stage 'bb'; did you mean 'b'?"),
        (lambda run: run.push(1, timeout=-1), "push: timeout must be seconds, 0 or more, not -1"),
        (lambda run: run.drain(timeout="x"), "drain: timeout must be seconds, 0 or more, not 'x'"),
        (lambda run: run.results(), "results: start the pipeline with start(results=True) to keep "
            "them"),
    ],
)  # fmt: skip
def test_a_bad_call_is_refused_and_the_run_goes_on(
    refuse: Callable[[mpipe.Run], Any], message: str
) -> None:
    with chain("a", "b").start("inline") as run:
        with pytest.raises((mpipe.GraphError, mpipe.OptionError)) as caught:
            refuse(run)
        assert str(caught.value) == message
        run.push(1)
        assert run.drain().stages["b"].processed == 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ({"a": 1}, "dict"),
        ("text", "str"),
        (b"bytes", "bytes"),
        (5, "int"),
        (False, "bool"),
        ({1, 2}, "set"),
        (range(3), "range"),
        (np.zeros(2), "ndarray"),
        (Point(1, 2), "Point"),
    ],
)
def test_a_wrong_return_value_says_what_to_return_instead(result: Any, kind: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_result(result)
    assert str(caught.value) == (
        "a stage must return a list, tuple, generator or iterator of outputs, or None, not "
        f"{kind}; return [result] for one output, or use add_map"
    )


@pytest.mark.parametrize("result", [None, [], (), iter([]), map(str, [])], ids=repr)
def test_a_right_return_value_is_accepted(result: Any) -> None:
    check_result(result)


def test_every_option_of_the_schema_has_the_documented_default_which_it_accepts() -> None:
    spec = make_spec("a", same, "flat", {})
    defaults = {name: getattr(spec, name) for name in OPTIONS}
    assert defaults == {
        "workers": None,
        "buffer_size": 1 << 15,
        "buffer_bytes": 1 << 23,
        "drop_on_full": False,
        "ordered": False,
        "on_error": "raise",
        "retries": 0,
        "retry_delay": 0.0,
        "max_crashes": 3,
        "timeout": None,
        "max_items": None,
        "max_memory": None,
        "breaker": None,
    }
    assert all(OPTIONS[name].accepts(value) for name, value in defaults.items())
    assert all(OPTIONS["on_error"].accepts(value) for value in ON_ERROR)


@pytest.mark.parametrize("fn", [int, str.upper, print, lambda item, base=10: [item]])
def test_builtins_types_and_defaults_are_functions_of_one_item(fn: Any) -> None:
    assert not make_spec("a", fn, "map", {}).is_factory


def test_a_class_or_function_without_arguments_is_a_factory() -> None:
    assert make_spec("a", mpipe.Stage, "flat", {}).is_factory
    assert make_spec("a", lambda: Needy("x"), "flat", {}).is_factory
    assert not make_spec("a", Needy("x"), "flat", {}).is_factory


def test_sources_and_terminals_are_the_ends_of_the_graph() -> None:
    graph = chain("a", "b", "c").add_stage("x", same).connect("x", "b").graph
    assert (graph.sources, graph.terminals) == (("a", "x"), ("c",))
    assert (graph.upstream("b"), graph.downstream("b")) == (("a", "x"), ("c",))


def test_topological_order_puts_every_stage_after_all_that_feed_it() -> None:
    pipeline = mpipe.Pipeline()
    for name in "dcba":
        pipeline.add_stage(name, same)
    for source, target in ("ab", "ac", "bd", "cd"):
        pipeline.connect(source, target)
    order = [stage.name for stage in pipeline.graph.topological()]
    assert sorted(order) == ["a", "b", "c", "d"]
    assert (order[0], order[-1]) == ("a", "d")


@pytest.mark.parametrize(
    ("cores", "asked", "given"),
    [
        (8, (None,), (8,)),
        (8, (None, None), (8, 8)),
        (8, (None, None, None), (6, 5, 5)),
        (1, (None, None), (1, 1)),
        (1, (None, None, None), (1, 1, 1)),
        (2, (5, None), (5, 2)),
        (4, (3, 1), (3, 1)),
    ],
)
def test_explicit_workers_are_obeyed_and_open_stages_share_two_workers_for_each_core(
    cores: int, asked: tuple[int | None, ...], given: tuple[int, ...]
) -> None:
    pipeline = chain(*"abc"[: len(asked)])
    graph = pipeline.graph
    stages = tuple(
        StageSpec(stage.name, stage.fn, workers=count)
        for stage, count in zip(graph.stages, asked, strict=True)
    )
    plan = make_plan(type(graph)(graph.name, stages, graph.edges), cores)
    assert plan.workers == given
    seats = range(sum(given))
    assert plan.processes == sum(given)
    assert plan.leaders == tuple(seats)
    assert [seat for i in range(len(given)) for seat in plan.seats_of(i)] == list(seats)
    assert [plan.stage_of(seat) for seat in seats] == [
        i for i, count in enumerate(given) for _ in range(count)
    ]


def test_a_pipeline_prints_its_graph_and_its_mermaid_chart() -> None:
    pipeline = chain("a", "b")
    assert repr(pipeline) == (
        "Pipeline('p')\n"
        "  a: workers=1 buffer_size=32768 -> b\n"
        "  b: workers=1 buffer_size=32768 -> out"
    )
    assert pipeline.to_mermaid() == (
        'flowchart LR\n    s0["a x 1"]\n    s1["b x 1"]\n    s0 -->|32768| s1'
    )


def test_a_pipeline_may_be_started_again() -> None:
    pipeline = chain("a", "b")
    assert [list(pipeline.run([1, 2], "inline")) for _ in range(2)] == [[1, 2], [1, 2]]
