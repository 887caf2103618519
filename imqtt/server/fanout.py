"""Frames on their way to devices, gathered so that each device gets one packet for a whole batch."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from imqtt.broker.link import Packet
from imqtt.fields import MIN_PACKET
from imqtt.model import AnyFrame, Content, Device, Event, Registration
from imqtt.protocol import Format, encode_frame, join
from imqtt.protocol.topics import down
from imqtt.server.counters import Counters

PACKET_OVERHEAD = 160  # bytes: MQTT's header, the longest topic, and what joins the frames


@dataclass(slots=True)
class _Bundle:
    """One device's frames, in the order in which they were added."""

    format: Format
    room: int
    packets: list[list[bytes]] = field(default_factory=lambda: [[]])
    size: int = 0  # bytes of the last packet's frames, and what joins them
    durable: bool = False  # whether one of them is: QoS 1


class Fanout:
    """Encodes each frame once per format, and packs each device's frames into as few packets as fit."""

    def __init__(self, max_packet: int, counters: Counters) -> None:
        self._max_packet = max_packet
        self._counters = counters
        self._bundles: dict[Device, _Bundle] = {}

    def add(self, frame: AnyFrame, registrations: Iterable[Registration], but: Device | None = None) -> None:
        encoded: dict[Format, bytes] = {}
        for registration in registrations:
            device = registration.device
            if device == but:
                continue
            bundle = self._bundles.get(device)
            if bundle is None:
                bundle = self._bundles[device] = _Bundle(
                    Format.of(registration.format), packet_room(registration, self._max_packet)
                )
            # The format that the packet was begun in: the device may have changed it since.
            data = encoded.get(bundle.format)
            if data is None:
                data = encoded[bundle.format] = encode_frame(frame, bundle.format)
            if len(data) > bundle.room and isinstance(frame, Event):
                data = encode_frame(withhold(frame, len(data)), bundle.format)
            size = len(data) + 1
            if bundle.size and bundle.size + size > bundle.room:
                bundle.packets.append([])
                bundle.size = 0
            bundle.packets[-1].append(data)
            bundle.size += size
            bundle.durable = bundle.durable or frame.durable

    def packets(self) -> list[Packet]:
        """The packets, each device's in order."""
        packets: list[Packet] = []
        for device, bundle in self._bundles.items():
            topic, qos = down(device), 1 if bundle.durable else 0
            for frames in bundle.packets:
                self._counters.frames += len(frames)
                packets.append(Packet(topic, join(frames, bundle.format), qos))
        self._counters.packets += len(packets)
        return packets


def packet_room(registration: Registration, max_packet: int) -> int:
    """Bytes that frames may take in one packet to this device.

    At least the smallest `max_packet` that a `Hello` may have: another version may have registered less.
    """
    return max(min(registration.max_packet or max_packet, max_packet), MIN_PACKET) - PACKET_OVERHEAD


def withhold(event: Event, size: int) -> Event:
    """The event without its content, for a device whose packets cannot hold it."""
    return replace(event, content=Content(), withheld=size)
