"""Medians of several runs."""

from bench.repeats import figures, medians, spread

RUNS = [
    {"rate": 3.0, "cpu": {"server": 9}, "rows": [{"format": "json", "us": 1.0}]},
    {"rate": 1.0, "cpu": {"server": 7}, "rows": [{"format": "json", "us": 2.0}]},
    {"rate": 2.0, "cpu": {"server": 8}, "rows": [{"format": "json", "us": 9.0}]},
]


def test_every_number_is_the_median_of_the_runs() -> None:
    assert medians(RUNS) == {"rate": 2.0, "cpu": {"server": 8}, "rows": [{"format": "json", "us": 2.0}]}


def test_the_spread_of_every_number_is_the_lowest_and_the_highest() -> None:
    assert spread(RUNS) == {
        "rate": [1.0, 3.0], "cpu": {"server": [7, 9]}, "rows": [{"format": "json", "us": [1.0, 9.0]}],
    }  # fmt: skip


def test_figures_are_the_numbers_of_all_runs_by_their_names() -> None:
    assert figures({"direct": RUNS}) == {"direct rate": [3.0, 1.0, 2.0], "direct cpu server": [9, 7, 8]}


def test_a_single_run_is_its_own_median() -> None:
    assert medians(RUNS[:1]) == RUNS[0]
