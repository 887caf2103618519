"""Verifies a copy: reads both stores again and compares digests, conversation by conversation."""

import asyncio
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from imqtt.errors import ImqttError
from imqtt.model import Marks
from imqtt.stores.base import Record
from imqtt.stores.copy.source import (
    FIRST_EVENTS,
    LANES,
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

DIGEST_SIZE = 16

_encode = msgspec.msgpack.Encoder(enc_hook=int).encode  # ids and a driver's own integers


class Copied(NamedTuple):
    """The rows in both stores. `added`: events that this run appended. `digest` covers all rows."""

    conversations: int
    events: int
    members: int
    marks: int
    devices: int
    added: int
    digest: str


class CopyDiffers(ImqttError):
    """The target differs from the source. `seq`: of the event that differs, or 0."""

    code = "copy_differs"

    def __init__(self, what: str, conversation: str = "", seq: int = 0) -> None:
        super().__init__(what)
        self.conversation = conversation
        self.seq = seq


async def verify(source: Source, target: Source, tell: Tell, *, live: bool) -> Copied:
    """Raises `CopyDiffers` at the first difference, in order of conversations.

    If the source is `live`, it may have more than the target.
    """
    whole = blake2b(digest_size=DIGEST_SIZE)
    copied = Copied(0, 0, 0, 0, 0, 0, "")
    async for names in both(pages(source), pages(target), str):
        page = [name for name, here, there in names if _is_in_target(name, here, there, live)]
        logs = await _compare_logs(source, target, page, live)
        members = await _compare_members(source, target, page, live)
        marks = await _compare_marks(source, target, page, live)
        for name in page:
            whole.update(_encode((name, *logs[name], members.get(name, []), _plain(marks.get(name, [])))))
        copied = copied._replace(
            conversations=copied.conversations + len(page),
            events=copied.events + sum(count for count, _ in logs.values()),
            members=copied.members + sum(map(len, members.values())),
            marks=copied.marks + sum(map(len, marks.values())),
        )
        tell(Progress("verifying", copied.conversations, copied.events))
    devices = 0
    async for rows in both(device_pages(source), device_pages(target), device_of):
        for device, in_source, in_target in rows:
            # During a live copy a device may register again, as each `Hello` does, or be removed. The target
            # may have it as before; a device that was removed is pruned there later.
            if not live and in_source != in_target:
                raise CopyDiffers(f"device {device} differs between the stores")
            if in_target is not None:
                devices += 1
                row = (*device, in_target.format, in_target.platform, in_target.max_packet, in_target.seen)
                whole.update(_encode(row))
    return copied._replace(devices=devices, digest=whole.hexdigest())


def _is_in_target(name: str, in_source: str | None, in_target: str | None, live: bool) -> bool:
    """False if the conversation began after a live copy. Raises `CopyDiffers`."""
    if in_source is None:
        raise CopyDiffers(f"the target has {name}, but the source does not", name)
    if in_target is None and not live:
        raise CopyDiffers(f"the source has {name}, but the target does not", name)
    return in_target is not None


async def _compare_logs(
    source: Source, target: Source, names: Sequence[str], live: bool
) -> dict[str, tuple[int, bytes]]:
    """The number of events of each log in the target, and their digest."""
    in_target = await retry(target.heads, names)
    in_source = await retry(source.heads, names)
    digests: dict[str, tuple[bytes, bytes]] = {}
    waiting = iter(names)

    async def compare() -> None:
        left, right = Reading(source), Reading(target)
        for name in waiting:
            end = seq_of(in_target, name)
            digests[name] = await asyncio.gather(_digest(left, name, end), _digest(right, name, end))

    await side_by_side(compare() for _ in range(LANES))
    logs: dict[str, tuple[int, bytes]] = {}
    for name in names:
        count, (of_source, of_target) = seq_of(in_target, name), digests[name]
        if of_source != of_target:
            seq = await _first_difference(source, target, name)
            raise CopyDiffers(f"event {seq} of {name} differs between the stores", name, seq)
        if count > seq_of(in_source, name) or (not live and count < seq_of(in_source, name)):
            seq = min(count, seq_of(in_source, name)) + 1
            raise CopyDiffers(f"event {seq} of {name} is only in one of the stores", name, seq)
        logs[name] = count, of_target
    return logs


async def _digest(reading: Reading, conversation: str, end: int) -> bytes:
    digest = blake2b(digest_size=DIGEST_SIZE)
    seq = 0
    while seq < end:
        records = await reading.after(conversation, seq)
        if not records:
            break
        for record in records:
            if record.event.seq <= end:
                digest.update(_row(record))
        seq = records[-1].event.seq
    return digest.digest()


def _row(record: Record) -> bytes:
    """All columns of an event, encoded unambiguously."""
    event = record.event
    return _encode(
        (
            event.seq, event.id, event.sender, event.device, event.client_msg_id, event.kind,
            event.client_time,
            record.digest, record.body, record.register,
        )
    )  # fmt: skip


async def _first_difference(source: Source, target: Source, conversation: str) -> int:
    seq = 0
    while True:
        in_source = await source.records_after(conversation, seq, FIRST_EVENTS)
        in_target = await target.records_after(conversation, seq, FIRST_EVENTS)
        for of_source, of_target in zip(in_source, in_target, strict=False):
            if _row(of_source) != _row(of_target):
                return min(of_source.event.seq, of_target.event.seq)
        if len(in_source) != len(in_target) or not in_source:
            return seq + min(len(in_source), len(in_target)) + 1
        seq = in_source[-1].event.seq


async def _compare_members(
    source: Source, target: Source, names: Sequence[str], live: bool
) -> dict[str, list[str]]:
    in_target = await retry(target.members, names)
    in_source = await retry(source.members, names)
    for name in names:
        of_source, of_target = set(in_source.get(name, ())), set(in_target.get(name, ()))
        if not of_target <= of_source or (not live and of_target != of_source):
            user = min(of_source ^ of_target)
            raise CopyDiffers(f"{user} is a member of {name} only in one of the stores", name)
    return in_target


async def _compare_marks(
    source: Source, target: Source, names: Sequence[str], live: bool
) -> dict[str, list[Marks]]:
    in_target = await retry(target.marks, names)
    in_source = await retry(source.marks, names)
    for name in names:
        of_source = {user: seqs for user, *seqs in _plain(in_source.get(name, ()))}
        of_target = {user: seqs for user, *seqs in _plain(in_target.get(name, ()))}
        for user in sorted(of_source.keys() | of_target.keys()):
            here, there = of_source.get(user, [0, 0]), of_target.get(user, [0, 0])
            # Marks only grow, so those of a live source may be ahead.
            if there != here and not (live and there[0] <= here[0] and there[1] <= here[1]):
                raise CopyDiffers(f"the marks of {user} in {name} differ between the stores", name)
    return in_target


def _plain(marks: Iterable[Marks]) -> list[tuple[str, int, int]]:
    return [(mark.user, mark.delivered, mark.read) for mark in marks]
