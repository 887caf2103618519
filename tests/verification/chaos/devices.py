"""Devices as a harness has them: processes of their own, which it may kill, pause and ask."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec

from imqtt.mosquitto.process import end_with_parent
from tests.verification.chaos.console import Done, Order, Plan, Progress, Said, Started
from tests.verification.checker.history import Held, History, Start, now

__all__ = ["DeviceEnded", "DeviceProcess", "Done", "Plan", "Progress", "fresh", "fresh_history", "settle"]

START_SECONDS = 120.0
END_SECONDS = 60.0  # between the last word of a device and its end

_encode = msgspec.json.Encoder().encode
_said = msgspec.json.Decoder(Said).decode


class DeviceEnded(Exception):
    """The process was asked something and has ended instead."""


class DeviceProcess:
    """A device of which there is at most one process at a time.

    What it logs goes to a file beside its history.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.process
        self.log = Path(plan.history).with_suffix(".log")
        self.progress = Progress()
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._asked: dict[str, asyncio.Future[Done]] = {}

    def __repr__(self) -> str:
        return f"DeviceProcess({self.name})"

    @property
    def pid(self) -> int | None:
        """The process, while it runs or is paused."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """How the last process ended: its exit status, or a signal's negative number."""
        return None if self._process is None else self._process.returncode

    async def start(self, within: float = START_SECONDS) -> None:
        """Returns once it has read its history; it connects and sends from then on by itself.

        Raises `DeviceEnded`, or `TimeoutError`.
        """
        assert self.pid is None, f"{self.name} runs already"
        self._started = asyncio.Event()
        module = f"tests.verification.chaos.{self.plan.kind}_device"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True,  # a Ctrl-C is for the harness, which ends its devices itself
                preexec_fn=end_with_parent(signal.SIGKILL),
            )  # fmt: skip
        self._listening = asyncio.create_task(self._listen(self._process), name=f"listen-to-{self.name}")
        self._tell(self.plan)
        started = asyncio.create_task(self._started.wait())
        try:
            async with asyncio.timeout(within):
                await asyncio.wait([started, self._listening], return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if not self._started.is_set():
            raise self._its_end()

    async def kill(self) -> None:
        """SIGKILL, also to one that is paused. Returns when the process is gone."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await self._gone()

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def command(self, do: str, within: float, count: int = 0) -> Done:
        """Has it do something: see `console.Order`. Raises `TimeoutError` or `DeviceEnded`."""
        if self.pid is None:
            raise self._its_end()
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._asked[do] = answer
        self._tell(Order(do, count))
        async with asyncio.timeout(within):
            return await answer

    async def settle(self, within: float) -> None:
        """Returns when all that it sends is answered and it has all that there was by then.

        For what others are still sending, see the function of this name.
        """
        await self.command("settle", within)

    async def replay(self, count: int, within: float = 60.0) -> int:
        """Has a plain device publish old commands again; how many of them the broker took."""
        return (await self.command("replay", within, count)).count

    async def finish(self, within: float) -> Done:
        """Has it write down all that it holds, and end by itself."""
        done = await self.command("finish", within)
        async with asyncio.timeout(END_SECONDS):
            await self._gone()
        if self.ended:
            raise self._its_end()
        return done

    # --- inside

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            raise self._its_end()
        os.kill(self.pid, number)

    def _tell(self, line: Plan | Order) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(_encode(line) + b"\n")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # What a killed process was about to say ends without a line's end.
        while (line := await process.stdout.readline()).endswith(b"\n"):
            said = _said(line)
            if isinstance(said, Started):
                self._started.set()
            elif isinstance(said, Progress):
                self.progress = said
            else:
                answer = self._asked.pop(said.do, None)
                if answer is not None and not answer.done():
                    answer.set_result(said)
        await process.wait()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._its_end())
        self._asked.clear()

    async def _gone(self) -> None:
        if self._listening is not None:
            await self._listening

    def _its_end(self) -> DeviceEnded:
        said = self.log.read_text(errors="replace")[-2_000:] if self.log.exists() else ""
        return DeviceEnded(f"{self.name} ended with {self.ended}: {said}")


async def settle(devices: list[DeviceProcess], within: float) -> None:
    """Returns when everybody has everything, given that none sends any more (`pause`).

    Everybody is asked twice: who had settled first may lack what another sent thereafter. Raises as
    `DeviceProcess.settle`, within about twice the time.
    """
    for _ in range(2):
        async with asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.settle(within))


def fresh_history(plan: Plan) -> Path:
    """Where `fresh` writes, beside the device's own history."""
    own = Path(plan.history)
    return own.with_stem(f"{own.stem}@fresh")


async def fresh(plan: Plan, *, broker: str, within: float = 120.0) -> int:
    """The device, which does not run any more, once more with nothing: it asks for all there is, and says it.

    In this process. Returns how many conversations there are. Raises `TimeoutError`.
    """
    from tests.verification.chaos.sdk_device import client_of, held_by  # its imports are for who needs them

    plan = msgspec.structs.replace(plan, brokers=(broker,), store="")
    lines = History(fresh_history(plan))
    try:
        lines.write(Start(plan.process, now(), ordered=True, keeps=False))
        async with client_of(plan) as client:
            async with asyncio.timeout(within):
                await client.caught_up()
            held = await held_by(client)
        for conversation, (base, rows) in held.items():
            lines.write(Held(plan.process, now(), conversation, base, rows, fresh=True))
        return len(held)
    finally:
        lines.close()
