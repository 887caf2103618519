"""Messages into the log: decided, appended in one group commit, decided again where the store knew better."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from random import random

from imqtt.core.backoff import backoff
from imqtt.core.conversations import members_of
from imqtt.core.sequencing import Append, Decision, Incoming, Known, Refuse, decide
from imqtt.core.snowflake import Snowflake
from imqtt.core.view import View
from imqtt.errors import ClockWrong, Invalid, StoreUnreachable, Unavailable
from imqtt.model import Device, Id, Key, Position, Stored
from imqtt.problems import explain
from imqtt.server.counters import Counters
from imqtt.server.head_cache import HeadCache
from imqtt.server.problems import Problems
from imqtt.state.base import State
from imqtt.stores.base import AppendConflict, OutcomeUnknown, Record, RecordRefused, Store

log = logging.getLogger(__name__)


class Committer:
    """Commits the messages of some partitions, one batch at a time.

    Nothing rests on being the only one: where a rival appended first, the store's indexes refuse, and the
    batch is decided again from what the store holds then.
    """

    def __init__(
        self,
        *,
        store: Store,
        state: State,
        snowflakes: Sequence[Snowflake],
        heads: HeadCache,
        counters: Counters,
        problems: Problems,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._state = state
        self._snowflakes = snowflakes  # by partition
        self._heads = heads
        self._counters = counters
        self._problems = problems
        self._clock = clock

    async def commit(self, messages: Sequence[Incoming]) -> list[Decision]:
        """One decision per message, in order, each carried out: what is `Append` or `Known` is durable.

        Waits for as long as the outcome of an append is unknown. A store that says that it can take
        nothing refuses the messages with that error. Raises `StoreUnreachable` where what is stored cannot
        be read.
        """
        settled: list[Decision] = []
        if not messages:
            return settled
        try:
            tried = await self._settle(messages, settled)
        except StoreUnreachable:
            raise  # whoever has the batch waits and brings it again: what is settled will be known then
        except Unavailable as error:
            self._problems.storing.start(explain(error), "messages")
            settled += [Refuse(error)] * (len(messages) - len(settled))
            return settled
        return _told_or_not(messages, settled, tried)

    async def remember(self, messages: Sequence[Incoming], decisions: Sequence[Decision]) -> None:
        """Notes in the state what `commit` has stored: duplicates of it are looked up from now on."""
        await self._state.mark_seen(
            [
                message.key
                for message, decision in zip(messages, decisions, strict=True)
                if isinstance(decision, Append)
            ]
        )

    async def _settle(self, messages: Sequence[Incoming], settled: list[Decision]) -> set[Key]:
        """Adds one decision after another to `settled`, each carried out.

        Returns the keys of what it tried to append and had to decide anew.
        """
        tried: set[Key] = set()
        keys = [message.key for message in messages]
        wanted = Counter(message.sender for message in messages)
        # Together, for one round trip. A duplicate takes a token as well, and is answered without one.
        maybe, tokens = await asyncio.gather(self._state.seen(keys), self._state.take(wanted, self._clock()))
        stored = await self._store.find(maybe) if maybe else {}
        at_most = len(messages)
        conflicts = 0  # in a row, with nothing stored between
        looked_up = set(stored)
        while pending := messages[len(settled) :]:
            decisions = await self._decide(pending, stored, tokens.copy())
            # Whoever is refused for now is not refused what is stored: the state may have forgotten that.
            doubtful = [
                message.key
                for message, it in zip(pending, decisions, strict=True)
                if isinstance(it, Refuse) and it.error.retryable and message.key not in looked_up
            ]
            if doubtful:
                looked_up.update(doubtful)
                if found := await self._store.find(doubtful):
                    stored |= found
                    continue
            places = [place for place, it in enumerate(decisions) if isinstance(it, Append)]
            appends = [it for it in decisions if isinstance(it, Append)][:at_most]
            records = [_record(pending[place], it) for place, it in zip(places, appends, strict=False)]
            try:
                committed = await self._append(appends, records)
            except RecordRefused as error:
                if len(records) > 1:
                    at_most = len(records) // 2
                    continue
                log.warning("the store refuses a message: %s", error)
                refusal = Refuse(Invalid(f"the store cannot hold this message: {error}"))
                settled += [*decisions[: places[0]], refusal]
                at_most = len(messages)
                continue
            except Unavailable as error:
                # What is stored already is answered, though the store takes nothing more.
                if unknown := [message.key for message in pending if message.key not in looked_up]:
                    looked_up.update(unknown)
                    stored |= await self._store.find(unknown)
                    continue
                self._problems.storing.start(explain(error), "messages")
                # A duplicate of what was to be appended in this very batch is not stored either.
                settled += [
                    it if isinstance(it, Refuse) or message.key in stored else Refuse(error)
                    for message, it in zip(pending, decisions, strict=True)
                ]
                return tried
            # Whatever stands before the first append that did not commit rests on what did.
            end = places[committed] if committed < len(places) else len(pending)
            settled += decisions[:end]
            if committed < len(records):
                self._counters.conflicts += 1
                tried.update(record.key for record in records[committed:])
                conflicts = 0 if committed else conflicts + 1
                if conflicts > 1:  # a rival is at work, or what was met is not to be seen yet
                    await asyncio.sleep(backoff(conflicts - 1, random(), base=0.01, cap=1.0))
                stored = await self._reread(pending)
        return tried

    def forget(self) -> None:
        """A partition may have had another owner: heads are read anew."""
        self._heads.forget()

    async def _append(self, appends: Sequence[Append], records: Sequence[Record]) -> int:
        """How many of the records, from the first on, are stored. Raises `RecordRefused`, `Unavailable`.

        `appends` are the decisions that the records carry out.
        """
        if not records:
            return 0
        members = [row for append in appends for row in append.effects.members]
        attempt = 0
        while True:
            try:
                if members:  # a user's `Sync` may look at too many conversations, never at too few
                    await self._store.put_members(members)
                committed = await self._append_once(records, again=attempt > 0)
                break
            except (OutcomeUnknown, Unavailable) as error:
                # Nothing new is decided before it is known whether these very records are stored. A first
                # append that is refused outright has stored nothing.
                if (
                    attempt == 0
                    and isinstance(error, Unavailable)
                    and not isinstance(error, StoreUnreachable)
                ):
                    raise
                attempt += 1
                self._counters.commits_retried += 1
                self._problems.store_failed("messages", error)
                log.debug("append of %d events, try %d: %s", len(records), attempt, error)
                await asyncio.sleep(backoff(attempt, random()))
        if attempt:
            self._problems.store.end("messages")
        self._problems.storing.end_all()
        self._counters.stored += committed
        self._heads.put({it.event.conversation: it.event.position for it in records[:committed]})
        return committed

    async def _append_once(self, records: Sequence[Record], *, again: bool) -> int:
        try:
            await self._store.append(records)
        except AppendConflict as conflict:
            return await self._own_prefix(records) if again else conflict.stored
        return len(records)

    async def _own_prefix(self, records: Sequence[Record]) -> int:
        """After an unknown outcome: how many of these records, under these ids, are what is stored."""
        stored = await self._store.find([record.key for record in records])
        for count, record in enumerate(records):
            found = stored.get(record.key)
            if found is None or found.position != record.event.position:
                return count
        return len(records)

    async def _decide(
        self, messages: Sequence[Incoming], stored: dict[Key, Stored], tokens: dict[Device, int]
    ) -> list[Decision]:
        heads = await self._load({message.command.conversation for message in messages})
        now = self._clock()
        latest = Id(0)

        def admit(device: Device) -> bool:
            left = tokens.get(device, 0)
            tokens[device] = left - 1
            return left > 0

        def draw(partition: int, after: int) -> Id:
            nonlocal latest
            try:
                drawn = self._snowflakes[partition].draw(now, after)
            except ClockWrong as error:
                self._problems.clock.note(error.reason)
                raise
            if drawn > latest:  # noqa: PLR1730 - max() takes twice as long
                latest = drawn
            return drawn

        decisions = decide(messages, View(heads, stored, members_of), draw, admit)
        if latest and (ahead := latest.time - now) > self._snowflakes[0].tolerance:
            self._problems.clock.note(
                f"the clock is {ahead // 1_000} s behind the last events of some conversations, which keep "
                "that date until it has passed: is the clock wrong, or was one?"
            )
        return decisions

    async def _load(self, conversations: set[str]) -> dict[str, Position]:
        heads: dict[str, Position] = {}
        missing: list[str] = []
        for conversation in conversations:
            if (head := self._heads.get(conversation)) is not None:
                heads[conversation] = head
            else:
                missing.append(conversation)
        if missing:
            found = await self._store.heads(missing)
            self._heads.put(found)
            heads.update(found)
        return heads

    async def _reread(self, messages: Sequence[Incoming]) -> dict[Key, Stored]:
        """After a conflict: both keys are read, what is stored under them and where the logs end."""
        self._heads.forget({message.command.conversation for message in messages})
        return await self._store.find({message.key for message in messages})


def _told_or_not(messages: Sequence[Incoming], decisions: list[Decision], tried: set[Key]) -> list[Decision]:
    """Marks what this very call has stored without knowing, and found when it decided anew.

    An append whose outcome is unknown may go on in the store after that was looked at: its rows are met
    later, under ids that were given up.
    """
    if not tried:
        return decisions
    return [
        Known(it.position, untold=True) if isinstance(it, Known) and message.key in tried else it
        for message, it in zip(messages, decisions, strict=True)
    ]


def _record(incoming: Incoming, append: Append) -> Record:
    return Record(append.event, incoming.body, incoming.digest, incoming.change.register)
