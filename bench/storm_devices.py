"""The devices of a storm: one process with a bare socket for each.

Reads a plan (JSON) from stdin and prints one line of JSON per storm. Its packets are encoded before a storm
begins, since it shares the cores with the broker and the server.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import mqtt5
import uvloop

from bench.processes import cpu_seconds
from bench.traffic import Broken
from imqtt.broker import packets
from imqtt.core.partitions import home_of, partition_of
from imqtt.model import Cursor, Device, Hello, Id, Status
from imqtt.mosquitto.file_limits import raise_file_limit
from imqtt.protocol import Format, encode_command
from imqtt.protocol.generated import imqtt_pb2 as pb
from imqtt.protocol.topics import down, parse_username, up

# Connections that the broker has not answered yet. Mosquitto listens with a backlog of 100; TCP would repeat
# an attempt beyond that after a second, and the storm would measure that second.
OPENING = 64
WAIT_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # in which the users' peers are told that they are online
QUIET_SECONDS = 2.0  # between storms, in which they are told that they are offline
_PUBACK = b"\x40\x02"


class Storm:
    """What the devices of one storm have reached."""

    def __init__(self, count: int) -> None:
        self.opening = asyncio.Semaphore(OPENING)
        self.all_welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = count

    def welcomed(self) -> None:
        self._missing -= 1
        if not self._missing and not self.all_welcome.done():
            self.all_welcome.set_result(None)

    def fail(self, error: Broken) -> None:
        if not self.all_welcome.done():
            self.all_welcome.set_exception(error)


class Connection(asyncio.Protocol):
    """One device: CONNECT and SUBSCRIBE, then `Hello`, and a PUBACK for whatever arrives."""

    def __init__(self, storm: Storm, opening: bytes, hello: bytes) -> None:
        self._storm = storm
        self._opening = opening
        self._hello = hello
        self._cutter = packets.Cutter(None)
        self._welcomed = False
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._opening)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        buffer, cuts = self._cutter.cut(data)
        for cut in cuts:
            kind = cut[0] & 0xF0
            if kind == packets.CONNACK and packets.read_connack(buffer, cut).code == 0:
                self.accepted.set_result(None)
            elif kind == packets.SUBACK:
                self.transport.write(self._hello)
            elif kind == packets.PUBLISH:
                _, payload, packet_id, *_ = packets.read_publish(buffer, cut)
                if packet_id is not None:
                    self.transport.write(_PUBACK + packet_id.to_bytes(2, "big"))
                if not self._welcomed and _has_welcome(payload):
                    self._welcomed = True
                    self._storm.welcomed()
            elif kind != packets.PUBACK:
                self._fail(f"the broker refused a connection, or sent a packet of type {kind >> 4}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the broker closed a connection: {exc}")

    def _fail(self, reason: str) -> None:
        error = Broken(reason)
        self._storm.fail(error)
        if not self.accepted.done():
            self.accepted.set_exception(error)


def _has_welcome(payload: bytes) -> bool:
    return any(frame.HasField("welcome") for frame in pb.Frames.FromString(payload).frames)


def packets_of(device: Device, plan: dict[str, Any], nonce: str) -> tuple[bytes, bytes]:
    """CONNECT with a will and SUBSCRIBE, and a PUBLISH of `Hello` with up-to-date cursors."""
    name = str(device)
    home = up(device, partition_of(home_of(device.user), plan["partitions"]))
    gone = encode_command(Status("offline", nonce), Format.PROTOBUF)
    cursors = tuple(
        Cursor(conversation, seq, Id(number)) for conversation, seq, number in plan["cursors"][name]
    )
    connect = mqtt5.ConnectPacket(
        name, username=name, password=plan["passwords"][name].encode(), clean_start=True, keep_alive=60,
        will=mqtt5.Will(home, payload=gone, qos=mqtt5.QoS.AT_LEAST_ONCE),
    )  # fmt: skip
    subscribe = mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(down(device), max_qos=mqtt5.QoS.AT_LEAST_ONCE)])
    hello = encode_command(Hello(nonce, cursors=cursors), Format.PROTOBUF)
    publish = mqtt5.PublishPacket(home, hello, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=2)
    return connect.write() + subscribe.write(), publish.write()


async def storm(plan: dict[str, Any], number: int) -> dict[str, float]:
    """Connects all devices and disconnects them again."""
    devices = [cast("Device", parse_username(name)) for name in plan["cursors"]]
    prepared = [packets_of(device, plan, f"nonce-{number}") for device in devices]
    loop = asyncio.get_running_loop()
    reached = Storm(len(devices))
    before, start = _cpu(plan["pids"]), time.perf_counter()

    async def open_one(opening: bytes, hello: bytes) -> Connection:
        async with reached.opening:
            connection = Connection(reached, opening, hello)
            await loop.create_connection(lambda: connection, plan["host"], plan["port"])
            await connection.accepted
        return connection

    async with asyncio.timeout(WAIT_SECONDS):
        connections = await asyncio.gather(*(open_one(*packets) for packets in prepared))
        connected = time.perf_counter() - start
        await reached.all_welcome
    welcomed = time.perf_counter() - start
    load = _cpu(plan["pids"])["load"] - before["load"]
    await asyncio.sleep(SETTLE_SECONDS)
    used = {part: value - before[part] for part, value in _cpu(plan["pids"]).items()} | {"load": load}
    for connection in connections:
        assert connection.transport is not None
        connection.transport.abort()  # so that the broker publishes the will
    await asyncio.sleep(QUIET_SECONDS)
    cpu = {f"{part}_cpu_us": round(value / len(devices) * 1e6, 1) for part, value in used.items()}
    return {"connected_s": round(connected, 3), "welcomed_s": round(welcomed, 3), **cpu}


def _cpu(pids: dict[str, list[int]]) -> dict[str, float]:
    used = {part: sum(map(cpu_seconds, each)) for part, each in pids.items()}
    return used | {"load": time.process_time()}


async def run(plan: dict[str, Any], report: Callable[[dict[str, float]], None]) -> None:
    for number in range(plan["storms"]):
        report(await storm(plan, number))


def main() -> None:
    raise_file_limit()
    plan = json.loads(sys.stdin.read())
    try:
        uvloop.run(run(plan, lambda found: print(json.dumps(found), flush=True)))
    except (Broken, OSError) as error:
        sys.exit(f"the storm ended early: {error}")


if __name__ == "__main__":
    main()
