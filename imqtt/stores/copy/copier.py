"""Copies one store into another.

The target itself is the only record of progress. Each of its logs is a prefix of the source's at any moment,
so a copy that was killed continues after the target's heads. Until the copy is verified, the target is marked
as unfinished and no server opens it.

The source may be in use meanwhile (`live`). Each conversation is then read in an order that keeps it
consistent: first the marks, which are bounded by the head at that time, then the events, and last the
members, whose rows are written before the events that add them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from imqtt.errors import SetupError
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, RecordRefused, Store, chunks
from imqtt.stores.copy.comparison import Copied, CopyDiffers, verify
from imqtt.stores.copy.source import (
    BYTES,
    EVENTS,
    LANES,
    ROWS,
    Progress,
    Reading,
    Source,
    Tell,
    both,
    device_of,
    device_pages,
    pages,
    retry,
    seq_of,
    side_by_side,
)


async def copy(source: Source, target: Store, *, live: bool = False, tell: Tell = lambda _: None) -> Copied:
    """Copies the rows that the target lacks, and verifies all rows.

    `live`: others may write to the source meanwhile; the target then has a prefix of each log as of about
    now. `target` must be opened `copying`, and is marked as unfinished until this returns.

    Raises `SetupError` if the target is not a copy of this source, `CopyDiffers`, or the error of a store
    that is unavailable for a minute. After any error, the next call continues.
    """
    plan = await survey(source, target, tell)
    await target.set_unfinished(True)
    added = await _transfer(source, target, plan, tell)

    def tell_of_all(progress: Progress) -> None:
        tell(progress._replace(all_conversations=plan.conversations, all_events=plan.events))

    copied = await verify(source, target, tell_of_all, live=live)
    if copied.conversations < plan.conversations or copied.events < plan.events:
        raise CopyDiffers(
            f"the target has {copied.conversations} conversations and {copied.events} events, but the source"
            f" had {plan.conversations} and {plan.events} before"
        )
    await target.set_unfinished(False)
    return copied._replace(added=added)


class Plan(NamedTuple):
    """The size of the source. `held`: its events that the target already has."""

    conversations: int
    events: int
    held: int


async def survey(source: Source, target: Source, tell: Tell = lambda _: None) -> Plan:
    """Raises `SetupError` unless the target is empty or has only prefixes of the source's logs."""
    if source.identity != target.identity:
        empty = not await retry(target.conversations, "", 1)
        raise SetupError(
            f"the target is store {_named(target.identity)}, but the source is store"
            f" {_named(source.identity)}; "
            + ("the target is empty: remove it, and the copy creates it" if empty else "name another target")
        )
    held = conversations = events = 0
    async for names in pages(target):
        heads = await retry(target.heads, names)
        ids = await retry(source.ids_at, [(name, head.seq) for name, head in heads.items()])
        for name, head in heads.items():
            if ids.get((name, head.seq)) != head.id:
                raise SetupError(
                    f"the target was changed since it was copied, or is not a copy: the source does not have"
                    f" its event {head.seq} of {name} (both are store {_named(source.identity)});"
                    " name another target"
                )
        held += sum(head.seq for head in heads.values())
    async for names in pages(source):
        conversations += len(names)
        events += sum(head.seq for head in (await retry(source.heads, names)).values())
        tell(Progress("comparing", conversations, events))
    return Plan(conversations, events, held)


def _named(identity: Identity) -> str:
    return f"{identity.cluster or '(without an id)'} of {identity.partitions} partitions"


async def _transfer(source: Source, target: Store, plan: Plan, tell: Tell) -> int:
    """Returns the number of events that were appended."""
    done = Progress("copying", 0, plan.held, plan.conversations, plan.events)
    tell(done)

    def appended(count: int) -> None:
        nonlocal done
        done = done._replace(events=done.events + count)
        tell(done)

    async for names in pages(source):
        marks = await retry(source.marks, names)
        heads = await retry(source.heads, names)
        there = await retry(target.heads, names)
        behind = (
            (name, seq_of(there, name), head.seq)
            for name, head in heads.items()
            if seq_of(there, name) < head.seq
        )
        await side_by_side(_append_logs(source, target, behind, appended) for _ in range(LANES))
        for raised in chunks(chain.from_iterable(marks.values()), ROWS):
            await retry(target.raise_marks, raised)
        members = await retry(source.members, names)
        pairs = ((user, name) for name, users in members.items() for user in users)
        for rows in chunks(pairs, ROWS):
            await retry(target.put_members, rows)
        done = done._replace(conversations=done.conversations + len(names))
        tell(done)
    async for registrations in device_pages(source):
        await retry(target.put_devices, registrations)
    # An earlier run may have copied devices that the source has removed since.
    async for page in both(device_pages(source), device_pages(target), device_of):
        for device in [device for device, in_source, _ in page if in_source is None]:
            await retry(target.remove_device, device)
    return done.events - plan.held


async def _append_logs(
    source: Source, target: Store, logs: Iterator[tuple[str, int, int]], appended: Callable[[int], None]
) -> None:
    """Copies `logs`: each a conversation, the target's last seq, and the seq to reach at least."""
    reading = Reading(source)
    batch: list[Record] = []
    size = 0
    for name, start, end in logs:
        seq = start
        while seq < end:
            records = await reading.after(name, seq)
            if not records or records[-1].event.seq != seq + len(records):
                raise CopyDiffers(f"the source's log of {name} has a gap after event {seq}", name, seq)
            seq += len(records)
            batch += records
            size += sum(len(record.body) for record in records)
            if len(batch) >= EVENTS or size >= BYTES:
                await _append(target, batch)
                appended(len(batch))
                batch, size = [], 0
    if batch:
        await _append(target, batch)
        appended(len(batch))


async def _append(target: Store, records: Sequence[Record]) -> None:
    """Appends the records, and again those that are not stored yet, until all are."""
    rest = list(records)

    async def append() -> None:
        nonlocal rest
        try:
            await target.append(rest)
        except (OutcomeUnknown, AppendConflict) as error:
            # Any prefix of each conversation's records may be stored; only the others are sent again.
            heads = await target.heads({record.event.conversation for record in rest})
            left = [record for record in rest if record.event.seq > seq_of(heads, record.event.conversation)]
            if len(left) == len(rest) and isinstance(error, AppendConflict):
                event = rest[0].event
                raise CopyDiffers(
                    f"the target refuses the events of {event.conversation} after {event.seq - 1}:"
                    f" {error.reason}",
                    event.conversation,
                    event.seq,
                ) from error
            rest = left
            if rest:
                raise OutcomeUnknown(error.reason) from error

    try:
        await retry(append)
    except RecordRefused:
        if len(rest) == 1:
            event = rest[0].event
            raise SetupError(f"the target cannot store event {event.seq} of {event.conversation}") from None
        for record in rest:
            await _append(target, [record])
