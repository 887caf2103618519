"""Packets to devices, each in the device's own format."""

from imqtt.model import Device, Marks, Registration
from imqtt.protocol import decode_frames
from imqtt.server.counters import Counters
from imqtt.server.fanout import Fanout

PHONE, LAPTOP = Device("alice", "phone"), Device("bob", "laptop")
MARKS = Marks("d:alice:bob", "bob", 2, 1)


def test_a_device_that_changes_its_format_in_mid_batch_does_not_affect_the_packets_of_others() -> None:
    fanout = Fanout(1_000, Counters())
    fanout.add(MARKS, [Registration(PHONE, "protobuf")])
    fanout.add(MARKS, [Registration(PHONE, "json"), Registration(LAPTOP, "json")])
    first, second = fanout.packets()
    assert first.payload[:1] != b"{"
    assert list(decode_frames(first.payload)) == [MARKS, MARKS]
    assert second.payload[:1] == b"{"
    assert list(decode_frames(second.payload)) == [MARKS]
