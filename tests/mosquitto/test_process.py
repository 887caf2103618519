"""A child process that ends with this process, and whose output is read continuously."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from imqtt.mosquitto.process import Process
from tests.cli.commands import is_alive
from tests.services import eventually

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")


async def test_all_output_is_read_when_the_process_has_ended(tmp_path: Path) -> None:
    output: list[bytes] = []
    program = "import sys; print('to stdout', flush=True); sys.exit('x' * 100_000)"
    process = Process(
        [sys.executable, "-c", program], directory=tmp_path, output=output.append, environment={}
    )
    assert await asyncio.gather(process.wait(), process.wait()) == [1, 1]
    assert b"".join(output) == b"to stdout\n" + b"x" * 100_000 + b"\n"
    assert await process.wait() == 1
    process.send_signal(signal.SIGKILL)  # too late, and no error


async def test_a_cancelled_wait_does_not_affect_another(tmp_path: Path) -> None:
    process = Process(["sleep", "60"], directory=tmp_path, output=print, environment={})
    first, second = asyncio.create_task(process.wait()), asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    first.cancel()
    process.send_signal(signal.SIGKILL)
    assert await second == -signal.SIGKILL
    assert first.cancelled()


def test_the_process_ignores_sighup_on_uvloop_too(tmp_path: Path) -> None:
    async def ignored() -> int:
        process = Process(["sleep", "60"], directory=tmp_path, output=print, environment={})
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        return await process.wait()

    assert uvloop.run(ignored()) == -signal.SIGTERM


async def test_a_program_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Process(["no-such-program"], directory=tmp_path, output=print, environment={})


@LINUX
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_the_process_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "import time; from pathlib import Path; from imqtt.mosquitto.process import Process; "
        "print(Process(['sleep', '60'], directory=Path('/'), output=print, environment={}).pid, flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, how)
        parent.wait()
    await eventually(lambda: not is_alive(child), what="its end")
