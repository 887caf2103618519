"""What becomes of a batch of messages: appended at the next seq, known already, or refused.

The decision reads nothing itself. It takes the heads of the conversations and what is stored under the
messages' keys; where those turn out to be stale the store's indexes refuse the append, and the caller
decides again with what it then reads.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from imqtt.core.conversations import check_member
from imqtt.errors import Conflict, ImqttError, RateLimited
from imqtt.model import Device, Event, Id, Key, Position, Send, Stored, to_json_type

DIGEST_SIZE = 16
EMPTY = Position(0, Id(0))

_encode = msgspec.json.Encoder(enc_hook=to_json_type).encode


class Message(NamedTuple):
    """A `Send` as it came in: from whom, with its content as canonical JSON and the digest of that."""

    sender: Device
    send: Send
    key: Key
    body: bytes
    digest: bytes
    partition: int = 0


class Append(NamedTuple):
    """Store it as this event. `previous` is the id of the one before it, 0 where there is none.

    It stands beside the event because it is told and never stored: what a store gives back is what it was
    given, and needs no such word, since it stands behind the event before it.
    """

    event: Event
    previous: Id


class Known(NamedTuple):
    """It is stored at `position` already, or is about to be, earlier in the same batch.

    `untold`: it was stored by an attempt that did not know, so nobody has been told of it.
    """

    position: Position
    untold: bool = False


class Refuse(NamedTuple):
    """Tell its sender why not."""

    error: ImqttError


Decision = Append | Known | Refuse


def receive(sender: Device, send: Send, partition: int = 0) -> Message:
    """Encodes the content once, for the digest and for the store."""
    body = _encode(send.content)
    key = Key(send.conversation, sender.user, send.client_msg_id)
    return Message(sender, send, key, body, blake2b(body, digest_size=DIGEST_SIZE).digest(), partition)


def decide(
    messages: Sequence[Message],
    heads: Mapping[str, Position],
    stored: Mapping[Key, Stored],
    draw: Callable[[int, int], Id],
    admit: Callable[[Device], bool],
) -> list[Decision]:
    """One decision per message, in order.

    `heads` has each conversation's newest position (absent: empty), `stored` the position and digest of
    keys known to be stored, `draw` gives a partition's next id, greater than the given one, `admit` takes a
    token of the device's rate. Duplicates are found before permission and rate are asked: a message that
    was accepted stays accepted.
    """
    newest: dict[str, Position] = {}
    seen: dict[Key, Stored] = {}
    decisions: list[Decision] = []
    for message in messages:
        key = message.key
        known = stored.get(key) or seen.get(key)
        if known is not None:
            decisions.append(_again(message, known))
            continue
        conversation = message.send.conversation
        try:
            check_member(conversation, message.sender.user)
            if not admit(message.sender):
                raise RateLimited("more messages a second than this device may send", retry_after=1_000)
            head = newest.get(conversation) or heads.get(conversation, EMPTY)
            event = _event(message, Position(head.seq + 1, draw(message.partition, head.id)))
        except ImqttError as error:
            decisions.append(Refuse(error))
            continue
        newest[conversation] = position = event.position
        seen[key] = Stored(position, message.digest)
        decisions.append(Append(event, head.id))
    return decisions


def _again(message: Message, known: Stored) -> Decision:
    position, digest = known
    if digest != message.digest:
        return Refuse(
            Conflict(f"this client_msg_id was used for other content, at seq {position.seq}; draw a new one")
        )
    return Known(position)


def _event(message: Message, position: Position) -> Event:
    send, sender = message.send, message.sender
    return Event(
        conversation=send.conversation,
        seq=position.seq,
        id=position.id,
        time=position.id.time,
        sender=sender.user,
        device=sender.device,
        client_msg_id=send.client_msg_id,
        content=send.content,
        client_time=send.client_time,
    )
