"""Commands to a device's process on stdin and its reports on stdout, as lines of JSON."""

import asyncio
import contextlib
import logging
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Literal, Self

import msgspec

LONGEST_LINE = 1 << 20


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: the device's account and what it does from its start.

    `brokers`: one or several `host:port`. `history`: the file that it appends to. `store`: the file of an SDK
    device's log and outbox. `conversations`: where it sends, at random. `rate`: messages per second; 0 sends
    none. `max_unanswered`: it stops sending at this number of unanswered messages. `marks`: how often per
    second it marks something as read. `seed`: seeds its random choices, together with the number of earlier
    starts.

    `patience`: seconds without an answer before the history records `Info`. A message that is resent may
    still be answered later.

    `timing`: values of `imqtt.client.Timing` that replace those of `QUICK`.

    Plain devices only: `resend` is the share of messages that are resent until answered; `detour` publishes
    everything to partition 0.
    """

    user: str
    device: str
    password: str
    brokers: tuple[str, ...]
    history: str
    store: str = ""
    conversations: tuple[str, ...] = ()
    rate: float = 10.0
    max_unanswered: int = 500
    marks: float = 1.0
    seed: int = 0
    kind: Literal["sdk", "plain"] = "sdk"
    format: Literal["json", "protobuf"] = "protobuf"
    timing: dict[str, float] = {}
    patience: float = 20.0
    resend: float = 0.8
    detour: bool = True

    @property
    def process(self) -> str:
        """The device's name in histories, which is also its MQTT username."""
        return f"{self.user}@{self.device}"


class Order(msgspec.Struct, frozen=True):
    """Any later line. `do`: pause, go, settle, finish or (plain devices only) replay, of `count` messages."""

    do: str
    count: int = 0


class Started(msgspec.Struct, frozen=True, tag_field="report", tag="started"):
    """The device has read its own history and recorded its start."""


class Progress(msgspec.Struct, frozen=True, tag_field="report", tag="progress"):
    """Messages accepted in all runs of the device, and when the latest accepted one was invoked.

    `newest` is on the clock of `history.now`; 0 if there is none.
    """

    accepted: int = 0
    newest: float = 0.0


class Done(msgspec.Struct, frozen=True, tag_field="report", tag="done"):
    """An order is complete. `count`: PUBACKs of a replay, conversations of a finish. `cpu`: seconds."""

    do: str
    count: int = 0
    cpu: float = 0.0


Report = Started | Progress | Done

_encode = msgspec.json.Encoder().encode
_plan = msgspec.json.Decoder(Plan).decode
_order = msgspec.json.Decoder(Order).decode


class Console:
    """The device's side."""

    def __init__(self, plan: Plan, reader: asyncio.StreamReader) -> None:
        self.plan = plan
        self.is_finished = False  # told to record what the device holds, and to end
        self._reader = reader

    @classmethod
    async def open(cls) -> Self:
        """Reads the plan."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(LONGEST_LINE)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        return cls(_plan(await reader.readline()), reader)

    async def orders(self) -> AsyncIterator[Order]:
        """Ends when stdin is closed."""
        while line := await self._reader.readline():
            yield _order(line)

    async def execute_orders(
        self,
        may_send: asyncio.Event,
        settle: Callable[[], Coroutine[Any, Any, None]],
        replay: Callable[[int], Awaitable[int]] | None = None,
    ) -> None:
        """Executes orders until `finish`. The device sends nothing while `may_send` is not set.

        `settle` and `finish` report their own completion. A later `settle` or `finish` cancels a `settle`.
        """
        async with asyncio.TaskGroup() as tasks:
            settling: asyncio.Task[None] | None = None
            async for order in self.orders():
                if settling is not None and order.do in ("settle", "finish"):
                    settling.cancel()
                count = 0
                if order.do == "settle":
                    settling = tasks.create_task(settle(), name="device-settle")
                    continue
                if order.do == "pause":
                    may_send.clear()
                elif order.do == "go":
                    may_send.set()
                elif order.do == "replay" and replay is not None:
                    count = await replay(order.count)
                elif order.do == "finish":
                    self.is_finished = True
                    return
                else:
                    raise ValueError(f"unknown order: {order.do}")
                self.done(order.do, count)
            if settling is not None:
                settling.cancel()

    def report(self, report: Report) -> None:
        sys.stdout.buffer.write(_encode(report) + b"\n")
        sys.stdout.buffer.flush()

    def done(self, do: str, count: int = 0) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.report(Done(do, count, usage.ru_utime + usage.ru_stime))


def run_device(make: Callable[[Console], Any]) -> None:
    """The main program of a device's process."""

    async def main() -> None:
        await make(await Console.open()).run()

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


async def until_one_ends(*tasks_of_device: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs all tasks of a device until the first one ends, and raises its error if it failed."""
    tasks = [asyncio.create_task(work(), name=f"device{work.__name__}") for work in tasks_of_device]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()
