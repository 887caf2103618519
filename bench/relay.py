"""The bare relay: the capacity of the broker and one process without decoding, ordering or storing.

Like the server, it publishes each packet to its sender's and the other device's topic, and acks it when the
broker has acked both. It has one connection in and one out, which is faster than the server's eighteen.
"""

import asyncio
import json
import sys
from functools import partial
from typing import Any

import uvloop

from bench.traffic import DEVICES, devices
from imqtt.broker import Link, LinkSettings, Packet, Received, connect
from imqtt.protocol.topics import down

BATCH = 500
READY = "relay is ready"


async def relay(source: Link, out: Link, targets: dict[str, tuple[str, str]]) -> None:
    """Runs until the link ends."""
    while True:
        batch = await source.receive(BATCH)
        messages = []
        for received in batch:
            sender, _, _ = received.topic.rpartition("/up/")
            payload = received.payload
            messages += [Packet(topic, payload) for topic in targets[sender]]
        out.publish(messages).add_done_callback(partial(ack, source, batch))


def ack(source: Link, batch: list[Received], codes: asyncio.Future[list[int]]) -> None:
    if codes.cancelled() or codes.exception() is not None:
        return
    for received in batch:
        source.ack(received)


async def run(plan: dict[str, Any]) -> None:
    def settings(client_id: str) -> LinkSettings:
        return LinkSettings(
            plan["host"], plan["port"], client_id, username=plan["username"], password=plan["password"],
            session_expiry=3_600, receive_max=4 * BATCH,
        )  # fmt: skip

    each = devices()
    targets = {f"imqtt/{each[at]}": (down(each[at]), down(each[at ^ 1])) for at in range(DEVICES)}
    out = await connect(settings("relay-out"))
    source = await connect(settings("relay-in"))
    await source.subscribe("imqtt/+/up/+")
    print(READY, flush=True)
    await relay(source, out, targets)


def main() -> None:
    uvloop.run(run(json.loads(sys.stdin.read())))


if __name__ == "__main__":
    main()
