"""The values that pass through the pipeline: received packets, and a batch of them sorted by the work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

import msgspec

from imqtt.broker.link import Link, Packet, Received
from imqtt.core.sequencing import Incoming
from imqtt.model import Command, Device, Hello, Rejected
from imqtt.protocol import Format
from imqtt.server.control import Order

C = TypeVar("C", bound=Command)
C_co = TypeVar("C_co", bound=Command, covariant=True)


class Inbound(msgspec.Struct, frozen=True):
    """A packet that a partition's session received, and the link that owes its PUBACK.

    `again`: an earlier owner may have received the packet, stored its event, and told nobody.
    """

    partition: int
    packet: Received
    link: Link
    again: bool


class Request(NamedTuple, Generic[C_co]):
    """A read or a signal. `receipt` identifies its packet, but is -1 at QoS 0; `again` as in `Inbound`."""

    device: Device
    command: C_co
    receipt: int
    again: bool


class Spoken(NamedTuple):
    """The format that a device last used, and its last `Hello` in the batch."""

    format: Format
    hello: Hello | None


class Forward(NamedTuple):
    """A misrouted command, as the packet that takes it to its partition."""

    device: Device
    packet: Packet


class Rejection(NamedTuple):
    """A rejected command. `format` is the command's own, for a device that is not registered."""

    device: Device
    frame: Rejected
    format: Format


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch sorted by the work that it causes, each part in order of receipt."""

    spoke: Mapping[Device, Spoken]
    commands: Sequence[Incoming]  # those that write events
    requests: Sequence[Request[Command]]  # reads and signals
    forwards: Sequence[Forward]
    orders: Sequence[Order]
    rejections: Sequence[Rejection]

    def of(self, kind: type[C]) -> list[Request[C]]:
        """The reads or signals of a class."""
        return [cast("Request[C]", one) for one in self.requests if isinstance(one.command, kind)]
