"""docs/sdk.md: its programs print the output on the page, and its reference matches the code."""

import asyncio
import re
import sys
from pathlib import Path

from imqtt.client import Client
from imqtt.mosquitto.broker import Mosquitto
from tests.cli.commands import environment
from tests.client import generated
from tests.services import WITHIN, ServerProcess

PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


async def test_the_programs_print_the_output_on_the_page(
    server: ServerProcess, broker: Mosquitto, tmp_path: Path
) -> None:
    page = generated.PAGE.read_text()
    programs = PROGRAM.findall(page)
    assert len(programs) == page.count("```python") >= 3
    for program, output in programs:
        (user,), (device,) = (re.findall(rf'{name}="(\w+)"', program) for name in ("user", "device"))
        password = broker.passwords.add(f"{user}@{device}")
        text = program.replace("…", password)
        if "brokers=" not in text:
            text = text.replace("Client(", f'Client(brokers="127.0.0.1:{broker.port}", ')
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, cwd=tmp_path, env=environment(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(WITHIN):
            out, err = await process.communicate()
        reason = re.match("idle - (.*)", output)  # of the one that is not connected
        warning = f"{user}@{device} is not connected yet, and keeps trying: {reason[1]}\n" if reason else ""
        assert (process.returncode, err.decode()) == (0, warning)
        assert out.decode() == output


def test_the_reference_is_current_and_whole() -> None:
    assert generated.SECTION.stale() == [], "run `make docs`"
    assert generated.exported() - generated.public() == {"Notice"}  # a union
    for name in vars(Client):
        if not name.startswith("_"):
            assert f"client.{name}" in generated.PAGE.read_text()


def test_the_examples_of_the_package_are_mentioned() -> None:
    page = generated.PAGE.read_text()
    for path in (generated.ROOT / "imqtt" / "client" / "examples").glob("[a-z]*.py"):
        assert path.stem in page
