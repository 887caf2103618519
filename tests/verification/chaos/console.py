"""The commands to a device's process on stdin and its reports on stdout, as lines of JSON."""

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Literal, Self

import msgspec

LONGEST_LINE = 1 << 20


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: who the device is, and what it does from its start on.

    `brokers`: `host:port` of one or several. `history`: the file to which it appends. `store`: the file of
    an SDK device's log and outbox. `conversations`: those to which it sends, at random. `rate`: messages a
    second, 0 for none, and none while `most_open` are unanswered. `marks`: how often a second it marks
    something as read. `seed`: of its choices, together with how often it was started.

    `patience`: seconds without an answer, after which the history says `Info`. A message that is sent again
    all the same may be answered later.

    `timing`: what `imqtt.client.Timing` is to have in place of `QUICK`.

    Of plain devices: `resend` is the share of messages that it sends again until they are answered, and
    `detour` has it publish everything to partition 0.
    """

    user: str
    device: str
    password: str
    brokers: tuple[str, ...]
    history: str
    store: str = ""
    conversations: tuple[str, ...] = ()
    rate: float = 10.0
    most_open: int = 500
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
        """Its name in histories, and its MQTT username."""
        return f"{self.user}@{self.device}"


class Order(msgspec.Struct, frozen=True):
    """A further line. `do`: pause, go, settle, finish, and of plain devices replay, of `count` messages."""

    do: str
    count: int = 0


class Started(msgspec.Struct, frozen=True, tag_field="said", tag="started"):
    """It has read its own history, and says so in it."""


class Progress(msgspec.Struct, frozen=True, tag_field="said", tag="progress"):
    """Messages that were accepted, of all the device's lives; and of these, when the latest one was invoked.

    `newest` is on the clock of `history.now`; 0: none.
    """

    accepted: int = 0
    newest: float = 0.0


class Done(msgspec.Struct, frozen=True, tag_field="said", tag="done"):
    """An order is carried out. `count`: PUBACKs of a replay, conversations of a finish. `cpu`: seconds."""

    do: str
    count: int = 0
    cpu: float = 0.0


Said = Started | Progress | Done

_encode = msgspec.json.Encoder().encode
_plan = msgspec.json.Decoder(Plan).decode
_order = msgspec.json.Decoder(Order).decode


class Console:
    """The process's side."""

    def __init__(self, plan: Plan, reader: asyncio.StreamReader) -> None:
        self.plan = plan
        self._reader = reader

    @classmethod
    async def open(cls) -> Self:
        """Reads the plan."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(LONGEST_LINE)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        return cls(_plan(await reader.readline()), reader)

    async def orders(self) -> AsyncIterator[Order]:
        """Ends when nobody is there any more to give one."""
        while line := await self._reader.readline():
            yield _order(line)

    async def obey(
        self,
        going: asyncio.Event,
        settle: Callable[[], Coroutine[Any, Any, None]],
        finish: Callable[[], Awaitable[int]],
        replay: Callable[[int], Awaitable[int]] | None = None,
    ) -> None:
        """Carries orders out until it is told to finish. While `going` is not set, the device sends nothing.

        `settle` says itself when it is done; the next one takes its place.
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
                    going.clear()
                elif order.do == "go":
                    going.set()
                elif order.do == "replay" and replay is not None:
                    count = await replay(order.count)
                elif order.do == "finish":
                    self.done("finish", await finish())
                    return
                else:
                    raise ValueError(f"this device cannot {order.do}")
                self.done(order.do, count)
            if settling is not None:
                settling.cancel()

    def say(self, said: Said) -> None:
        sys.stdout.buffer.write(_encode(said) + b"\n")
        sys.stdout.buffer.flush()

    def done(self, do: str, count: int = 0) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.say(Done(do, count, usage.ru_utime + usage.ru_stime))


async def until_one_ends(*works: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs all that a device does. Ends with the first of them, and raises what that has raised."""
    tasks = [asyncio.create_task(work(), name=f"device{work.__name__}") for work in works]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()
