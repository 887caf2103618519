"""Devices as processes that a harness may start, kill, pause and command."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec

from imqtt.mosquitto.process import end_with_parent
from tests.verification.chaos.console import Done, Order, Plan, Progress, Report, Started
from tests.verification.checker.history import Held, History, Start, now

START_SECONDS = 120.0
END_SECONDS = 60.0  # from the last report of a device until its exit

_encode = msgspec.json.Encoder().encode
_decode_report = msgspec.json.Decoder(Report).decode


class DeviceEnded(Exception):
    """The process ended instead of answering."""


class DeviceProcess:
    """One device, with at most one process at a time.

    Its log goes to a file beside its history.
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
        """The running or paused process; None otherwise."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """How the last process ended: its exit status, or a signal as a negative number."""
        return None if self._process is None else self._process.returncode

    async def start(self, within: float = START_SECONDS) -> None:
        """Returns when the process has read its history; it then connects and sends on its own.

        Raises `DeviceEnded` or `TimeoutError`.
        """
        assert self.pid is None, f"{self.name} is already running"
        self._started = asyncio.Event()
        module = f"tests.verification.chaos.{self.plan.kind}_device"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True,  # the harness handles Ctrl-C and ends its devices
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
            raise self._end_error()

    async def kill(self) -> None:
        """SIGKILL, also for a paused process. Returns when the process has exited."""
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
        """Sends an order and waits for its completion. Raises `TimeoutError` or `DeviceEnded`."""
        if self.pid is None:
            raise self._end_error()
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._asked[do] = answer
        self._tell(Order(do, count))
        async with asyncio.timeout(within):
            return await answer

    async def settle(self, within: float) -> None:
        """Returns when all messages are answered and the device has everything that existed by then.

        The function `settle` also covers messages that other devices were still sending.
        """
        await self.command("settle", within)

    async def replay(self, count: int, within: float = 60.0) -> int:
        """Publishes old commands of a plain device again; returns how many the broker acked."""
        return (await self.command("replay", within, count)).count

    async def finish(self, within: float) -> Done:
        """Makes the device record everything that it holds, and exit."""
        done = await self.command("finish", within)
        async with asyncio.timeout(END_SECONDS):
            await self._gone()
        if self.ended:
            raise self._end_error()
        return done

    # --- inside

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            raise self._end_error()
        os.kill(self.pid, number)

    def _tell(self, line: Plan | Order) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(_encode(line) + b"\n")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # A killed process may leave a truncated last line.
        while (line := await process.stdout.readline()).endswith(b"\n"):
            report = _decode_report(line)
            if isinstance(report, Started):
                self._started.set()
            elif isinstance(report, Progress):
                self.progress = report
            else:
                answer = self._asked.pop(report.do, None)
                if answer is not None and not answer.done():
                    answer.set_result(report)
        await process.wait()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._end_error())
        self._asked.clear()

    async def _gone(self) -> None:
        if self._listening is not None:
            await self._listening

    def _end_error(self) -> DeviceEnded:
        output = self.log.read_text(errors="replace")[-2_000:] if self.log.exists() else ""
        return DeviceEnded(f"{self.name} ended with {self.ended}: {output}")


async def settle(devices: list[DeviceProcess], within: float) -> None:
    """Returns when every device has everything, provided that none is sending (`pause`).

    All devices are asked twice: the first to settle may lack messages that others sent afterwards. Raises as
    `DeviceProcess.settle`, within about twice the time.
    """
    for _ in range(2):
        async with asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.settle(within))


def fresh_device_history(plan: Plan) -> Path:
    """The file that `sync_fresh_device` writes, beside the device's own history."""
    own = Path(plan.history)
    return own.with_stem(f"{own.stem}@fresh")


async def sync_fresh_device(plan: Plan, *, broker: str, within: float = 120.0) -> int:
    """Syncs everything into an empty store under this device's account and records it as held.

    Runs in this process; the device itself must have ended. Returns the number of conversations. Raises
    `TimeoutError`.
    """
    from tests.verification.chaos.sdk_device import client_of, held_by  # imports the SDK

    path = fresh_device_history(plan)
    plan = msgspec.structs.replace(plan, brokers=(broker,), store=str(path.with_suffix(".db")))
    lines = History(path)
    try:
        lines.write(Start(plan.process, now(), ordered=True, durable=False))
        async with client_of(plan) as client:
            async with asyncio.timeout(within):
                await client.caught_up()
        held = await held_by(plan)
        for conversation, (base, rows) in held.items():
            lines.write(Held(plan.process, now(), conversation, base, rows, fresh=True))
        return len(held)
    finally:
        lines.close()
