"""The answers to `Hello`, `Sync` and `History`: heads and events, as many as fit one packet."""

from collections.abc import Sequence

import msgspec

from imqtt.core.overlays import Registers, overlaid, registers_of
from imqtt.core.view import EMPTY
from imqtt.model import Cursor, Event, Head, Hello, History, Id, Marks, Page, Position, Slice, Sync
from imqtt.protocol import Format, packer
from imqtt.server.fanout import withhold
from imqtt.server.memberships import members_of
from imqtt.stores.base import Store

PAGE_EVENTS = 100
PAGE_HEADS = 100
# A slow link should carry a page in a second or two: Debian's libwebsockets sends 45 kB/s. A larger page
# takes longer than clients wait for an answer, and they would ask for it again while it arrives.
PAGE_BYTES = 65_536
HEADS_SHARE = 0.75  # of a page, for heads; the rest is for events, so that every page also moves a cursor
PAGE_OVERHEAD = 200  # bytes of a page's own fields, in JSON
SLICE_OVERHEAD = 100  # and of a slice's, besides the conversation's id
HEAD_OVERHEAD = 120
MARKS_OVERHEAD = 100
ID_BYTES = 131  # of a conversation's id at most
BARE_HEAD = HEAD_OVERHEAD + ID_BYTES  # a head without `marks` and `latest`


class Room:
    """The room that is left in one page. `size`: bytes of the largest packet that the device takes.

    A page is filled up to `PAGE_BYTES`. Only its first event may exceed that, up to the packet's size, so
    that every event fits into some page.
    """

    def __init__(self, format: Format, size: int) -> None:
        self._format = format
        self._pack = packer(format)
        self._size = size
        self._whole = size - PAGE_OVERHEAD - SLICE_OVERHEAD - BARE_HEAD - ID_BYTES
        self._packet = size - PAGE_OVERHEAD
        self._bytes = min(self._packet, PAGE_BYTES)
        self._heads_end = round(self._bytes * (1 - HEADS_SHARE))
        self._events = PAGE_EVENTS

    def emptied(self) -> "Room":
        return Room(self._format, self._size)

    def take(self, size: int, *, is_first: bool = False) -> bool:
        """Takes bytes, if they are there. The page's first event may take the rest of the packet."""
        if size > (self._packet if is_first else self._bytes):
            return False
        self._packet -= size
        self._bytes -= size
        return True

    def event(self, event: Event, *, counted: bool = True) -> Event | None:
        """The packed event, without its content if no page could hold it; None when this page is full."""
        if counted and self._events == 0:
            return None
        packed, size = self._pack(event)
        size += 1
        if size > self._whole:
            packed, size = self._pack(withhold(event, size))
            size += 1
        if not self.take(size, is_first=counted and self._events == PAGE_EVENTS):
            return None
        self._events -= counted
        return packed

    @property
    def full_of_heads(self) -> bool:
        return self._bytes < self._heads_end

    @property
    def events(self) -> int:
        """How many more events fit at most."""
        return self._events if self._bytes > 0 else 0


