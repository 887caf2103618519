"""The outcome of a run, and its tables."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from tests.verification.checker.check import Kind, Verdict

COLUMNS = {Kind.LOST: "lost", Kind.DOUBLED: "doubled", Kind.DISORDER: "out of order", Kind.HOLE: "holes"}
SHOWN = 20  # findings of a run, at most


class Recovery(msgspec.Struct, frozen=True):
    """Seconds from the start of the repairs until every device was answered, after faults of these kinds."""

    kinds: list[str]
    seconds: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `fired` and `not_fired`: one entry per fault, in the order of firing.

    `again` is the command that repeats the run. `failures`: problems outside the history, such as a worker
    that exited.
    """

    stack: str
    seed: int
    rounds: int
    seconds: float
    directory: str
    again: str
    fired: list[str]
    not_fired: list[str]
    left_out: list[str]
    recoveries: list[Recovery]
    failures: list[str]
    sent: int = 0
    accepted: int = 0
    stored: int = 0
    findings: list[tuple[str, str, str]] = []
    differing: int = 0
    unseen: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether it proves anything: every planned fault fired, and a fresh device of every user was
        read.
        """
        return bool(self.fired) and not self.not_fired and not self.unseen and self.accepted > 0

    @property
    def ok(self) -> bool:
        return self.valid and not self.findings and not self.differing and not self.failures

    def count(self, kind: str) -> int:
        return sum(finding[0] == kind for finding in self.findings)

    @property
    def others(self) -> int:
        """Findings that have no column."""
        return len(self.findings) - sum(map(self.count, COLUMNS))


def with_verdict(outcome: Outcome, verdict: Verdict) -> Outcome:
    """Adds the results of the history to an outcome."""
    return msgspec.structs.replace(
        outcome,
        sent=verdict.sent,
        accepted=verdict.accepted,
        stored=verdict.stored,
        findings=[(str(finding.kind), finding.conversation, finding.what) for finding in verdict.findings],
        differing=len(verdict.differing),
        unseen=sorted(verdict.unseen),
    )


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Prints the table of runs, the table of faults, and everything that is wrong."""
    console.print(_verdicts(outcomes))
    console.print(_faults(outcomes))
    for outcome in outcomes:
        _show_trouble(outcome, console)


def _verdicts(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Chaos: results of the recorded histories")
    for name in ("stack", "runs", "seconds", "faults fired", "sent", "accepted", *COLUMNS.values()):
        table.add_column(name, justify="left" if name == "stack" else "right")
    for name in ("differ", "other findings", "recovery p50", "max", "verdict"):
        table.add_column(name, justify="right")
    stacks = list(dict.fromkeys(outcome.stack for outcome in outcomes))
    for stack in stacks:
        _add_row(table, stack, [outcome for outcome in outcomes if outcome.stack == stack])
    if len(stacks) > 1:
        table.add_section()
        _add_row(table, "total", outcomes)
    return table


def _add_row(table: Table, name: str, runs: Sequence[Outcome]) -> None:
    times = [recovery.seconds for run in runs for recovery in run.recoveries]
    table.add_row(
        name,
        str(len(runs)),
        f"{sum(run.seconds for run in runs):.0f}",
        str(sum(len(run.fired) for run in runs)),
        f"{sum(run.sent for run in runs):,}",
        f"{sum(run.accepted for run in runs):,}",
        *(_count(sum(run.count(kind) for run in runs)) for kind in COLUMNS),
        _count(sum(run.differing for run in runs)),
        _count(sum(run.others for run in runs)),
        *_times(times),
        verdict(runs),
    )


def verdict(runs: Sequence[Outcome]) -> str:
    """A coloured word."""
    if all(run.ok for run in runs):
        return "[green]ok[/]"
    if all(run.ok or not run.valid for run in runs) and not any(run.findings or run.failures for run in runs):
        return "[yellow]invalid[/]"
    return "[red]failed[/]"


def _faults(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Faults, and seconds until every device was answered")
    stacks = list(dict.fromkeys(outcome.stack for outcome in outcomes))
    for name in ("fault", *(f"fired on {stack}" for stack in stacks), "recovery p50", "max"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    fired = {
        stack: Counter(kind for outcome in outcomes if outcome.stack == stack for kind in outcome.fired)
        for stack in stacks
    }
    for kind in sorted({kind for counts in fired.values() for kind in counts}):
        times = [
            recovery.seconds for run in outcomes for recovery in run.recoveries if kind in recovery.kinds
        ]
        table.add_row(kind, *(str(fired[stack][kind] or "-") for stack in stacks), *_times(times))
    return table


def _times(times: Sequence[float]) -> tuple[str, str]:
    return (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")


def _count(number: int) -> str:
    return f"[red]{number}[/]" if number else "0"


def _show_trouble(outcome: Outcome, console: Console) -> None:
    def say(what: str, style: str = "") -> None:
        text = f"{outcome.stack}, seed {outcome.seed}: {what}"
        # Output of processes may look like markup.
        console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    for kind in outcome.left_out:
        say(f"{kind} is left out: this machine cannot mount disks")
    for why in outcome.not_fired:
        say(f"INVALID, a planned fault did not fire: {why}", "yellow")
    if outcome.unseen:
        say(f"INVALID, no fresh device of {', '.join(outcome.unseen)} was read", "yellow")
    for failure in outcome.failures:
        say(failure, "red")
    for kind, conversation, what in outcome.findings[:SHOWN]:
        say(f"{kind}: {conversation}: {what}", "red")
    if len(outcome.findings) > SHOWN:
        say(f"and {len(outcome.findings) - SHOWN} more findings", "red")
    if not outcome.ok:
        say(f"all files are in {outcome.directory}; repeat with: {outcome.again}")
