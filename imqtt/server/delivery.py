"""Deliver: a committed batch becomes packets to devices, and work beside the batches."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from msgspec.structs import replace

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS
from imqtt.core.conversations import Members
from imqtt.core.overlays import overlaid, registers_of
from imqtt.core.sequencing import Append, Decision, Known, Refuse
from imqtt.errors import Busy, ImqttError, StoreUnreachable, Unavailable
from imqtt.model import Accepted, Device, Event, Hello, Id, Position, ReadCommand, Registration, Status
from imqtt.protocol import Format
from imqtt.server.batch import Batch, Forward, Rejection, Request
from imqtt.server.counters import Counters
from imqtt.server.devices import Devices, Registered
from imqtt.server.fanout import Fanout
from imqtt.server.presence import Presences
from imqtt.server.publisher import FAILURE, Publish
from imqtt.server.reads import Reads
from imqtt.server.rejections import refusal, rejection, throttled
from imqtt.server.signals import Signalled
from imqtt.state.base import State
from imqtt.stores.base import LogStore

REREAD = 50  # events read together when stored events are told again: they mostly stand side by side


@dataclass(frozen=True, slots=True)
class Outcome:
    """A batch's effect on the store."""

    members: Members
    registered: Registered
    decisions: Sequence[Decision]
    signalled: Signalled


class Audience(NamedTuple):
    """The devices of a batch's users, as they are registered after its commit."""

    lists: Mapping[str, tuple[Registration, ...]]
    spoke: Mapping[Device, Registration]

    def of(self, users: Sequence[str]) -> Iterable[Registration]:
        if len(users) == 2:
            return self.lists[users[0]] + self.lists[users[1]]
        return [registration for user in users for registration in self.lists[user]]

    def one(self, device: Device, format: Format) -> Registration:
        """A device of the batch. One that is not registered is answered in this format."""
        if (spoke := self.spoke.get(device)) is not None:
            return spoke
        registered = (one for one in self.lists[device.user] if one.device == device)
        return next(registered, Registration(device, format.value))


