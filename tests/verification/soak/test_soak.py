"""A small soak, and the detection of growth."""

from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.verification.chaos.faults import Shape
from tests.verification.soak.faults import SOAK_KINDS, faults
from tests.verification.soak.measures import (
    CACHES_OF_READERS,
    EARLY,
    HALF,
    KB,
    MB,
    READ,
    REST,
    Judged,
    Measure,
    judge,
    slope,
)
from tests.verification.soak.run import Soak, soak

MESSAGES = 10_000
QUIET = {
    "worker-1 memory": 100 * MB, "worker-1 open files": 54, "worker-1 threads": 10, "worker-1 log": 100 * KB,
    "broker memory": 12 * MB, "load memory": 40 * MB, "store file": 0, "store WAL": 20 * MB,
    "mosquitto.db": 2 * KB, "broker log": 100 * KB,
}  # fmt: skip


@pytest.mark.verify
async def test_a_soak_has_no_findings_and_no_growth(tmp_path: Path) -> None:
    kinds = ("kill broker", "drop device-broker")
    plan = Soak("sqlite", 7, MESSAGES, rate=2_500.0, every=1.5, least=2, kinds=kinds, sample=3)
    outcome = await soak(plan, tmp_path)
    assert outcome.ok, outcome
    assert outcome.accepted >= MESSAGES
    assert sorted(outcome.fired) == sorted(kinds)
    assert len(outcome.recoveries) == 2
    assert outcome.fresh.events > 0
    assert [measure.mark for measure in outcome.measures][-2:] == [REST, READ]


def run_of(**growth: int) -> list[Measure]:
    """Measures of a million messages in which these figures (with _ for a space) grow by these amounts."""
    found = []
    for number in range(101):
        figures = dict(QUIET)
        for name, units in growth.items():
            key = name.replace("_", " ").replace("worker ", "worker-1 ")
            figures[key] += units * number // 100
        mark = {20: EARLY, 50: HALF, 100: REST}.get(number, "")
        found.append(Measure(float(number), number * 10_000, figures, mark))
    return [*found, Measure(101.0, 1_000_000, dict(found[-1].figures), READ)]


def grown(measures: list[Measure]) -> list[str]:
    return [figure.name for figure in judge(measures, faults=40) if not figure.ok]


def test_constant_sizes_are_no_growth() -> None:
    assert grown(run_of()) == []


def test_the_stores_file_may_grow_by_messages_and_logs_by_faults() -> None:
    assert grown(run_of(store_file=300 * MB, worker_log=2 * MB, broker_log=2 * MB)) == []


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("worker_memory", 100 * MB), ("worker_open_files", 100), ("worker_threads", 20),
        ("worker_log", 100 * MB), ("broker_memory", 50 * MB), ("broker_log", 90 * MB),
        ("store_file", 3_000 * MB), ("store_WAL", 100 * MB), ("mosquitto.db", 9 * MB),
    ],
)  # fmt: skip
def test_growth_with_messages_is_reported(name: str, units: int) -> None:
    assert grown(run_of(**{name: units})) == [name.replace("_", " ").replace("worker ", "worker-1 ")]


def test_a_store_log_that_was_long_for_a_moment_is_reported() -> None:
    measures = run_of()
    measures[70].figures["store WAL"] = 500 * MB
    assert grown(measures) == ["store WAL"]


def test_slow_growth_per_message_is_reported() -> None:
    assert grown(run_of(worker_memory=20 * MB)) == []
    assert grown(run_of(worker_memory=40 * MB)) == ["worker-1 memory"]


def test_a_worker_may_grow_only_until_its_caches_are_full() -> None:
    def first(part: int, growth: int) -> list[Measure]:
        return [
            Measure(measure.at, measure.accepted // part, measure.figures, measure.mark)
            for measure in run_of(worker_memory=growth)
        ]

    assert grown(first(10, 60 * MB)) == []  # of 100,000 messages
    assert grown(first(10, 120 * MB)) == ["worker-1 memory"]


def test_reading_may_only_grow_memory_by_the_caches_of_readers() -> None:
    measures = run_of()
    measures[-1].figures["worker-1 memory"] += CACHES_OF_READERS
    assert grown(measures) == []
    measures[-1].figures["worker-1 memory"] += 50 * MB
    assert grown(measures) == ["worker-1 memory"]


def test_a_part_that_is_down_at_a_measure_is_judged_by_the_next_one() -> None:
    measures = run_of(worker_memory=100 * MB)
    del measures[20].figures["worker-1 memory"]
    found: Judged = next(figure for figure in judge(measures, faults=1) if figure.name == "worker-1 memory")
    assert found.early == measures[21].figures["worker-1 memory"]


def test_growth_is_reported_in_bytes_per_message() -> None:
    assert slope(run_of(worker_memory=100 * MB), "worker-1 memory") == pytest.approx(100, rel=0.01)
    assert slope(run_of(), "worker-1 memory") == 0


def test_no_kind_of_fault_repeats_before_every_kind_was_injected() -> None:
    groups = ("devices-0", "devices-1")
    shape = Shape("scale", ("worker-1", "worker-2"), groups, (), (3, 5))
    deck = [kind for kind, _ in islice(faults(shape, (), Random(1)), 3 * len(SOAK_KINDS))]
    assert set(Counter(deck).values()) == {3}


def test_no_fault_of_a_soak_restarts_a_worker() -> None:
    assert not {"kill worker", "leave worker", "restore backup"} & set(SOAK_KINDS)
