"""Short runs on both stacks; a run without an effective fault is invalid."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from tests.verification.chaos import runner
from tests.verification.chaos.plan import Plan, Planned, Round
from tests.verification.chaos.report import Outcome, Recovery, show, with_verdict
from tests.verification.chaos.runner import check_histories, run, shape

SDK, PLAIN = ("alice@phone", "bob@laptop"), ("dave@plain",)

# Quick faults only: those with long waits run in `make chaos`.
Faults = tuple[tuple[str, str], ...]
ROUNDS: dict[str, tuple[Faults, ...]] = {
    "sqlite": (
        (("kill worker", "worker-1"), ("pause device", "bob@laptop")),
        (("swallow worker-broker", "worker-1>broker"), ("kill device", "alice@phone")),
        (("restore backup", "store"), ("swallow device-broker", "alice@phone>broker")),
        (("wipe broker", "broker"),),
    ),
    "scale": (
        (("kill worker", "worker-1"), ("flush redis", "redis"), ("kill device", "bob@laptop")),
        (("swallow worker-store", "worker-2>store"), ("stall worker-redis", "worker-1>redis")),
        (("restore backup", "store"),),
        (("kill broker", "broker"), ("kill store", "store")),
    ),
}


def plan_of(stack: str, *rounds: Faults, backup: bool = True) -> Plan:
    available = shape(stack, disks=False, sdk=SDK, plain=PLAIN, workers=2 if stack == "scale" else 1)
    return Plan(
        7,
        available,
        tuple(
            Round(
                tuple(Planned(*fault, 0.1 * place) for place, fault in enumerate(faults)),
                0.7,
                backup and not number,
            )
            for number, faults in enumerate(rounds)
        ),
    )


def printed(*outcomes: Outcome) -> str:
    console = Console(file=io.StringIO(), width=240)
    show(outcomes, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    """The cells of the row of this name."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.fixture(autouse=True)
def frequent_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages per second than in a long run."""
    monkeypatch.setattr(runner, "RATES", dict.fromkeys(runner.RATES, 12.0))


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param([ROUNDS["sqlite"][number] for number in (0, 2)], id="2 rounds"),
        pytest.param(ROUNDS["sqlite"], id="all rounds", marks=pytest.mark.verify),
    ],
)
async def test_nothing_is_lost_on_sqlite_and_a_planted_loss_is_found(
    tmp_path: Path, rounds: Sequence[Faults]
) -> None:
    plan = plan_of("sqlite", *rounds)
    outcome = await run(plan, tmp_path)
    assert outcome.ok, printed(outcome)
    assert set(outcome.fired) == plan.kinds
    assert len(outcome.recoveries) == len(plan.rounds)
    assert outcome.accepted > 100
    assert row(printed(outcome), "sqlite")[6:12] == ["0"] * 6
    assert row(printed(outcome), "sqlite")[-1] == "ok"

    # Remove the last event of a conversation from the record of the store.
    harness = tmp_path / "histories" / "harness.jsonl"
    lines = [json.loads(line) for line in harness.read_text().splitlines()]
    victim = next(line for line in reversed(lines) if line["type"] == "stored" and line["rows"])
    victim["rows"].pop()
    harness.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = with_verdict(outcome, check_histories(tmp_path / "histories"))
    assert not found.ok
    output = printed(found)
    assert int(row(output, "sqlite")[6]) > 0  # lost
    assert int(row(output, "sqlite")[10]) > 0  # conversations that differ
    assert row(output, "sqlite")[-1] == "failed"
    assert str(tmp_path) in output


@pytest.mark.verify
async def test_nothing_is_lost_on_mongodb_redis_and_several_workers(tmp_path: Path) -> None:
    plan = plan_of("scale", *ROUNDS["scale"])
    outcome = await run(plan, tmp_path)
    assert outcome.ok, printed(outcome)
    assert set(outcome.fired) == plan.kinds
    assert outcome.accepted > 100


@pytest.mark.verify
async def test_a_run_with_a_fault_that_had_no_effect_is_invalid(tmp_path: Path) -> None:
    # The broker's state was never saved, so none can be restored.
    outcome = await run(plan_of("sqlite", (("old broker", "broker"),), backup=False), tmp_path)
    assert not outcome.findings
    assert not outcome.failures
    assert not outcome.valid
    assert not outcome.ok
    output = printed(outcome)
    assert row(output, "sqlite")[-1] == "invalid"
    assert "did not fire: old broker (broker): no old state was saved" in output


# --- the table

GOOD = Outcome(
    stack="sqlite",
    seed=1,
    rounds=2,
    seconds=3.0,
    directory="/kept/here",
    again="again",
    fired=["kill worker"],
    not_fired=[],
    left_out=[],
    recoveries=[Recovery(["kill worker"], 1.5)],
    failures=[],
    sent=9,
    accepted=8,
)


def test_the_table_counts_each_kind_of_finding_and_adds_up_the_stacks() -> None:
    kinds = ("lost", "doubled", "doubled", "out of order", "hole", "hole", "hole", "phantom", "differs")
    bad = replace(GOOD, stack="scale", findings=[(kind, "u:a", "what") for kind in kinds], differing=4)
    output = printed(GOOD, bad)
    assert row(output, "sqlite")[3:] == ["1", "9", "8", "0", "0", "0", "0", "0", "0", "1.5", "1.5", "ok"]
    assert row(output, "scale")[6:12] == ["1", "2", "1", "3", "4", "2"]
    assert row(output, "total")[3:12] == ["2", "18", "16", "1", "2", "1", "3", "4", "2"]
    assert row(output, "total")[-1] == "failed"
    assert row(output, "kill worker") == ["kill worker", "1", "1", "1.5", "1.5"]


@pytest.mark.parametrize(
    "missing",
    [
        replace(GOOD, fired=[]),
        replace(GOOD, not_fired=["kill broker: why"]),
        replace(GOOD, unseen=["alice"]),
        replace(GOOD, accepted=0),
    ],
)
def test_a_run_that_proves_nothing_is_invalid(missing: Outcome) -> None:
    assert not missing.ok
    assert row(printed(missing), "sqlite")[-1] == "invalid"


def test_a_part_that_ended_on_its_own_fails_a_run_with_a_clean_history() -> None:
    ended = replace(GOOD, failures=["worker-1 ended on its own"])
    assert not ended.ok
    assert "worker-1 ended on its own" in printed(ended)
    assert row(printed(ended), "sqlite")[-1] == "failed"
