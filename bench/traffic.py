"""The packets of the load generator: messages through the server, or through the bare relay."""

import secrets
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Protocol
from zlib import crc32

from imqtt.core.partitions import home_of, partition_of
from imqtt.model import Content, Device, Hello, Send
from imqtt.protocol import Format, encode_command
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.topics import up

PAIRS = 20
DEVICES = 2 * PAIRS
DIGITS = 12  # of a message's number, which is its client_msg_id
STRIDE = 7_368_787  # a prime: the step between conversations that are used one after the other

_WORDS = "the broker carries what the store knows and a device that asks is told once and in order "


class Broken(Exception):
    """The server broke a guarantee, so the measurement is invalid."""


def text_of(size: int) -> str:
    """`size` characters of ASCII text."""
    return (_WORDS * (size // len(_WORDS) + 1))[:size]


def devices() -> list[Device]:
    """Devices 2n and 2n+1 are a pair."""
    return [Device(f"user{number:02}", "phone") for number in range(DEVICES)]


def conversation_of(number: int) -> str:
    """The conversation of device `number` and its partner."""
    first = number - number % 2
    return f"d:user{first:02}:user{first + 1:02}"


def users_of(conversations: int) -> int:
    """The number of users that write to this many conversations, each to equally many."""
    return PAIRS if conversations >= PAIRS else 1


def numbered_conversation(number: int, conversations: int) -> str:
    """One of many conversations, of a user that has a device and another that has none."""
    return f"d:peer{number:07}:user{number % users_of(conversations):02}"


@dataclass(slots=True)
class Arrived:
    """Numbers of messages: accepted (the sender has its answer) and delivered (to the other device)."""

    accepted: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)


class Traffic(Protocol):
    """The packets of one route. Message n is sent by device n % len(devices)."""

    devices: list[Device]

    def topic(self, number: int) -> str:
        """The topic to which a message is published."""

    def message(self, number: int) -> bytes:
        """The payload of a message."""

    def hello(self, device: int) -> tuple[str, bytes] | None:
        """Topic and payload of the device's first packet, if any."""

    def receive(self, device: int, payload: bytes) -> Arrived:
        """The messages in a packet to the device. Raises `Broken`."""

    def ready(self) -> bool:
        """Whether every device has been welcomed."""

    def finish(self) -> None:
        """Called when every message is answered. Raises `Broken` if messages are missing."""


class _Template:
    """A message's payload, encoded once with a placeholder to save CPU, which the load generator shares."""

    def __init__(self, conversation: str, text: str) -> None:
        placeholder = "x" * DIGITS
        payload = encode_command(Send(conversation, placeholder, Content(text)), Format.PROTOBUF)
        self.before, self.after = payload.split(placeholder.encode())

    def fill(self, number: int) -> bytes:
        return b"%b%012d%b" % (self.before, number, self.after)


class ThroughServer:
    """Messages that are ordered, stored and answered. Checks every seq that a device receives."""

    def __init__(self, partitions: int, size: int) -> None:
        self.devices = devices()
        self._partitions = partitions
        self._text = text_of(size)
        self._templates = [_Template(conversation_of(number), self._text) for number in range(DEVICES)]
        self._topics = [
            up(device, partition_of(conversation_of(number), partitions))
            for number, device in enumerate(self.devices)
        ]
        self._last = array("q", [0] * DEVICES)  # by device: every seq up to this one was received
        self._ahead: list[set[int]] = [set() for _ in range(DEVICES)]  # later seqs that were received
        self._numbers: list[dict[int, int]] = [{} for _ in range(PAIRS)]  # seq to number, until both have it
        self._welcomed = 0

    def topic(self, number: int) -> str:
        return self._topics[number % DEVICES]

    def message(self, number: int) -> bytes:
        return self._templates[number % DEVICES].fill(number)

    def hello(self, device: int) -> tuple[str, bytes]:
        sender = self.devices[device]
        partition = partition_of(home_of(sender.user), self._partitions)
        return up(sender, partition), encode_command(Hello(secrets.token_hex(8)), Format.PROTOBUF)

    def receive(self, device: int, payload: bytes) -> Arrived:
        arrived = Arrived()
        for frame in pb.Frames.FromString(payload).frames:
            kind = frame.WhichOneof("frame")
            if kind == "accepted":
                accepted = frame.accepted
                number = int(accepted.client_msg_id)
                self._at(device, accepted.seq, number)
                arrived.accepted.append(number)
            elif kind == "event":
                event = frame.event
                number = int(event.client_msg_id)
                if event.content.text != self._text:
                    raise Broken(f"message {number} arrived with another text")
                self._at(device, event.seq, number)
                arrived.delivered.append(number)
            elif kind == "rejected":
                rejected = frame.rejected
                raise Broken(f"the server rejected a message, {rejected.code}: {rejected.reason}")
            elif kind == "welcome":
                self._welcomed += 1
        return arrived

    def _at(self, device: int, seq: int, number: int) -> None:
        """The device has learned that message `number` is at `seq`.

        Answers and the other device's messages may interleave in any order, but without duplicates and, in
        the end, without gaps.
        """
        last, ahead = self._last[device], self._ahead[device]
        if seq <= last or seq in ahead:
            raise Broken(f"device {device} saw seq {seq} twice")
        if seq == last + 1:
            last = seq
            while last + 1 in ahead:
                last += 1
                ahead.remove(last)
            self._last[device] = last
        else:
            ahead.add(seq)
        numbers = self._numbers[device // 2]
        known = numbers.pop(seq, None)
        if known is None:
            numbers[seq] = number
        elif known != number:
            raise Broken(f"seq {seq} of pair {device // 2} is two messages: {known} and {number}")

    def ready(self) -> bool:
        return self._welcomed == len(self.devices)

    def finish(self) -> None:
        for pair in range(PAIRS):
            if self._numbers[pair] or self._ahead[2 * pair] or self._ahead[2 * pair + 1]:
                raise Broken(f"the devices of pair {pair} do not agree about their conversation")


class AcrossConversations(ThroughServer):
    """Each user writes to many other users in turn, in conversations that already have events.

    Devices 2n and 2n+1 belong to one user: a message is delivered to the sender's other device. The users
    that are written to have no devices. So a message makes two packets, however many conversations there are.
    """

    def __init__(self, partitions: int, size: int, conversations: int, events: int) -> None:
        super().__init__(partitions, size)
        users = users_of(conversations)
        self.devices = [
            Device(f"user{user:02}", name) for user in range(users) for name in ("phone", "tablet")
        ]
        self._conversations = conversations
        self._users = users
        self._before = events // conversations  # events of each conversation
        self._own = conversations // users  # conversations of each user
        if gcd(self._own, STRIDE) != 1:
            raise ValueError(f"{self._own} conversations of each user are a multiple of {STRIDE}")
        first = numbered_conversation(0, conversations)
        placeholder = "x" * DIGITS
        payload = encode_command(Send(first, placeholder, Content(self._text)), Format.PROTOBUF)
        self._start, rest = payload.split(first.encode())
        self._middle, self._end = rest.split(placeholder.encode())
        self._seqs: dict[int, int] = {}  # of messages of which one packet has arrived
        self._new: dict[int, tuple[int, int]] = {}  # by conversation: new events, and the greatest seq

    def _conversation(self, number: int) -> int:
        """Neighbours in the store's indexes are not used one after the other, so that caches miss."""
        index, device = divmod(number, len(self.devices))
        turn = 2 * index + device % 2
        return turn * STRIDE % self._own * self._users + device // 2

    def topic(self, number: int) -> str:
        name = numbered_conversation(self._conversation(number), self._conversations)
        return up(self.devices[number % len(self.devices)], crc32(name.encode()) % self._partitions)

    def message(self, number: int) -> bytes:
        name = numbered_conversation(self._conversation(number), self._conversations)
        return b"%b%b%b%012d%b" % (self._start, name.encode(), self._middle, number, self._end)

    def _at(self, device: int, seq: int, number: int) -> None:
        known = self._seqs.pop(number, None)
        if known is None:
            self._seqs[number] = seq
        elif known != seq:
            raise Broken(f"message {number} has seq {known} for one device and {seq} for the other")
        else:
            conversation = self._conversation(number)
            count, last = self._new.get(conversation, (0, self._before))
            self._new[conversation] = count + 1, max(last, seq)

    def finish(self) -> None:
        for conversation, (count, last) in self._new.items():
            if last != self._before + count:
                raise Broken(f"{count} messages to conversation {conversation} ended at seq {last}")


class ThroughRelay:
    """The same packets, relayed unchanged to the other device, and to the sender as its answer."""

    def __init__(self, partitions: int, size: int) -> None:
        self._server = ThroughServer(partitions, size)
        template = _Template(conversation_of(0), text_of(size))
        self._place = slice(len(template.before), len(template.before) + DIGITS)
        self._last = [[-1, -1] for _ in range(DEVICES)]  # by device: the last number from each of the pair
        self.devices = self._server.devices
        self.topic = self._server.topic
        self.message = self._server.message

    def hello(self, device: int) -> None:
        """The relay sends no greeting."""

    def receive(self, device: int, payload: bytes) -> Arrived:
        number = int(payload[self._place])
        last = self._last[device]
        if number <= last[number % 2]:
            raise Broken(f"device {device} got message {number} after {last[number % 2]}")
        last[number % 2] = number
        return Arrived([number], []) if number % DEVICES == device else Arrived([], [number])

    def ready(self) -> bool:
        return True

    def finish(self) -> None:
        """Lost messages have already been detected as unfinished ones."""


def traffic(plan: Mapping[str, Any]) -> Traffic:
    """By the plan's `through`: `server`, `relay` or `conversations`. `size`: bytes of text."""
    partitions, size = plan["partitions"], plan["size"]
    if plan["through"] == "conversations":
        return AcrossConversations(partitions, size, plan["conversations"], plan["events"])
    return ThroughServer(partitions, size) if plan["through"] == "server" else ThroughRelay(partitions, size)
