"""What a soak came to, and the tables in which that is printed."""

from collections import Counter
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from tests.verification.chaos.report import Recovery
from tests.verification.checker.check import Kind
from tests.verification.soak.measures import EARLY, HALF, READ, REST, Judged, Measure

SHOWN = 20  # findings at most


class Fresh(msgspec.Struct, frozen=True):
    """What devices that began with nothing were given at the end."""

    users: list[str]
    events: int
    seconds: float


class Soaked(msgspec.Struct, frozen=True, kw_only=True):
    """One soak. `seconds`: of the load. `again`: messages that were sent again. `lines`: of its history.

    `failures`: what went wrong beside the history and the figures.
    """

    stack: str
    seed: int
    directory: str
    seconds: float
    sent: int
    accepted: int
    again: int
    stored: int
    fired: list[str]
    not_fired: list[str]
    recoveries: list[Recovery]
    findings: list[tuple[str, str, str]]
    differing: int
    unheard: list[str]
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
            and not (self.not_fired or self.findings or self.differing or self.unheard or self.failures)
        )

    def count(self, kind: Kind) -> int:
        return sum(finding[0] == kind for finding in self.findings)


def show(outcome: Soaked, console: Console) -> None:
    """Prints the tables, and whatever is wrong."""
    console.print(_verdict(outcome))
    console.print(_faults(outcome))
    console.print(_figures(outcome))
    for why in outcome.not_fired:
        console.print(f"[yellow]INVALID, a fault did not fire: {why}[/]", highlight=False)
    for user in outcome.unheard:
        console.print(f"[yellow]INVALID, no fresh device of {user} was heard[/]")
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
        console.print(f"everything is in {outcome.directory}", highlight=False, soft_wrap=True)


def _verdict(outcome: Soaked) -> Table:
    fresh = outcome.fresh
    table = Table(title=f"Soak on the {outcome.stack} stack, seed {outcome.seed}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "messages sent": f"{outcome.sent:,}",
        "accepted": f"{outcome.accepted:,}",
        "in the store": f"{outcome.stored:,}",
        "sent again": f"{outcome.again:,}",
        "seconds": f"{outcome.seconds:.0f}",
        "accepted a second": f"{outcome.accepted / max(outcome.seconds, 1):,.0f}",
        "faults fired": str(len(outcome.fired)),
        "lines of history": f"{outcome.lines:,}",
        "checked in seconds": f"{outcome.check_seconds:.0f}",
        "read again by fresh devices": (
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


def _faults(outcome: Soaked) -> Table:
    table = Table(title="Faults, and seconds until every device was answered again")
    for name in ("fault", "fired", "recovery p50", "max"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, count in sorted(Counter(outcome.fired).items()):
        times = [one.seconds for one in outcome.recoveries if kind in one.kinds]
        shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        table.add_row(kind, str(count), *shown)
    return table


def _figures(outcome: Soaked) -> Table:
    table = Table(
        title="Memory, files and threads: what may grow, and what may not",
        caption=f"a message: growth in bytes from {EARLY} on",
    )
    for name in (
        "what", "before", EARLY, HALF, REST, READ, "highest", "limit", "a message"
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    table.add_column("judged by", no_wrap=True)
    for one in outcome.judged:
        limit, values = one.limit, (one.first, one.early, one.half, one.rest, one.read, one.highest)
        table.add_row(
            one.name,
            *(_number(one, value) for value in values),
            "-" if limit.most is None else _number(one, limit.most),
            f"{one.slope:+.1f}" if "memory" in one.name else "",
            limit.rule if one.ok else f"[red]GREW: {limit.rule}[/]",
        )
    return table


def _number(one: Judged, value: int) -> str:
    if one.name.endswith(("files", "threads")):
        return str(value)
    return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
