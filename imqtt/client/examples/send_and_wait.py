"""Sends one message and waits until it is stored, delivered and read.

Add its device first: `imqtt device add alice@phone` shows the password. Then:

python -m imqtt.client.examples.send_and_wait 127.0.0.1:1883 PASSWORD bob "Are you there?"
"""

import asyncio
import sys

from imqtt.client import Client
from imqtt.model import Marks


async def main(broker: str, password: str, to: str, text: str) -> None:
    async with Client(user="alice", device="phone", password=password, brokers=broker) as client:
        notices = client.notices()
        accepted = await client.send(client.direct(to), text)
        print(f"stored at {accepted.seq}", flush=True)
        async for notice in notices:
            if isinstance(notice, Marks) and (notice.conversation, notice.user) == (client.direct(to), to):
                if notice.read >= accepted.seq:
                    print("read", flush=True)
                    break
                if notice.delivered >= accepted.seq:
                    print("delivered", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python -m imqtt.client.examples.send_and_wait BROKER PASSWORD TO TEXT")
    asyncio.run(main(*sys.argv[1:]))
