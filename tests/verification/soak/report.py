"""The outcome of a soak, and its tables."""

from collections import Counter
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from tests.verification.chaos.report import Recovery
from tests.verification.checker.check import Kind
from tests.verification.soak.measures import EARLY, HALF, READ, REST, Judged, Measure

SHOWN = 20  # maximum number of findings


class Fresh(msgspec.Struct, frozen=True):
    """What fresh devices could read at the end."""

    users: list[str]
    events: int
    seconds: float


class SoakOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One soak. `seconds`: of the load. `resent`: messages that were sent again. `lines`: of its history.

    `failures`: problems outside the history and the figures.
    """

    stack: str
    seed: int
    directory: str
    seconds: float
    sent: int
    accepted: int
    resent: int
    stored: int
    fired: list[str]
    not_fired: list[str]
    recoveries: list[Recovery]
    findings: list[tuple[str, str, str]]
    differing: int
    unread_users: list[str]
    lines: int
    fresh: Fresh
    check_seconds: float
    measures: list[Measure]
    judged: list[Judged]
    failures: list[str]

    @property
    def ok(self) -> bool:
        return (
            bool(self.fired)
            and bool(self.accepted)
            and self.sent == self.accepted == self.stored
            and all(figure.ok for figure in self.judged)
            and not (self.not_fired or self.findings or self.differing or self.unread_users or self.failures)
        )

    def count(self, kind: Kind) -> int:
        return sum(finding[0] == kind for finding in self.findings)


def show(outcome: SoakOutcome, console: Console) -> None:
    """Prints the tables and everything that is wrong."""
    console.print(_verdict(outcome))
    console.print(_faults(outcome))
    console.print(_figures(outcome))
    for why in outcome.not_fired:
        console.print(f"[yellow]INVALID, a fault did not fire: {why}[/]", highlight=False)
    for user in outcome.unread_users:
        console.print(f"[yellow]INVALID, no fresh device of {user} was read[/]")
    for failure in outcome.failures:
        console.print(f"[red]{failure}[/]", highlight=False)
    for kind, conversation, what in outcome.findings[:SHOWN]:
        console.print(f"[red]{kind}: {conversation}: {what}[/]", highlight=False)
    if len(outcome.findings) > SHOWN:
        console.print(f"[red]and {len(outcome.findings) - SHOWN} more findings[/]")
    for grown in outcome.judged:
        if not grown.ok:
            console.print(f"[red]{grown.name} grew: {grown.limit.rule}[/]")
    if not outcome.ok:
        console.print(f"all files are in {outcome.directory}", highlight=False, soft_wrap=True)


def _verdict(outcome: SoakOutcome) -> Table:
    fresh = outcome.fresh
    table = Table(title=f"Soak on the {outcome.stack} stack, seed {outcome.seed}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "messages sent": f"{outcome.sent:,}",
        "accepted": f"{outcome.accepted:,}",
        "in the store": f"{outcome.stored:,}",
        "sent again": f"{outcome.resent:,}",
        "seconds": f"{outcome.seconds:.0f}",
        "accepted per second": f"{outcome.accepted / max(outcome.seconds, 1):,.0f}",
        "faults fired": str(len(outcome.fired)),
        "lines of history": f"{outcome.lines:,}",
        "seconds of checking": f"{outcome.check_seconds:.0f}",
        "read by fresh devices": (
            f"{fresh.events:,} events of {len(fresh.users)} users in {fresh.seconds:.0f} s"
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    table.add_section()
    for kind in Kind:
        count = outcome.count(kind)
        table.add_row(str(kind), f"[red]{count}[/]" if count else "0")
    table.add_row("conversations that differ", str(outcome.differing))
    table.add_section()
    table.add_row("verdict", "[green]ok[/]" if outcome.ok else "[red]failed[/]")
    return table


def _faults(outcome: SoakOutcome) -> Table:
    table = Table(title="Faults, and seconds until every device was answered")
    for name in ("fault", "fired", "recovery p50", "max"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, count in sorted(Counter(outcome.fired).items()):
        times = [recovery.seconds for recovery in outcome.recoveries if kind in recovery.kinds]
        shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        table.add_row(kind, str(count), *shown)
    return table


def _figures(outcome: SoakOutcome) -> Table:
    table = Table(
        title="Memory, files and threads, and limits of their growth",
        caption=f"per message: growth in bytes from {EARLY} on",
    )
    for name in (
        "figure", "before", EARLY, HALF, REST, READ, "highest", "limit", "per message"
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    table.add_column("judged by", no_wrap=True)
    for figure in outcome.judged:
        limit = figure.limit
        values = (figure.first, figure.early, figure.half, figure.rest, figure.read, figure.highest)
        table.add_row(
            figure.name,
            *(_number(figure, value) for value in values),
            "-" if limit.most is None else _number(figure, limit.most),
            f"{figure.slope:+.1f}" if "memory" in figure.name else "",
            limit.rule if figure.ok else f"[red]GREW: {limit.rule}[/]",
        )
    return table


def _number(figure: Judged, value: int) -> str:
    if figure.name.endswith(("files", "threads")):
        return str(value)
    return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
