"""What came in: whose it is, what it asks for, and whether it came to the right partition."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imqtt.broker.link import Link, Packet, Received
from imqtt.core.conversations import check_member
from imqtt.core.partitions import partition_of, route
from imqtt.core.sequencing import Incoming, receive
from imqtt.errors import ImqttError, Misrouted
from imqtt.model import AnyCommand, Device, Hello, History, LogCommand, Mark, Rejected, Status, Sync, Typing
from imqtt.protocol import Bounds, CommandInfo, Format, decode_command, format_of, identify
from imqtt.protocol.topics import parse_up, up
from imqtt.server import control
from imqtt.server.control import Order

PASSED_ON = ("imqtt-passed-on", "1")
TOPICS_CACHED = 50_000


class Delivery(NamedTuple):
    """A command as a partition's session received it, and the link that wants its ack.

    `again`: an earlier owner may have received it before, stored it, and told nobody.
    """

    partition: int
    received: Received
    link: Link
    again: bool


class Read(NamedTuple):
    """A command that only reads. `receipt` tells it from all others, but is -1 at QoS 0."""

    device: Device
    command: Hello | Sync | History
    receipt: int


@dataclass(slots=True)
class Batch:
    """One batch, sorted by what is to be done. Lists are in order of receipt."""

    spoke: dict[Device, tuple[Format, Hello | None]] = field(default_factory=dict)
    messages: list[Incoming] = field(default_factory=list)
    marks: list[tuple[Device, Mark]] = field(default_factory=list)
    marked_again: set[tuple[str, str]] = field(
        default_factory=set
    )  # (conversation, user) of redelivered marks
    typing: dict[tuple[str, str], tuple[Device, Typing]] = field(default_factory=dict)
    status: list[tuple[Device, Hello | Status]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    refused: list[tuple[Device, Rejected]] = field(default_factory=list)
    formats: dict[Device, Format] = field(default_factory=dict)  # of refused commands, for devices not known
    pass_on: list[tuple[Device, Packet]] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)  # of the operator's
    copies: list[Packet] = field(default_factory=list)  # of those orders, for the other partitions


class Intake:
    """Decodes and sorts what is received. Never raises for anything that a device can send."""

    def __init__(self, partitions: int, bounds: Bounds) -> None:
        self._partitions = partitions
        self._bounds = bounds
        self._devices: dict[str, Device | None] = {}

    def sort(self, deliveries: Sequence[Delivery]) -> Batch:
        """Sorts a batch by what is to be done."""
        batch = Batch()
        for delivery in deliveries:
            received = delivery.received
            device = self.device(received.topic)
            if device is None:  # an order, or a topic that names no valid device to answer
                if received.topic.startswith(control.TOPICS):
                    self._add_order(batch, delivery)
                continue
            try:
                command = decode_command(received.payload, self._bounds)
                partition = partition_of(route(command, device.user), self._partitions)
                if partition != delivery.partition:
                    self._pass_on(batch, device, partition, received)
                    continue
                self._add(batch, device, command, delivery)
            except ImqttError as error:
                batch.refused.append((device, rejected(error, identify(received.payload))))
                batch.formats.setdefault(device, format_of(received.payload))
                continue
            if isinstance(command, Status) and command.state == "offline":
                continue  # it may be a revoked device's last will, which must not register the device again
            hello = command if isinstance(command, Hello) else None
            if hello is None and (before := batch.spoke.get(device)) is not None:
                hello = before[1]
            batch.spoke[device] = (format_of(received.payload), hello)
        return batch

    def _add_order(self, batch: Batch, delivery: Delivery) -> None:
        order = control.parse(delivery.received.payload)
        if order is not None:
            batch.orders.append(order)
            batch.copies += control.copies(order, self._partitions)

    def _add(self, batch: Batch, device: Device, command: AnyCommand, delivery: Delivery) -> None:
        if isinstance(command, LogCommand):
            batch.messages.append(receive(device, command, delivery.partition, again=delivery.again))
        elif isinstance(command, Mark):
            check_member(command.conversation, device.user)
            batch.marks.append((device, command))
            if delivery.again:
                batch.marked_again.add((command.conversation, device.user))
        elif isinstance(command, Typing):
            check_member(command.conversation, device.user)
            batch.typing[command.conversation, device.user] = (device, command)
        elif isinstance(command, Status):
            batch.status.append((device, command))
        else:
            if isinstance(command, Hello):
                batch.status.append((device, command))
            elif isinstance(command, History):
                check_member(command.conversation, device.user)
            batch.reads.append(Read(device, command, delivery.received.receipt))

    def _pass_on(self, batch: Batch, device: Device, partition: int, received: Received) -> None:
        if PASSED_ON in received.properties:
            # Marked by the owner that passed it on, or by a device that claims so: either way not again.
            raise Misrouted("this is another conversation's partition; publish to up/0, or compute it")
        batch.pass_on.append((device, Packet(up(device, partition), received.payload, 1, (PASSED_ON,))))

    def device(self, topic: str) -> Device | None:
        """Who published to `topic`; None where its names are not ones that imqtt gives out."""
        try:
            return self._devices[topic]
        except KeyError:
            if len(self._devices) >= TOPICS_CACHED:
                self._devices.clear()
            device = self._devices[topic] = parse_up(topic)
            return device


def rejected(error: ImqttError, named: CommandInfo) -> Rejected:
    """The frame that tells a command's sender what was wrong with it."""
    return Rejected(
        code=error.code,
        reason=error.reason,
        retryable=error.retryable,
        command=named.type,
        conversation=named.conversation,
        client_msg_id=named.client_msg_id,
        ref=named.ref,
        retry_after=error.retry_after,
    )
