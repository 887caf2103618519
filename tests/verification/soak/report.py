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
            and all(it.ok for it in self.judged)
            and not (self.not_fired or self.findings or self.differing or self.unheard or self.failures)
        )

    def count(self, kind: Kind) -> int:
        return sum(it[0] == kind for it in self.findings)


def show(it: Soaked, console: Console) -> None:
    """Prints the tables, and whatever is wrong."""
    console.print(_verdict(it))
    console.print(_faults(it))
    console.print(_figures(it))
    for why in it.not_fired:
        console.print(f"[yellow]INVALID, a fault did not fire: {why}[/]", highlight=False)
    for user in it.unheard:
        console.print(f"[yellow]INVALID, no fresh device of {user} was heard[/]")
    for failure in it.failures:
        console.print(f"[red]{failure}[/]", highlight=False)
    for kind, conversation, what in it.findings[:SHOWN]:
        console.print(f"[red]{kind}: {conversation}: {what}[/]", highlight=False)
    if len(it.findings) > SHOWN:
        console.print(f"[red]and {len(it.findings) - SHOWN} more findings[/]")
    for grown in it.judged:
        if not grown.ok:
            console.print(f"[red]{grown.name} grew: {grown.limit.rule}[/]")
    if not it.ok:
        console.print(f"everything is in {it.directory}", highlight=False, soft_wrap=True)


def _verdict(it: Soaked) -> Table:
    table = Table(title=f"Soak on the {it.stack} stack, seed {it.seed}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "messages sent": f"{it.sent:,}",
        "accepted": f"{it.accepted:,}",
        "in the store": f"{it.stored:,}",
        "sent again": f"{it.again:,}",
        "seconds": f"{it.seconds:.0f}",
        "accepted a second": f"{it.accepted / max(it.seconds, 1):,.0f}",
        "faults fired": str(len(it.fired)),
        "lines of history": f"{it.lines:,}",
        "checked in seconds": f"{it.check_seconds:.0f}",
        "read again by fresh devices": (
            f"{it.fresh.events:,} events of {len(it.fresh.users)} users in {it.fresh.seconds:.0f} s"
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    table.add_section()
    for kind in Kind:
        count = it.count(kind)
        table.add_row(str(kind), f"[red]{count}[/]" if count else "0")
    table.add_row("conversations that differ", str(it.differing))
    table.add_section()
    table.add_row("verdict", "[green]ok[/]" if it.ok else "[red]failed[/]")
    return table


def _faults(it: Soaked) -> Table:
    table = Table(title="Faults, and seconds until every device was answered again")
    for name in ("fault", "fired", "recovery p50", "max"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, count in sorted(Counter(it.fired).items()):
        times = [one.seconds for one in it.recoveries if kind in one.kinds]
        shown = (f"{median(times):.1f}", f"{max(times):.1f}") if times else ("-", "-")
        table.add_row(kind, str(count), *shown)
    return table


def _figures(it: Soaked) -> Table:
    table = Table(
        title="Memory, files and threads: what may grow, and what may not",
        caption=f"a message: bytes by which it grew from {EARLY} on",
    )
    for name in (
        "what", "before", EARLY, HALF, REST, READ, "highest", "limit", "a message"
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    table.add_column("judged by", no_wrap=True)
    for one in it.judged:
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
