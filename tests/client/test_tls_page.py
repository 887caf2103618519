"""Runs the commands of docs/tls.md in order, on free ports."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from tests.broker.peers import free_port
from tests.services import WITHIN

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tls.md"
PORTS = ("8883", "8884", "8885")


def script_of(page: str) -> str:
    """The page's commands: blocks fenced as sh, and those indented by four columns or, in lists, six."""
    lines: list[str] = []
    width, fenced, before = 0, False, ""
    for line in page.splitlines():
        indent = len(line) - len(line.lstrip())
        if fenced or line == "```sh":
            fenced = line != "```"
            lines += [line] * (not line.startswith("```"))
        else:
            if not width and not before and indent in (4, 6):
                width = indent
            elif line and indent < width:
                width = 0
            lines += [line[width:]] * bool(width)
        before = line
    return "\n".join(lines)


async def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    script = script_of(PAGE.read_text())
    for port in PORTS:
        assert port in script
        script = script.replace(port, str(free_port()))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMQTT_")}
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-c", script, cwd=tmp_path, env=environment | {"PATH": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(2 * WITHIN):
            out, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the server, if the page was not completed
        with contextlib.suppress(OSError):
            os.kill(int((tmp_path / "tls" / "mosquitto.pid").read_text()), signal.SIGKILL)
    output = out.decode()
    assert process.returncode == 0, output
    assert "stored: d:alice:bob 1" in output
    assert "alice: Hello over TLS" in output
    assert "bob: Hello from a program" in output
    assert "Accepted(" in output
