"""The parts of a soak: the stack of a chaos run, on an unlimited disk, and the load."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Self

import msgspec

from imqtt.mosquitto.process import end_with_parent
from tests.verification.chaos.console import Done
from tests.verification.chaos.disk import Disk
from tests.verification.chaos.stack import Stack
from tests.verification.checker.history import History
from tests.verification.soak.load import LoadOrder, LoadPlan, Tally

END_SECONDS = 20.0

_encode = msgspec.json.Encoder().encode
_decode_report = msgspec.json.Decoder(Tally | Done).decode


class LoadEnded(Exception):
    """The process with all devices has ended on its own."""


class LoadProcess:
    """All devices in one process. `tally`: its latest report."""

    def __init__(self, plan: LoadPlan) -> None:
        self.tally = Tally()
        self._plan = plan
        self._log = Path(plan.history).with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._stopped = False  # as ordered

    @property
    def pid(self) -> int | None:
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    @property
    def devices(self) -> list[str]:
        return sorted(self._plan.passwords)

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.verification.soak.load",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True, preexec_fn=end_with_parent(signal.SIGKILL),
            )  # fmt: skip
        self._listening = asyncio.create_task(self._listen(self._process), name="listen-to-load")
        self._write(_encode(self._plan))

    def tell(self, do: str, device: str = "") -> None:
        self._write(_encode(LoadOrder(do, device=device)))

    async def stop(self, within: float) -> None:
        """Stops sending; returns when all messages are answered and the process has ended.

        Raises `TimeoutError` or `LoadEnded`.
        """
        assert self._listening is not None
        self.tell("stop")
        async with asyncio.timeout(within):
            await asyncio.shield(self._listening)
        if not self._stopped:
            raise self.end_error()

    async def end(self) -> None:
        """Ends the process without waiting for answers; its history is complete."""
        if self.pid is not None and self._process is not None and self._listening is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await asyncio.shield(self._listening)
        await self.kill()

    async def kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._listening is not None:
            await self._listening

    def end_error(self) -> LoadEnded:
        status = None if self._process is None else self._process.returncode
        return LoadEnded(f"the load ended with {status}: {self._log.read_text(errors='replace')[-2_000:]}")

    def _write(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            report = _decode_report(line)
            if isinstance(report, Tally):
                self.tally = report
            else:
                self._stopped = True
        await process.wait()


class PlainDirectory(Disk):
    """A directory without a mount: a million messages do not fit on a small disk."""

    def __enter__(self) -> Self:
        self.directory.mkdir(exist_ok=True)
        return self


class SoakStack(Stack):
    """The stack of a soak. `load` is set when it is started."""

    def __init__(self, kind: str, directory: Path, history: History, workers: int = 0) -> None:
        super().__init__(kind, directory, history, workers)
        if self.disk is not None:
            self.disk = PlainDirectory(self.disk.directory)
        self.load: LoadProcess | None = None

    @property
    def store_files(self) -> tuple[Path, Path]:
        """The store's file or directory, and its WAL."""
        if self.disk is not None:
            return self._sqlite, self._sqlite.with_name(self._sqlite.name + "-wal")
        return self.directory / "mongodb" / "data", self.directory / "mongodb" / "no-log"

    async def start_load(self, plan: LoadPlan) -> LoadProcess:
        self.load = LoadProcess(plan)
        await self.load.start()
        self._exits.push_async_callback(self.load.kill)
        return self.load

    async def back_up_broker(self) -> None:
        """Copies the broker's state, for a fault that restores it."""
        await self.broker.save()
        self.broker_copy = self.directory / "mosquitto-old.db"
        shutil.copyfile(self.broker.state, self.broker_copy)
