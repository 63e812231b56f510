"""The first of the chaos runs; `scripts/chaos` goes on for as long as one likes."""

from __future__ import annotations

from chaos import Tally, run_cases

FIRST_SEED = 200


def test_random_graphs_whose_workers_die_all_the_time_lose_and_double_nothing() -> None:
    tally = run_cases(FIRST_SEED, seconds=20.0, graphs=10, report_s=60.0)
    assert not tally.failed_seeds
    assert tally.kills > 100


def test_what_jobs_have_done_is_added_up_with_all_seeds_that_failed() -> None:
    one, other = Tally(graphs=1, lost=2, failed_seeds=[3]), Tally(graphs=4, failed_seeds=[5])
    assert one + other == Tally(graphs=5, lost=2, failed_seeds=[3, 5])
