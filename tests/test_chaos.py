"""The first of the chaos runs; `scripts/chaos` goes on for as long as one likes."""

from __future__ import annotations

from chaos import run_cases

FIRST_SEED = 200


def test_random_graphs_whose_workers_die_all_the_time_lose_and_double_nothing() -> None:
    tally = run_cases(FIRST_SEED, seconds=20.0, graphs=10, report_s=60.0)
    assert not tally.failed_seeds
    assert tally.kills > 100
