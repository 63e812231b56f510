"""The example of three stages, wherever a user may put it: no main guard, lambdas and closures."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from helpers import run_program

SCRIPT = textwrap.dedent("""
    from dataclasses import dataclass
    import mpipe

    @dataclass(frozen=True)
    class Order:
        number: int
        price: int

    factor = 3

    def parse(line):
        number, price = line.split(",")
        return [Order(int(number), int(price))]

    def make_enrich(factor):
        return lambda order: [Order(order.number, order.price * factor)]

    p = mpipe.Pipeline("etl")
    p.add_stage("parse", parse, workers=4, buffer_size=100)
    p.add_stage("enrich", make_enrich(factor), workers=2, buffer_size=50)
    p.add_stage("sink", lambda order: [order] if order.price % 2 else None,
                workers=1, buffer_size=10)
    p.connect("parse", "enrich")
    p.connect("enrich", "sink")
    orders = list(p.run(f"{n},{n * 7}" for n in range(2000)))
    assert all(type(order) is Order for order in orders), orders[0]
    print(sorted(order.price for order in orders) == [n * 21 for n in range(1, 2000, 2)])
    with p.start() as run:
        run.push("1,2", "3,5")
        print(run.drain().stages["sink"].processed)
""")


def check(output: str) -> None:
    assert output.split() == ["True", "2"]


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "job.py"
    file.write_text(SCRIPT)
    check(subprocess.check_output([sys.executable, file], text=True, timeout=60))


def test_from_the_command_line() -> None:
    check(subprocess.check_output([sys.executable, "-c", SCRIPT], text=True, timeout=60))


def test_from_standard_input() -> None:
    check(subprocess.check_output([sys.executable], input=SCRIPT, text=True, timeout=60))


def test_with_spawned_workers(tmp_path: Path) -> None:
    file = tmp_path / "job.py"
    lines = 'p.run((f"{n},{n * 7}" for n in range(2000)), start_method="spawn")'
    file.write_text(SCRIPT.replace('p.run(f"{n},{n * 7}" for n in range(2000))', lines))
    assert "spawn" in file.read_text()
    check(subprocess.check_output([sys.executable, file], text=True, timeout=60))


NOTEBOOK = """
    import sys
    from jupyter_client.manager import start_new_kernel

    def show(message):
        print(message["content"].get("text", ""), end="")

    kernel, client = start_new_kernel(kernel_name="python3")
    try:
        reply = client.execute_interactive(sys.stdin.read(), timeout=60, output_hook=show)
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
"""


def test_from_a_notebook() -> None:
    command = [sys.executable, "-c", textwrap.dedent(NOTEBOOK)]
    check(subprocess.check_output(command, input=SCRIPT, text=True, timeout=120))


def test_functions_with_a_cache_travel() -> None:
    program = """
        import functools, mpipe
        @functools.lru_cache
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)
        class Twice(mpipe.Stage):
            @functools.lru_cache(maxsize=7, typed=True)
            def twice(self, x):
                return 2 * x
            def process(self, x):
                return [self.twice(x), *Twice.twice.cache_parameters().values()]
        print(*mpipe.imap(fib, [10, 80], workers=1))
        print(*mpipe.imap(lambda n: fib(n) + 1, [10], workers=1))
        print(*mpipe.Pipeline().add_stage("twice", Twice, workers=1).run([3]))
        print(*mpipe.imap(functools.lru_cache(abs), [-3], workers=1))
    """
    expected = "55 23416728348467685\n56\n6 7 True\n3\n"
    assert run_program(program) == expected
