"""Rejections: the frame that tells a sender the error, and the throttle for many of them."""

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from imqtt.errors import ImqttError
from imqtt.model import Command, Device, Rejected
from imqtt.protocol import CommandInfo, format_of, identify
from imqtt.server.batch import Batch, Rejection
from imqtt.server.counters import Counters

REJECTIONS_PER_BATCH = 50  # to one device


def rejected(error: ImqttError, command: CommandInfo) -> Rejected:
    """The frame for the sender of a command."""
    return Rejected(
        code=error.code,
        reason=error.reason,
        retryable=error.retryable,
        command=command.type,
        conversation=command.conversation,
        client_msg_id=command.client_msg_id,
        ref=command.ref,
        retry_after=error.retry_after,
    )


def info_of(command: Command) -> CommandInfo:
    return CommandInfo(command.name, *(getattr(command, name, "") for name in CommandInfo._fields[1:]))


def rejection(device: Device, payload: bytes, error: ImqttError) -> Rejection:
    """The rejection of a command that may be malformed."""
    return Rejection(device, rejected(error, identify(payload)), format_of(payload))


def refusal(batch: Batch, device: Device, command: Command, error: ImqttError) -> Rejection:
    """The rejection of a command of the batch."""
    return Rejection(device, rejected(error, info_of(command)), batch.spoke[device].format)


def throttled(rejections: Sequence[Rejection], counters: Counters) -> Iterable[Rejection]:
    """Counts all, and yields the first ones of each device: a flood is not answered with another one.

    The last of a device's has the number of those left out.
    """
    total = Counter(rejection.device for rejection in rejections)
    sent: Counter[Device] = Counter()
    for rejection in rejections:
        device = rejection.device
        counters.reject(rejection.frame.code)
        sent[device] += 1
        if sent[device] < REJECTIONS_PER_BATCH:
            yield rejection
        elif sent[device] == REJECTIONS_PER_BATCH:
            omitted = total[device] - REJECTIONS_PER_BATCH
            counters.unanswered += omitted
            yield rejection._replace(frame=replace(rejection.frame, omitted=omitted))
