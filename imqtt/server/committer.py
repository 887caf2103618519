"""Load, decide, append: log commands become events of the log, in one group commit.

The load reads what a decision depends on, the decision is a pure function, and the append is a
compare-and-set on the head of each conversation. Where that meets another owner's append, everything that is
not stored yet is loaded and decided again.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import random

from msgspec.structs import replace

from imqtt.core.backoff import backoff
from imqtt.core.conversations import Members
from imqtt.core.sequencing import Append, Decision, Incoming, Known, Refuse, decide, duplicate, needs_of
from imqtt.core.snowflake import Snowflake
from imqtt.core.view import NOTHING, View
from imqtt.errors import ClockWrong, Conflict, Unavailable
from imqtt.model import Device, Id, Key, Position, Stored
from imqtt.problems import explain
from imqtt.server.counters import Counters
from imqtt.server.head_cache import HeadCache
from imqtt.server.problems import Problems
from imqtt.server.retry import until_known
from imqtt.state.base import Begun
from imqtt.stores.base import AppendConflict, OutcomeUnknown, Record, Store


@dataclass(eq=False, repr=False)
class Committer:
    """Commits the log commands of some partitions, one batch at a time.

    No correctness depends on being the only one that does: if a rival appended first, the store's indexes
    refuse the append.
    """

    store: Store
    snowflakes: Sequence[Snowflake]  # by partition
    heads: HeadCache
    counters: Counters
    problems: Problems
    clock: Callable[[], int]

    async def commit(self, commands: Sequence[Incoming], members: Members, begun: Begun) -> list[Decision]:
        """One decision per command, in order, each carried out: an `Append` or `Known` is durable.

        `begun` has the keys that may be stored, and the tokens of each device; a duplicate needs none.

        Waits for as long as the outcome of an append is unknown. If the store takes no writes, the commands
        are refused with its error. Raises `Unavailable` if the store cannot be read, and `RecordRefused` if
        it cannot hold one of the events. Either may be raised after a part is stored: the commands are to be
        committed again.
        """
        tokens = dict(begun.tokens)
        found = await self.store.find(begun.maybe) if begun.maybe else {}
        settled: list[Decision] = []
        attempted: set[Key] = set()  # keys of events that were to be appended and were decided again
        conflicts = 0  # in a row, with nothing stored between
        while pending := commands[len(settled) :]:
            decisions = await self._decide(pending, found, members, tokens)
            decisions = await self._look_up_refused(decisions)
            try:
                durable = await self._append(decisions)
            except Unavailable as error:
                self.problems.storing.start(explain(error), "messages")
                settled += await self._look_up_refused(_refused(decisions, found, error))
                break
            settled += decisions[:durable]
            if undone := decisions[durable:]:
                self.counters.conflicts += 1
                for made in decisions[:durable]:
                    tokens[made.incoming.sender] -= isinstance(made, Append)
                attempted.update(made.incoming.key for made in undone if isinstance(made, Append))
                progress = any(isinstance(decision, Append) for decision in decisions[:durable])
                conflicts = 0 if progress else conflicts + 1
                if conflicts > 1:  # a rival is at work, or its rows are not visible yet
                    await asyncio.sleep(backoff(conflicts - 1, random(), base=0.01, cap=1.0))
                found = await self._reread(pending)
        if not attempted:
            return settled
        # An append whose outcome was unknown may have gone on in the store after it was given up.
        return [
            replace(made, untold=True) if isinstance(made, Known) and made.incoming.key in attempted else made
            for made in settled
        ]

    def forget(self) -> None:
        """Another owner may have appended: heads are read anew."""
        self.heads.forget()

    async def _look_up_refused(self, decisions: list[Decision]) -> list[Decision]:
        """Commands that are refused are answered as duplicates if they are stored.

        The state does not know every stored key, since it may have lost some. A rule may refuse a command
        because of the command's own event: a message that it has recalled cannot be recalled again.
        """
        keys = [
            made.incoming.key
            for made in decisions
            if isinstance(made, Refuse) and not isinstance(made.error, Conflict)
        ]
        if not keys or not (stored := await self.store.find(keys)):
            return decisions
        return [
            duplicate(made.incoming, stored[made.incoming.key]) if made.incoming.key in stored else made
            for made in decisions
        ]

    async def _reread(self, commands: Sequence[Incoming]) -> dict[Key, Stored]:
        """After a conflict: the stored events of each key. Heads are read anew, too."""
        self.heads.forget({command.command.conversation for command in commands})
        return await self.store.find({command.key for command in commands})

    async def _decide(
        self,
        commands: Sequence[Incoming],
        found: Mapping[Key, Stored],
        members: Members,
        tokens: Mapping[Device, int],
    ) -> list[Decision]:
        view = await self._load(commands, found, members)
        left = dict(tokens)
        now = self.clock()
        latest = Id(0)

        def admit(device: Device) -> bool:
            tokens = left.get(device, 0)
            left[device] = tokens - 1
            return tokens > 0

        def draw(partition: int, after: int) -> Id:
            nonlocal latest
            try:
                drawn = self.snowflakes[partition].draw(now, after)
            except ClockWrong as error:
                self.problems.clock.note(error.reason)
                raise
            if drawn > latest:  # noqa: PLR1730 - max() takes twice as long
                latest = drawn
            return drawn

        decisions = decide(commands, view, draw, admit)
        if latest and (ahead := latest.time - now) > self.snowflakes[0].tolerance:
            self.problems.clock.note(
                f"the clock is {ahead // 1_000} s behind the last events of some conversations, which keep "
                "that date until it has passed: is the clock wrong, or was one?"
            )
        return decisions

    async def _load(
        self, commands: Sequence[Incoming], found: Mapping[Key, Stored], members: Members
    ) -> View:
        heads = await self._load_heads({command.command.conversation for command in commands})
        needs = [needs for command in commands if (needs := needs_of(command)) is not NOTHING]
        if not needs:
            return View(heads, found, members)
        events, registers = await asyncio.gather(
            self.store.events_at({place for need in needs for place in need.events}),
            self.store.registers({name for need in needs for name in need.registers}),
        )
        return View(heads, found, members, events, registers)

    async def _load_heads(self, conversations: set[str]) -> dict[str, Position]:
        cached = {conversation: self.heads.get(conversation) for conversation in conversations}
        heads = {conversation: head for conversation, head in cached.items() if head is not None}
        if missing := conversations - heads.keys():
            found = await self.store.heads(missing)
            self.heads.put(found)
            heads.update(found)
        return heads

    async def _append(self, decisions: Sequence[Decision]) -> int:
        """Carries decisions out. Returns how many of them, from the first on, are durable.

        Raises `Unavailable` or `RecordRefused` if nothing was stored.
        """
        appends = {place: made for place, made in enumerate(decisions) if isinstance(made, Append)}
        if not appends:
            return len(decisions)
        records = [
            Record(made.event, made.incoming.body, made.incoming.digest, made.incoming.change.register)
            for made in appends.values()
        ]
        members = [row for append in appends.values() for row in append.effects.members]

        async def write(attempt: int) -> int:
            # Nothing new is decided before it is known whether these very records are stored.
            try:
                if members:  # a user's `Sync` may look at too many conversations, never at too few
                    await self.store.put_members(members)
                return await self._append_once(records, again=attempt > 1)
            except Unavailable as error:
                if attempt == 1:
                    raise
                raise OutcomeUnknown(str(error)) from error

        stored, attempts = await until_known("messages", write, self.problems)
        self.problems.storing.end_all()
        self.counters.commits_retried += attempts - 1
        self.counters.stored += stored
        self.heads.put({record.event.conversation: record.event.position for record in records[:stored]})
        # Whatever precedes the first append that failed depends only on those that did not.
        return [*appends, len(decisions)][stored]

    async def _append_once(self, records: Sequence[Record], *, again: bool) -> int:
        try:
            await self.store.append(records)
        except AppendConflict as conflict:
            return await self._own_prefix(records) if again else conflict.stored
        return len(records)

    async def _own_prefix(self, records: Sequence[Record]) -> int:
        """After an unknown outcome: how many of these records are stored under these very ids."""
        stored = await self.store.find([record.key for record in records])
        for count, record in enumerate(records):
            found = stored.get(record.key)
            if found is None or found.position != record.event.position:
                return count
        return len(records)


def _refused(decisions: Sequence[Decision], found: Collection[Key], error: Unavailable) -> list[Decision]:
    """The decisions if none of these appends is stored.

    What was decided after an append in its conversation may depend on the append: a duplicate of its event, a
    second recall of the message. Keys that were `found` are stored.
    """
    changed: set[str] = set()
    refused: list[Decision] = []
    for decision in decisions:
        incoming = decision.incoming
        conversation = incoming.command.conversation
        if isinstance(decision, Append):
            changed.add(conversation)
        holds = isinstance(decision, Refuse) and conversation not in changed
        refused.append(decision if holds or incoming.key in found else Refuse(incoming, error))
    return refused
