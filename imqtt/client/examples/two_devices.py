"""One user with two devices: each has the messages and the read marks of the other.

Add its devices first: `imqtt device add alice@phone alice@laptop` shows the passwords. Then:

python -m imqtt.client.examples.two_devices 127.0.0.1:1883 PHONES_PASSWORD LAPTOPS_PASSWORD
"""

import asyncio
import sys

from imqtt.client import Client
from imqtt.model import Marks

NOTES = "u:alice"  # a user's own conversation


async def main(broker: str, phones_password: str, laptops_password: str) -> None:
    async with (
        Client(user="alice", device="phone", password=phones_password, brokers=broker) as phone,
        Client(user="alice", device="laptop", password=laptops_password, brokers=broker) as laptop,
    ):
        events, notices = laptop.events(), phone.notices()
        await phone.send(NOTES, "buy milk")
        event = await anext(events)
        print(f"on the laptop: {event.content.text}")
        await laptop.mark_read(NOTES)
        async for notice in notices:
            if isinstance(notice, Marks) and notice.read >= event.seq:
                break
        summary = await phone.conversation(NOTES)
        print(f"unread on the phone: {summary.unread if summary else 0}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m imqtt.client.examples.two_devices BROKER PHONES_PASSWORD LAPTOPS_PASSWORD")
    asyncio.run(main(*sys.argv[1:]))
