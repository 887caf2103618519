"""A process that appends until it is killed: `python -m tests.contract.writing KIND LOCATION`.

It writes a line, `conversation seq`, for each append that the store has acknowledged.
"""

import asyncio
import sys

from tests.contract.stores import PARTITIONS, STORES, log

WRITERS = 4
BATCH = 7


async def main(kind: str, location: str) -> None:
    store = await STORES[kind].open(location, PARTITIONS)

    async def write(number: int) -> None:
        conversation = f"d:p{number}:q"
        last = 0
        while True:
            await store.append(log(conversation, last + 1, last + BATCH))
            last += BATCH
            sys.stdout.write(f"{conversation} {last}\n")
            sys.stdout.flush()

    await asyncio.gather(*(write(number) for number in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