@dataclass(eq=False, repr=False)
class Delivery:
    """Publishes a batch's frames, and starts its reads."""

    store: LogStore
    state: State
    devices: Devices
    presences: Presences
    reads: Reads
    publish: Publish
    counters: Counters
    max_packet: int
    tasks: asyncio.TaskGroup  # awaits the work that a batch begins

    async def deliver(
        self, batch: Batch, outcome: Outcome, answered: Container[int], revoked: Collection[Device] = ()
    ) -> asyncio.Future[Any]:
        """Publishes a batch's frames. The result is done when the batch may be acknowledged.

        `answered` has the receipts of reads that are answered already. A `Hello` of a `revoked` device would
        make it present again, so it is answered and not heard.
        """
        members, notices = outcome.members, outcome.signalled.notices
        answers = await self._with_events(outcome.decisions)
        conversations = {event.conversation for _, event in answers if event is not None}
        conversations.update(notice.frame.conversation for notice in notices)
        users = {user for conversation in conversations for user in members.of(conversation)}
        users.update(device.user for device in batch.spoke)
        users.update(rejection.device.user for rejection in batch.rejections)
        stored = [decision.incoming.key for decision, _ in answers if isinstance(decision, Append)]
        # The devices are read after the commit: a device that registers later finds the events by `Sync`.
        lists = await self.devices.of(users, await self.state.finish(stored, users))
        audience = Audience(lists, outcome.registered.current)
        fanout = Fanout(self.max_packet, self.counters)
        reads, rejections = self._admit(batch, outcome.registered, answered)
        rejections += self._answer(fanout, audience, batch, members, answers)
        rejections += outcome.signalled.rejections
        for notice, but, but_user in notices:
            told = [user for user in members.of(notice.conversation) if user != but_user]
            fanout.add(notice, audience.of(told), but)
        for device, frame, format in throttled([*batch.rejections, *rejections], self.counters):
            fanout.add(frame, (audience.one(device, format),))
        begun: list[asyncio.Future[Any]] = [self.publish(fanout.packets())]
        if batch.forwards:
            begun.append(self.tasks.create_task(self._forward(batch.forwards), name="forward"))
        unheard = outcome.registered.refused.keys() | set(revoked)
        status = [
            (device, command)
            for device, command, *_ in batch.requests
            if isinstance(command, Hello | Status) and device not in unheard
        ]
        heard = self.presences.hear(batch.spoke, status)
        serving = self._serve(reads, outcome.registered.current, heard)
        if heard is None:
            await serving
        else:
            begun.append(self.tasks.create_task(serving, name="reads-after-presence"))
        return begun[0] if len(begun) == 1 else asyncio.gather(*begun)

    def _answer(
        self,
        fanout: Fanout,
        audience: Audience,
        batch: Batch,
        members: Members,
        answers: Sequence[tuple[Decision, Event | None]],
    ) -> list[Rejection]:
        """Adds `Accepted` to the senders and events to all others. Returns the rejections."""
        rejections: list[Rejection] = []
        for decision, event in answers:
            sender, command = decision.incoming.sender, decision.incoming.command
            if isinstance(decision, Refuse):
                rejections.append(refusal(batch, sender, command, decision.error))
                continue
            at: Event | Position
            if isinstance(decision, Known):
                self.counters.known += 1
                at, previous = decision.position, Id(0)
            else:
                at, previous = decision.event, decision.previous
            accepted = Accepted(
                command.conversation, command.client_msg_id, at.seq, at.id, at.id.time, previous
            )
            fanout.add(accepted, (audience.one(sender, batch.spoke[sender].format),))
            if event is not None:
                users = members.of(event.conversation)
                fanout.add(event, audience.of(users), sender)
                if event.seq == 1 and len(users) == 2:
                    self.presences.acquaint(*users)
        return rejections

    async def answer_reads(
        self, batch: Batch, claim: Callable[[Sequence[Request[ReadCommand]]], Sequence[Request[ReadCommand]]]
    ) -> None:
        """Answers the reads of registered devices, for which nothing has to be written first.

        For the others see `Registered`. `claim` takes reads just before they are answered, and returns those
        that nothing has answered meanwhile. Raises `Unavailable` if the registrations cannot be read.
        """
        known = await self.devices.known(
            {read.device: batch.spoke[read.device] for read in batch.of(ReadCommand)}
        )
        claimed = claim([read for read in batch.of(ReadCommand) if read.device in known])
        hellos = [(read.device, read.command) for read in claimed if isinstance(read.command, Hello)]
        # The commands may wait for long, but the devices are there.
        await self._serve(claimed, known, self.presences.hear(batch.spoke, hellos))

    async def _serve(
        self,
        reads: Sequence[Request[ReadCommand]],
        registrations: Mapping[Device, Registration],
        heard: Future[None] | None,
    ) -> None:
        """Submits reads once the presence of their devices is noted; see `Presences.for_newcomer`."""
        if heard is not None:
            await heard
        for device, command, *_ in reads:
            self.reads.submit(registrations[device], command)

    def _admit(
        self, batch: Batch, registered: Registered, answered: Container[int]
    ) -> tuple[list[Request[ReadCommand]], list[Rejection]]:
        """The reads to serve, and the rejections of the others."""
        admitted: list[Request[ReadCommand]] = []
        rejections: list[Rejection] = []
        for read in batch.of(ReadCommand):
            if read.receipt in answered:
                continue
            error: ImqttError | None = registered.refused.get(read.device)
            if error is None and len(admitted) >= self.reads.room:
                error = Busy("too many reads are waiting; ask again later", retry_after=5_000)
            if error is None:
                admitted.append(read)
            else:
                rejections.append(refusal(batch, read.device, read.command, error))
        return admitted, rejections

    async def _with_events(self, decisions: Sequence[Decision]) -> list[tuple[Decision, Event | None]]:
        """Each decision with the event to publish for it; None: there is none.

        Stored events that an earlier owner may not have published are read from the store.
        """
        answers: list[tuple[Decision, Event | None]] = []
        read: dict[tuple[str, int], Event] = {}
        for decision in decisions:
            event: Event | None = None
            if isinstance(decision, Append):
                event = replace(decision.event, previous=decision.previous)
            elif isinstance(decision, Known) and (decision.incoming.again or decision.untold):
                place = (decision.incoming.command.conversation, decision.position.seq)
                if place not in read:
                    read |= await self._read_from(*place)
                if place not in read:
                    raise StoreUnreachable("an event that was found is not visible yet")
                event = read[place]
            answers.append((decision, event))
        return answers

    async def _read_from(self, conversation: str, seq: int) -> dict[tuple[str, int], Event]:
        """The event at this place and some that follow it, each naming the one before it."""
        read: dict[tuple[str, int], Event] = {}
        previous = Id(0)
        found = await self.store.events_after(conversation, max(seq - 2, 0), REREAD)
        registers = await self.store.registers(registers_of(found))
        for event in found:
            if event.seq >= seq:
                shown, _ = overlaid(event, registers)
                read[conversation, event.seq] = replace(shown, previous=previous)
            previous = event.id
        return read

    async def _forward(self, forwards: Sequence[Forward]) -> None:
        """Returns when the broker has taken the commands, or their senders' rejections.

        Senders get a retryable rejection if the broker refuses the publish, or if it has lost the partition's
        session and no worker has held it since: waiting for the session would hold up all partitions.
        """
        self.counters.passed_on += len(forwards)
        codes = await self.publish([packet for _, packet in forwards])
        error = Unavailable("no server could be given this command", retry_after=1_000)
        await self.reject(
            rejection(device, packet.payload, error)
            for (device, packet), code in zip(forwards, codes, strict=True)
            if code == NO_MATCHING_SUBSCRIBERS or code >= FAILURE
        )

    def reject(self, rejections: Iterable[Rejection]) -> asyncio.Future[Any]:
        """Publishes rejections in the commands' own formats: their senders need not be registered."""
        fanout = Fanout(self.max_packet, self.counters)
        for device, frame, format in throttled(list(rejections), self.counters):
            fanout.add(frame, (Registration(device, format.value),))
        return self.publish(fanout.packets())
