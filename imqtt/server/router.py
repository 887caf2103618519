"""Decode and route: a packet's sender, its command, and whether it reached the right partition."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from imqtt.broker.link import Packet, Received
from imqtt.core.conversations import Members
from imqtt.core.partitions import partition_of, route
from imqtt.core.sequencing import Incoming, receive
from imqtt.errors import ImqttError, Misrouted
from imqtt.model import Command, Device, Hello, LogCommand, Status
from imqtt.protocol import Bounds, decode_command, format_of
from imqtt.protocol.topics import parse_up, up
from imqtt.server import control
from imqtt.server.batch import Batch, Forward, Inbound, Rejection, Request, Spoken
from imqtt.server.rejections import refusal, rejection

FORWARDED = ("imqtt-passed-on", "1")
TOPICS_CACHED = 50_000


class Router:
    """Decodes packets and sorts them into a batch. Never raises for anything that a device can send."""

    def __init__(self, partitions: int, bounds: Bounds) -> None:
        self._partitions = partitions
        self._bounds = bounds
        # The device that publishes to a topic; None if it names no valid device.
        self.device = lru_cache(TOPICS_CACHED)(parse_up)

    def sort(self, inbounds: Sequence[Inbound]) -> Batch:
        spoke: dict[Device, Spoken] = {}
        commands: list[Incoming] = []
        requests: list[Request[Command]] = []
        forwards: list[Forward] = []
        orders: list[control.Order] = []
        rejections: list[Rejection] = []
        for inbound in inbounds:
            packet = inbound.packet
            device = self.device(packet.topic)
            if device is None:  # an operator's order, or a topic that names no device to answer
                order = control.parse(packet.payload) if packet.topic.startswith(control.TOPICS) else None
                orders += [] if order is None else [order]
                continue
            try:
                command = decode_command(packet.payload, self._bounds)
                target = partition_of(route(command, device.user), self._partitions)
                if target != inbound.partition:
                    forwards.append(_forward(device, target, packet))
                    continue
                if isinstance(command, LogCommand):
                    commands.append(receive(device, command, target, again=inbound.again))
                else:
                    requests.append(Request(device, command, packet.receipt, inbound.again))
                    if isinstance(command, Status) and command.state == "offline":
                        continue  # perhaps a revoked device's will, which must not register the device again
            except ImqttError as error:
                rejections.append(rejection(device, packet.payload, error))
                continue
            format, before = format_of(packet.payload), spoke.get(device)
            if isinstance(command, Hello):
                spoke[device] = Spoken(format, command)
            elif before is None or before.format is not format:
                spoke[device] = Spoken(format, None if before is None else before.hello)
        return Batch(spoke, commands, requests, forwards, orders, rejections)


def conversations_of(batch: Batch) -> set[str]:
    named = {incoming.command.conversation for incoming in batch.commands}
    named.update(getattr(request.command, "conversation", "") for request in batch.requests)
    return named - {""}


def of_members(batch: Batch, members: Members) -> Batch:
    """The batch without signals and reads of users outside the conversation that they name.

    Log commands are checked when they are decided, since a duplicate is answered before permission is asked.
    """
    kept: list[Request[Command]] = []
    refused: list[Rejection] = []
    for request in batch.requests:
        device, command = request.device, request.command
        try:
            if conversation := getattr(command, "conversation", ""):
                members.check(conversation, device.user)
        except ImqttError as error:
            refused.append(refusal(batch, device, command, error))
        else:
            kept.append(request)
    return replace(batch, requests=kept, rejections=[*batch.rejections, *refused]) if refused else batch


def _forward(device: Device, partition: int, packet: Received) -> Forward:
    if FORWARDED in packet.properties:
        # Marked by the owner that forwarded it, or by a device that claims so: either way not again.
        raise Misrouted("this is another conversation's partition; publish to up/0, or compute it")
    return Forward(device, Packet(up(device, partition), packet.payload, 1, (FORWARDED,)))
