"""What the owner of partitions does with a batch: commit it, and tell the devices concerned."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS
from imqtt.broker.link import Packet
from imqtt.core.conversations import members_of
from imqtt.core.marks import merge
from imqtt.core.sequencing import Append, Decision, Incoming, Known, Refuse
from imqtt.errors import Failed, ImqttError, StoreUnreachable, Unavailable
from imqtt.model import Accepted, AnyFrame, Device, Event, Hello, Id, Marks, PeerTyping
from imqtt.problems import explain
from imqtt.protocol import CommandInfo, Format, format_of, identify
from imqtt.server.committer import Committer
from imqtt.server.control import Control
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices, Registered
from imqtt.server.fanout import Fanout
from imqtt.server.intake import Batch, Delivery, Intake, Read, rejected
from imqtt.server.presence import Presences, is_last_word
from imqtt.server.problems import Problems
from imqtt.server.publisher import FAILURE, Publish
from imqtt.server.reads import Reads
from imqtt.server.retry import until_known
from imqtt.stores.base import Registration, Store

REJECTIONS_PER_BATCH = 50  # to one device
REREAD = 50  # events read together when known messages are told again: they mostly stand side by side

Refused = TypeVar("Refused")


@dataclass(frozen=True, slots=True)
class Told:
    """A frame, for every device of these users but one."""

    frame: AnyFrame
    users: tuple[str, ...]
    but: Device | None


class Audience:
    """The devices that a batch concerns, as they are registered after its commit."""

    def __init__(
        self,
        lists: Mapping[str, tuple[Registration, ...]],
        spoke: Mapping[Device, Registration],
        formats: Mapping[Device, Format],
    ) -> None:
        self._lists = lists
        self._spoke = spoke
        self._formats = formats

    def of(self, users: Sequence[str]) -> Iterable[Registration]:
        """Every device of these users."""
        if len(users) == 2:
            return self._lists[users[0]] + self._lists[users[1]]
        return [registration for user in users for registration in self._lists[user]]

    def one(self, device: Device) -> Registration:
        """A device of the batch. One that is not registered is answered in the format that it used."""
        if (spoke := self._spoke.get(device)) is not None:
            return spoke
        for registration in self._lists[device.user]:
            if registration.device == device:
                return registration
        return Registration(device, self._formats[device].value)


class Owner:
    """Carries out batches of the partitions that it owns, one after the other.

    When `carry_out` returns, every message of the batch that is to be stored is durable, and what it
    returns is done when the broker has taken the frames for all devices. Only then may the batch be
    PUBACKed: a crash anywhere before means that it comes again, and is answered from the store.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        committer: Committer,
        store: Store,
        devices: Devices,
        presences: Presences,
        reads: Reads,
        control: Control,
        publish: Publish,
        counters: Counters,
        problems: Problems,
        max_packet: int,
    ) -> None:
        self._intake = intake
        self._committer = committer
        self._store = store
        self._devices = devices
        self._presences = presences
        self._reads = reads
        self._control = control
        self._publish = publish
        self._counters = counters
        self._problems = problems
        self._max_packet = max_packet

    def take_over(self) -> None:
        """A session is this process's own from now on; whatever it remembers of the log may be old."""
        self._committer.forget()

    async def carry_out(
        self, deliveries: Sequence[Delivery], answered: Container[int] = ()
    ) -> Awaitable[object]:
        """Commits a batch and publishes its frames. See the class for what is durable when.

        `answered` has the receipts of reads that `answer_reads` has answered already.
        """
        self._counters.received += len(deliveries)
        batch = self._intake.sort(deliveries)
        registered, decisions, marks = await self._commit(batch)
        if batch.orders:
            revoked = await self._control.carry_out(batch.orders)
            # A `Hello` of theirs in this very batch would make them present again.
            batch.status = [it for it in batch.status if it[0] not in revoked]
        events = await self._events(batch, decisions)
        told = [*marks, *_typing(batch)]
        users = {user for it in told for user in it.users} | {device.user for device in batch.formats}
        users.update(message.sender.user for message in batch.messages)
        for event in events:
            if event is not None:
                users.update(members_of(event.conversation))
        # The devices are read after the commit: a device that registers later finds the events by `Sync`.
        lists, _, _ = await asyncio.gather(  # one round trip to the state
            self._devices.of(users),
            self._committer.remember(batch.messages, decisions),
            self._presences.refresh(_speaking(batch)),
        )
        audience = Audience(lists, registered.current, batch.formats)
        fanout = Fanout(self._max_packet, self._counters)
        for message, decision, event in zip(batch.messages, decisions, events, strict=True):
            self._answer(fanout, audience, batch, message, decision)
            if event is not None:
                members = members_of(event.conversation)
                fanout.add(event, audience.of(members), message.sender)
                if event.seq == 1 and len(members) == 2:
                    self._presences.acquaint(*members)
        for it in told:
            fanout.add(it.frame, audience.of(it.users), it.but)
        self._refuse_reads(batch, registered.refused)
        self._reject(fanout, audience, batch)
        published: Awaitable[object] = self._publish(fanout.messages())
        if batch.copies:
            published = asyncio.gather(published, self._publish(batch.copies))
        await self._presences.heard(batch.status)
        for device, command, receipt in batch.reads:  # they are served beside the batches
            if receipt not in answered:
                self._reads.submit(registered.current[device], command)
        if batch.pass_on:
            return asyncio.create_task(self._pass_on(batch.pass_on, published), name="pass-on")
        return published

    async def answer_reads(
        self, deliveries: Sequence[Delivery], claim: Callable[[Sequence[Read]], Sequence[Read]]
    ) -> None:
        """Answers those reads among the deliveries for which nothing has to be written first.

        Those are the reads of devices that are registered already: what is stored later will be published to
        them. For the others see `Registered`. `claim` takes reads just before they are answered and returns
        those that nothing has answered meanwhile. Raises `Unavailable` if the registrations cannot be read.
        """
        batch = self._intake.sort(deliveries)
        known = await self._devices.known({it.device: batch.spoke[it.device] for it in batch.reads})
        claimed = claim([it for it in batch.reads if it.device in known])
        for device, command, _ in claimed:
            self._reads.submit(known[device], command)
        hellos = [(it.device, it.command) for it in claimed if isinstance(it.command, Hello)]
        await self._presences.refresh(
            batch.spoke
        )  # the commands may wait for long, but the devices are there
        await self._presences.heard(hellos)

    async def _pass_on(self, commands: Sequence[tuple[Device, Packet]], published: Awaitable[object]) -> None:
        """Returns when the broker has them, and whatever else the batch has `published`.

        A partition may have no session: no worker has held it since this broker began with nothing. Senders
        get a retryable rejection if there is no session or the broker refuses the publish. Waiting for the
        session would hold up all partitions.
        """
        self._counters.passed_on += len(commands)
        codes = await self._publish([packet for _, packet in commands])
        failed = [
            (device, packet.payload)
            for (device, packet), code in zip(commands, codes, strict=True)
            if code == NO_MATCHING_SUBSCRIBERS or code >= FAILURE
        ]
        fanout = Fanout(self._max_packet, self._counters)
        error = Unavailable("no server could be given this command", retry_after=1_000)
        for device, payload, omitted in self._bounded(failed):
            self._refuse(fanout, device, payload, error, omitted)
        await self._publish(fanout.messages())
        await published

    def give_up(self, delivery: Delivery) -> Awaitable[object]:
        """Tells the sender of a command that carrying it out raised what no code expected."""
        topic, payload = delivery.received[:2]
        fanout = Fanout(self._max_packet, self._counters)
        device = self._intake.device(topic)
        if device is not None:
            error = Failed("the server failed on this command; its log says why", retry_after=60_000)
            self._refuse(fanout, device, payload, error)
        return self._publish(fanout.messages())

    def _refuse(
        self, fanout: Fanout, device: Device, payload: bytes, error: ImqttError, omitted: int = 0
    ) -> None:
        """Answers in the command's own format: its sender need not be registered."""
        self._counters.reject(error.code, 1 + omitted)
        sender = Registration(device, format_of(payload).value)
        fanout.add(replace(rejected(error, identify(payload)), omitted=omitted), (sender,))

    def _bounded(self, refused: Sequence[tuple[Device, Refused]]) -> Iterable[tuple[Device, Refused, int]]:
        """Each device's first refusals, so that a flood is not answered with another one.

        The last of them comes with the number of refusals that are left out.
        """
        left = Counter(device for device, _ in refused)
        answered: Counter[Device] = Counter()
        for device, what in refused:
            answered[device] += 1
            left[device] -= 1
            if answered[device] < REJECTIONS_PER_BATCH:
                yield device, what, 0
            elif answered[device] == REJECTIONS_PER_BATCH:
                self._counters.unanswered += left[device]
                yield device, what, left[device]

    async def _commit(self, batch: Batch) -> tuple[Registered, list[Decision], list[Told]]:
        """Registers, commits and marks side by side, so that they share round trips and commits."""
        registered, decisions, marks = await asyncio.gather(
            self._devices.register(batch.spoke),
            self._committer.commit(batch.messages),
            self._raise_marks(batch),
            return_exceptions=True,  # nothing is left behind when something else fails
        )
        if isinstance(registered, BaseException):
            raise registered
        if isinstance(decisions, BaseException):
            raise decisions
        if isinstance(marks, BaseException):
            raise marks
        return registered, decisions, marks

    def _answer(
        self, fanout: Fanout, audience: Audience, batch: Batch, message: Incoming, decision: Decision
    ) -> None:
        """`Accepted` for what is stored; what is refused joins the batch's refusals."""
        command = message.command
        if isinstance(decision, Refuse):
            named = CommandInfo(command.name, command.conversation, command.client_msg_id)
            batch.refused.append((message.sender, rejected(decision.error, named)))
            return
        if isinstance(decision, Known):
            self._counters.known += 1
            at, previous = decision.position, Id(0)
        else:
            at, previous = decision.event.position, decision.previous
        accepted = Accepted(command.conversation, command.client_msg_id, at.seq, at.id, at.id.time, previous)
        fanout.add(accepted, (audience.one(message.sender),))

    def _reject(self, fanout: Fanout, audience: Audience, batch: Batch) -> None:
        for _, frame in batch.refused:
            self._counters.reject(frame.code)
        for device, frame, omitted in self._bounded(batch.refused):
            fanout.add(replace(frame, omitted=omitted) if omitted else frame, (audience.one(device),))

    def _refuse_reads(self, batch: Batch, refused: Mapping[Device, ImqttError]) -> None:
        """Whoever is not registered is given no page: see `Registered`."""
        if not refused:
            return
        for device, command, _ in batch.reads:
            if (error := refused.get(device)) is not None:
                batch.refused.append((device, rejected(error, CommandInfo(command.name, ref=command.ref))))
        batch.reads = [it for it in batch.reads if it.device not in refused]
        batch.status = [it for it in batch.status if it[0] not in refused]  # nothing of it is carried out

    async def _events(self, batch: Batch, decisions: Sequence[Decision]) -> list[Event | None]:
        """The event that each message is told as to everybody but its sender; None: to nobody.

        Of messages that were known already, those are told again which an earlier owner may have stored
        and told nobody of; they are read from the store.
        """
        events: list[Event | None] = []
        read: dict[tuple[str, int], Event] = {}
        for message, decision in zip(batch.messages, decisions, strict=True):
            if isinstance(decision, Append):
                events.append(replace(decision.event, previous=decision.previous))
            elif isinstance(decision, Known) and (message.again or decision.untold):
                place = (message.command.conversation, decision.position.seq)
                if place not in read:
                    await self._read_again(place, read)
                events.append(read[place])
            else:
                events.append(None)
        return events

    async def _read_again(self, place: tuple[str, int], read: dict[tuple[str, int], Event]) -> None:
        """Adds the event at (conversation, seq) and some that follow it, each naming the one before it."""
        conversation, seq = place
        previous = Id(0)
        for event in await self._store.events_after(conversation, max(seq - 2, 0), REREAD):
            if event.seq >= seq:
                read[conversation, event.seq] = replace(event, previous=previous)
            previous = event.id
        if place not in read:
            raise StoreUnreachable("an event that was found is not to be seen yet")

    async def _raise_marks(self, batch: Batch) -> list[Told]:
        """Marks raised in the store, and frames for those that grew."""
        if not batch.marks:
            return []
        markers: dict[tuple[str, str], set[Device]] = {}
        for device, mark in batch.marks:
            markers.setdefault((mark.conversation, device.user), set()).add(device)
        asked = [
            Marks(mark.conversation, device.user, mark.delivered, mark.read) for device, mark in batch.marks
        ]
        try:
            # The heads as they were before this batch: nobody can have received what it brings.
            heads = await self._store.heads({mark.conversation for mark in asked})
            merged = merge(asked, heads)
            grown, tries = await until_known(
                "raising marks", lambda: self._store.raise_marks(merged), self._problems
            )
            if grown:
                self._problems.storing.end_all()
            # An earlier owner, or an earlier try, may have raised these and told nobody.
            again = batch.marked_again if tries == 1 else {(it.conversation, it.user) for it in merged}
            untold = again - {(marks.conversation, marks.user) for marks in grown}
            if untold:
                found = await self._store.marks({conversation for conversation, _ in untold})
                known = [marks for members in found.values() for marks in members]
                grown += [marks for marks in known if (marks.conversation, marks.user) in untold]
        except StoreUnreachable:
            raise  # the batch is brought again
        except Unavailable as error:
            self._problems.storing.start(explain(error), "marks")
            batch.refused += [
                (device, rejected(error, CommandInfo("mark", mark.conversation)))
                for device, mark in batch.marks
            ]
            return []
        told: list[Told] = []
        for marks in grown:
            devices = markers[marks.conversation, marks.user]
            but = devices.pop() if len(devices) == 1 else None  # of several, none knows what all have marked
            told.append(Told(marks, members_of(marks.conversation), but))
        return told


def _speaking(batch: Batch) -> Collection[Device]:
    """The devices to refresh: those that spoke, except where a `Hello` or `Status` sets the presence."""
    if not batch.status:
        return batch.spoke
    said = {device for device, command in batch.status if not is_last_word(command)}
    return [device for device in batch.spoke if device not in said]


def _typing(batch: Batch) -> Iterable[Told]:
    for (conversation, user), (device, typing) in batch.typing.items():
        others = tuple(member for member in members_of(conversation) if member != user)
        yield Told(PeerTyping(conversation, user, typing.typing), others, device)