class Pages:
    """Reads the store for one device at a time. Nothing here waits for a partition's batches."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def hello(self, user: str, command: Hello, room: Room) -> Page:
        """The newest heads, and events for the cursors; without cursors, those of the newest conversation."""
        cursors = await _own(user, command.cursors)
        heads, more_heads = await self._heads(user, 0, cursors, room)
        if not command.cursors and heads:
            latest = await self._latest_slice(heads[0].conversation, room)
            return Page(command.ref, tuple(heads), more_heads, () if latest is None else (latest,))
        slices, more = await self._slices(cursors, room)
        return Page(command.ref, tuple(heads), more_heads, tuple(slices), more)

    async def sync(self, user: str, command: Sync, room: Room) -> Page:
        """Events for the cursors, and heads if they are asked for."""
        cursors = await _own(user, command.cursors)
        heads: list[Head] = []
        more_heads = Id(0)
        if command.heads:
            heads, more_heads = await self._heads(user, command.heads_before, cursors, room)
        slices, more = await self._slices(cursors, room)
        if more and not slices and heads:
            # In a small packet, heads may leave no room for the next event. A device that asks for heads each
            # time would never get it, so here the events come first, and one head at least.
            room = room.emptied()
            room.take(BARE_HEAD)
            slices, more = await self._slices(cursors, room)
            heads, more_heads = await self._heads(user, command.heads_before, cursors, room)
        return Page(command.ref, tuple(heads), more_heads, tuple(slices), more)

    async def history(self, command: History, room: Room) -> Page:
        room.take(SLICE_OVERHEAD + len(command.conversation))
        limit = min(command.limit or PAGE_EVENTS, PAGE_EVENTS)
        part = await self._before(command.conversation, command.before, limit, room)
        older = bool(part.events) and not part.missing
        return Page(command.ref, slices=(msgspec.structs.replace(part, history=True, more=older),))

    async def _heads(
        self, user: str, before: int, cursors: Sequence[Cursor], room: Room
    ) -> tuple[list[Head], Id]:
        """Heads, newest first, and the id to go on before (0: no more)."""
        known = {cursor.conversation for cursor in cursors}
        found = await self._store.heads_of(user, before, PAGE_HEADS + 1)
        page = found[:PAGE_HEADS]
        marks = await self._store.marks([head.conversation for head in page])
        heads: list[Head] = []
        for head in page:
            if heads and room.full_of_heads:
                break
            latest: Sequence[Event] = ()
            if head.conversation not in known:
                # One after the other: a device that logs in takes one of the store's readers and not all.
                latest = await self._store.events_after(head.conversation, head.seq - 1, 1)
            full = _fit_head(head, tuple(marks.get(head.conversation, ())), latest, room)
            if full is None and heads:
                break
            heads.append(full or head)
        more = len(heads) < len(found)
        return heads, heads[-1].id if more else Id(0)

    async def _slices(self, cursors: Sequence[Cursor], room: Room) -> tuple[list[Slice], bool]:
        """Slices for those cursors that are behind, in the order given, and whether there is more."""
        heads, others = await self._look_up(cursors)
        if others:
            await self._store.barrier()  # reads that lag must not make a device begin anew
            heads, others = await self._look_up(cursors)
        slices: list[Slice] = []
        for cursor in cursors:
            head = heads.get(cursor.conversation)
            if cursor.conversation in others:
                part = await self._latest_slice(cursor.conversation, room)
                if part is None or (head is not None and not part.events):
                    return slices, True
                slices.append(msgspec.structs.replace(part, restart=True))
            elif head is not None and cursor.seq < head.seq:
                if not room.events or not room.take(SLICE_OVERHEAD + len(cursor.conversation)):
                    return slices, True
                found, registers = await self._store.events_with_registers(
                    cursor.conversation, cursor.seq, room.events
                )
                events, beyond = _fit(found, registers, room)
                more = not events or found[len(events) - 1].seq < head.seq
                if events:
                    slices.append(Slice(cursor.conversation, tuple(events), more, registers=beyond))
                if more:
                    return slices, True
        return slices, False

    async def _look_up(self, cursors: Sequence[Cursor]) -> tuple[dict[str, Position], set[str]]:
        """The heads, and which conversations' logs are others than the device knows.

        Those were restored from a backup. (Raft's log matching check.)
        """
        found = await self._store.heads_and_ids([(cursor.conversation, cursor.seq) for cursor in cursors])
        others: set[str] = set()
        for cursor in cursors:
            head, held = found.get((cursor.conversation, cursor.seq), (EMPTY, 0))
            moved = cursor.seq and cursor.id and held != cursor.id
            if moved or cursor.seq > head.seq:
                others.add(cursor.conversation)
        return {conversation: head for (conversation, _), (head, _) in found.items()}, others

    async def _latest_slice(self, conversation: str, room: Room) -> Slice | None:
        """The latest events of a conversation that the device begins with; None when the page is full."""
        if not room.events or not room.take(SLICE_OVERHEAD + len(conversation)):
            return None
        return await self._before(conversation, 0, room.events, room)

    async def _before(self, conversation: str, seq: int, limit: int, room: Room) -> Slice:
        found = await self._store.events_before(conversation, seq, limit)
        registers = await self._store.registers(registers_of(found)) if found else {}
        found.reverse()
        events, beyond = _fit(found, registers, room)
        begins = not found or (bool(events) and found[len(events) - 1].seq == 1)
        events.reverse()
        return Slice(conversation, tuple(events), missing="start" if begins else "", registers=beyond)


async def _own(user: str, cursors: Sequence[Cursor]) -> list[Cursor]:
    """The cursors of conversations that the user is in; the others are passed over."""
    members = await members_of(cursor.conversation for cursor in cursors)
    return [cursor for cursor in cursors if members.include(cursor.conversation, user)]


def _fit_head(head: Head, marks: tuple[Marks, ...], latest: Sequence[Event], room: Room) -> Head | None:
    """The head with its marks and latest event; None when the page is full."""
    size = HEAD_OVERHEAD + len(head.conversation)
    size += sum(MARKS_OVERHEAD + len(head.conversation) + len(member.user) for member in marks)
    if not room.take(size):
        return None
    fitted = [room.event(event, counted=False) for event in latest]
    if None in fitted:
        return None
    return msgspec.structs.replace(head, latest=fitted[0] if fitted else None, marks=marks)


def _fit(found: Sequence[Event], registers: Registers, room: Room) -> tuple[list[Event], tuple[Event, ...]]:
    """As many of the events, from the first on, as fit, and the later events that change them."""
    packed: list[Event] = []
    changes: list[Event] = []
    for event in found:
        shown, changed_by = overlaid(event, registers) if registers else (event, [])
        fitted = room.event(shown)
        if fitted is None or (
            changed_by and any(room.event(change, counted=False) is None for change in changed_by)
        ):
            break
        packed.append(fitted)
        changes += changed_by
    newest = max(found[0].seq, found[len(packed) - 1].seq) if packed else 0
    later = {change.seq: change for change in changes if change.seq > newest}
    return packed, tuple(later[seq] for seq in sorted(later))
