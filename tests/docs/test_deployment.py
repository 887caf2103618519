"""docs/deployment.md, followed by root: from the first command to a message that is stored."""

import re
import sysconfig
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.machine import Machine, machine, needs_root
from tests.docs.reader import Reader, password
from tests.docs.services import (
    STATE_PASSWORD,
    STORE_PASSWORD,
    Unit,
    allowed,
    listens,
    send,
    start_mongodb,
    start_redis,
)

PAGE = pages.ROOT / "docs" / "deployment.md"

needs_debian = pytest.mark.skipif(
    not Path("/lib/systemd/system/mosquitto.service").exists(), reason="the page is for Debian's Mosquitto"
)


class Operator:
    """The steps that the page describes in words, and its promises."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._mosquitto = Unit(machine, "mosquitto")
        self._imqtt = Unit(machine, "imqtt")
        self._password = ""

    async def lend_dependencies(self, reader: Reader) -> None:
        """What pip would fetch: the packages of the environment that runs the tests."""
        path = sysconfig.get_path("purelib")
        await self._machine.run(f"cd /opt/imqtt/lib/python3*/site-packages && echo {path} > dependencies.pth")

    async def start_mosquitto(self, reader: Reader) -> None:
        await self._mosquitto.start(listens(1884))
        output = await self._machine.run("stat -c '%U %G %a' /etc/mosquitto/passwords /etc/mosquitto/acl")
        assert output == "mosquitto mosquitto 640\n" * 2
        warnings = await self._machine.run("grep -E 'Warning|Error' /var/log/mosquitto/mosquitto.log || true")
        assert warnings == ""

    async def start_imqtt(self, reader: Reader) -> None:
        await self._imqtt.start("imqtt is ready")

    async def restart_imqtt(self, reader: Reader) -> None:
        await self._imqtt.stop()
        await self._imqtt.start("imqtt is ready")
        await send(self._machine, "alice@phone", self._password, "through MongoDB")

    async def send(self, reader: Reader) -> None:
        self._password = password(reader.output, "alice@phone")
        await send(self._machine, "alice@phone", self._password, "through SQLite")
        health = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8090').read().decode())"
        assert '"status":"ok"' in (await self._machine.run(f'/opt/imqtt/bin/python -c "{health}"')).replace(
            " ", ""
        )

    async def move_to_mongodb(self, reader: Reader) -> None:
        """With the page's file, and the addresses of this machine in it."""
        await start_mongodb(self._machine)
        await start_redis(self._machine)
        text = reader.output
        for theirs, here in {
            r"10\.0\.0\.[56]": "127.0.0.1",
            r"broker_ca = .*\n": "",
            r"mongo1,mongo2,mongo3": "127.0.0.1",
            r"\?replicaSet=rs0": "",
        }.items():
            text, count = re.subn(theirs, here, text)
            assert count, theirs
        await self._machine.run(f"cat > /etc/imqtt/imqtt.toml <<'END'\n{text}END")
        for name, word in {"store": STORE_PASSWORD, "state": STATE_PASSWORD}.items():
            await self._machine.run(f"echo {word} > {name}-password")

    async def raise_limit(self, reader: Reader) -> None:
        """By the page's file, and with `max_connections` as it says."""
        directory = "/etc/systemd/system/mosquitto.service.d"
        await self._machine.run(
            f"mkdir {directory}; cat > {directory}/imqtt.conf <<'END'\n{reader.output}END"
        )
        await self._machine.run(
            "sed -i 's/^max_connections .*/max_connections 32000/' /etc/mosquitto/mosquitto.conf"
            " && test $(grep -c '^max_connections 32000$' /etc/mosquitto/mosquitto.conf) = 2"
        )
        assert await self._mosquitto.limit() == 1_024
        await self._mosquitto.stop()
        await self._mosquitto.start(listens(1884))
        assert await self._mosquitto.limit() == allowed(65_536)
        await send(self._machine, "alice@phone", self._password, "after the broker's restart")

    async def see_workers(self, reader: Reader) -> None:
        assert len(re.findall(r"\b16\b", reader.output)) >= 1, reader.output


@needs_root
@needs_debian
async def test_the_commands_of_the_deployment_page_do_what_the_page_says(tmp_path: Path) -> None:
    async with machine(tmp_path) as own:
        own.environment |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        operator = Operator(own)
        reader = Reader(
            own,
            then={
                "python3 -m venv": operator.lend_dependencies,
                "/opt/imqtt/bin/imqtt device add alice@phone": operator.send,
                "/opt/imqtt/bin/imqtt workers": operator.see_workers,
                "```toml": operator.move_to_mongodb,
                "```ini": operator.raise_limit,
            },
            instead={
                "systemctl restart mosquitto": operator.start_mosquitto,
                "systemctl enable --now imqtt": operator.start_imqtt,
                "systemctl restart imqtt": operator.restart_imqtt,
            },
        )
        await reader.follow(PAGE)
