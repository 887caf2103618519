"""A command that runs until it ends or a signal cancels it."""

import subprocess
import sys

from tests.services import WITHIN

PROGRAM = """
import asyncio
from imqtt.cli import signals
signals.STDIN_SECONDS = 0.2

async def main():
    print("runs", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("asked to end", flush=True)

signals.run(main, with_stdin=True)
"""


def test_a_command_that_does_not_end_with_its_stdin_is_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.stdin.close()
    assert process.wait(WITHIN) == 1
    assert process.stdout.read() == "asked to end\n"
    process.stdout.close()
