"""A bot that answers every message. After a kill it resumes after the last message that it answered.

Add its device first: `imqtt device add echo@bot` shows the password. Then:

python -m imqtt.client.examples.bot 127.0.0.1:1883 PASSWORD echo.db
"""

import asyncio
import sys

from imqtt.client import Client


async def main(broker: str, password: str, store: str) -> None:
    async with Client(
        user="echo", device="bot", password=password, brokers=broker, store=store, start="beginning"
    ) as client:
        async for event in client.events("answering"):
            if event.sender != "echo" and event.content.text:
                # The client_msg_id names the question: answering again after a kill adds no second answer.
                answer = f"You said: {event.content.text}"
                await client.send(event.conversation, answer, client_msg_id=f"re-{event.id}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m imqtt.client.examples.bot BROKER PASSWORD STORE")
    asyncio.run(main(*sys.argv[1:]))
