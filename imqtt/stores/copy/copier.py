"""Everything of one store into another.

Nothing is kept about how far a copy has got but the target itself. A conversation's log is a prefix of the
source's at any moment, so whoever is killed goes on behind the target's heads. Until the copy is verified
the target is marked as unfinished, and no server opens it.

The source may be in use meanwhile (`live`). What is read of a conversation is then read in an order in which
it cannot contradict itself: marks first, which are bounded by the head at that time; events; and last the
members, whose rows are written before the events that add them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from imqtt.errors import SetupError
from imqtt.stores.base import AppendConflict, Identity, OutcomeUnknown, Record, RecordRefused, Store
from imqtt.stores.copy.comparison import Copied, CopyDiffers, prove
from imqtt.stores.copy.source import (
    BYTES,
    EVENTS,
    LANES,
    ROWS,
    Progress,
    Reading,
    Source,
    both,
    device_pages,
    pages,
    patiently,
    registrations_of,
    seq_of,
    side_by_side,
)

T = TypeVar("T")


def _silent(_: Progress) -> None:
    pass


async def copy(
    source: Source, target: Store, *, live: bool = False, tell: Callable[[Progress], None] = _silent
) -> Copied:
    """Brings the target up to the source, and proves it.

    `live`: others may write to the source meanwhile; then the target is each conversation's prefix as of
    about now. `target` has been opened `copying`, and is marked as unfinished until this returns.

    Raises `SetupError` for a target that is no copy of this source, `CopyDiffers`, and what the stores raise
    when they have been away for a minute. Whatever it raises, the next call goes on from there.
    """
    plan = await survey(source, target, tell)
    await target.set_unfinished(True)
    added = await _transfer(source, target, plan, tell)

    def tell_of_all(it: Progress) -> None:
        tell(it._replace(all_conversations=plan.conversations, all_events=plan.events))

    copied = await prove(source, target, tell_of_all, live=live)
    if copied.conversations < plan.conversations or copied.events < plan.events:
        raise CopyDiffers(
            f"the target has {copied.conversations} conversations and {copied.events} events, and the source"
            f" had {plan.conversations} and {plan.events} before"
        )
    await target.set_unfinished(False)
    return copied._replace(added=added)


# --- whether


class Plan(NamedTuple):
    """What there is in the source, and how many of its events the target has already."""

    conversations: int
    events: int
    held: int


async def survey(source: Source, target: Source, tell: Callable[[Progress], None] = _silent) -> Plan:
    """Raises `SetupError` unless the target is empty, or holds a prefix of each of the source's logs."""
    await _check_identity(source, target)
    held = conversations = events = 0
    async for names in pages(target):
        heads = await patiently(target.heads, names)
        ids = await patiently(source.ids_at, [(name, head.seq) for name, head in heads.items()])
        for name, head in heads.items():
            if ids.get((name, head.seq)) != head.id:
                raise SetupError(
                    f"the target has gone on since it was copied, or is no copy: the source does not have its"
                    f" event {head.seq} of {name} (both are store {_named(source.identity)});"
                    " name another target"
                )
        held += sum(head.seq for head in heads.values())
    async for names in pages(source):
        conversations += len(names)
        events += sum(head.seq for head in (await patiently(source.heads, names)).values())
        tell(Progress("comparing", conversations, events))
    return Plan(conversations, events, held)


async def _check_identity(source: Source, target: Source) -> None:
    if source.identity == target.identity:
        return
    empty = not await patiently(target.conversations, "", 1)
    raise SetupError(
        f"the target is another store than the source: {_named(target.identity)}, and the source"
        f" {_named(source.identity)}; "
        + ("it is empty: remove it, and it is made anew" if empty else "name another target")
    )


def _named(identity: Identity) -> str:
    return f"{identity.cluster or '(without a name)'} of {identity.partitions} partitions"


# --- copying


async def _transfer(source: Source, target: Store, plan: Plan, tell: Callable[[Progress], None]) -> int:
    """How many events were appended."""
    done = Progress("copying", 0, plan.held, plan.conversations, plan.events)
    tell(done)

    def appended(count: int) -> None:
        nonlocal done
        done = done._replace(events=done.events + count)
        tell(done)

    async for names in pages(source):
        marks = await patiently(source.marks, names)
        heads = await patiently(source.heads, names)
        there = await patiently(target.heads, names)
        behind = (
            (name, there[name].seq if name in there else 0, head.seq)
            for name, head in heads.items()
            if name not in there or there[name].seq < head.seq
        )
        await side_by_side(_append_logs(source, target, behind, appended) for _ in range(LANES))
        for raised in batches(chain.from_iterable(marks.values())):
            await patiently(target.raise_marks, raised)
        members = await patiently(source.members, names)
        pairs = ((user, name) for name, users in members.items() for user in users)
        for rows in batches(pairs):
            await patiently(target.put_members, rows)
        done = done._replace(conversations=done.conversations + len(names))
        tell(done)
    async for registrations in device_pages(source):
        await patiently(target.put_devices, registrations)
    # An earlier copy may have brought devices that the source has removed since.
    async for page in both(registrations_of(source), registrations_of(target), ROWS, lambda it: it.device):
        for device in [device for device, ours, _ in page if ours is None]:
            await patiently(target.remove_device, device)
    return done.events - plan.held


async def _append_logs(
    source: Source, target: Store, logs: Iterator[tuple[str, int, int]], appended: Callable[[int], None]
) -> None:
    """Brings over (conversation, from behind this seq, at least up to this one), as long as there are any."""
    reading = Reading(source)
    batch: list[Record] = []
    size = 0
    for name, start, end in logs:
        seq = start
        while seq < end:
            records = await reading.after(name, seq)
            if not records or records[-1].event.seq != seq + len(records):
                raise CopyDiffers(f"the source's log of {name} has a hole after event {seq}", name, seq)
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
    """Appends what is not stored yet, until all is."""
    rest = list(records)

    async def append() -> None:
        nonlocal rest
        try:
            await target.append(rest)
        except (OutcomeUnknown, AppendConflict) as error:
            # Any prefix of each conversation's records may be stored. What is, need not be sent again.
            heads = await target.heads({record.event.conversation for record in rest})
            left = [it for it in rest if it.event.seq > seq_of(heads, it.event.conversation)]
            if len(left) == len(rest) and isinstance(error, AppendConflict):
                raise _taken(rest[0], error) from error
            rest = left
            if rest:
                raise OutcomeUnknown(error.reason) from error

    try:
        await patiently(append)
    except RecordRefused:
        if len(rest) == 1:
            event = rest[0].event
            raise SetupError(f"the target cannot hold event {event.seq} of {event.conversation}") from None
        for record in rest:
            await _append(target, [record])


def _taken(record: Record, error: AppendConflict) -> CopyDiffers:
    event = record.event
    return CopyDiffers(
        f"the target does not take the events of {event.conversation} after {event.seq - 1}: {error.reason}",
        event.conversation,
        event.seq,
    )


def batches(rows: Iterable[T]) -> Iterator[list[T]]:
    """Of rows that are written together."""
    batch: list[T] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
