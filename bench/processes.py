"""Processes of the benchmark, and the kernel's figures about them."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from imqtt.mosquitto.process import end_with_parent

START_SECONDS = 60.0  # a server with 1,024 partitions takes long
_CPUCLOCK_SCHED = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads."""
    # The clock that clock_getcpuclockid(3) returns. `/proc` has steps of 10 ms, too coarse for a short phase.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def resident_bytes(pid: int) -> int:
    """Resident set size."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


class Failed(Exception):
    """A process of the benchmark ended, or never became ready."""


@contextlib.asynccontextmanager
async def running(
    *command: str, ready: str, log: Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> AsyncIterator[int]:
    """Starts a process and waits for `ready` in its output; yields its pid, and ends it with SIGTERM.

    Raises `Failed` with the end of its output.
    """
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=errors,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, preexec_fn=end_with_parent(),
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin)
    process.stdin.close()
    try:
        async with asyncio.timeout(START_SECONDS):
            while line := await process.stdout.readline():
                if ready in line.decode(errors="replace"):
                    break
            else:
                raise Failed(f"{' '.join(command)} ended: {log.read_text()[-1_000:]}")
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def lines(*command: str, stdin: bytes) -> AsyncIterator[str]:
    """The lines that a process prints. Raises `Failed` if its exit status is not 0."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        preexec_fn=end_with_parent(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(stdin)
    process.stdin.close()
    try:
        while line := await process.stdout.readline():
            yield line.decode()
        errors = (await process.stderr.read()).decode(errors="replace")
        if await process.wait() != 0:
            raise Failed(errors[-2_000:])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
