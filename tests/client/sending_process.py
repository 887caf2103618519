"""A device that sends numbers forever, in a process that a test kills.

python -m tests.client.sending_process BROKER PASSWORD STORE CONVERSATION
"""

import asyncio
import sys

from imqtt.client import Client


async def main(broker: str, password: str, store: str, conversation: str) -> None:
    async with Client(user="alice", device="phone", password=password, brokers=broker, store=store) as client:
        number = len(await client.history(conversation, limit=1_000_000)) + len(await client.outbox())
        while True:
            # Printed before and after it is in the outbox, so that the test can check for it.
            print("put", number, flush=True)
            await client.post(conversation, str(number), client_msg_id=f"n{number}")
            print("posted", number, flush=True)
            number += 1
            await asyncio.sleep(0.0005)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
