"""Services that the commands of a page need: systemd's units without systemd, MongoDB's protocol, Redis."""

import json
import re
import resource
import shlex
import sys
import sysconfig
from pathlib import Path

from tests.docs.machine import Machine, Terminal, broker_directory
from tests.services import WITHIN

STORE_PASSWORD, STATE_PASSWORD = "d0c5570e", "d0c557a7e"
ACCOUNT = "nobody"  # in place of the user that systemd allocates for a unit with DynamicUser
SYSTEMS_LIMIT = 1_024  # of open files, if a unit sets none
UNITS = ("/etc/systemd/system", "/lib/systemd/system")


class Unit:
    """A unit's service, started as its file says: commands, credentials, directories, user, open files."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._name = name
        self._terminal: Terminal | None = None

    async def start(self, ready: str) -> None:
        """Returns when the shell command `ready` succeeds, or when the service prints `ready`."""
        places = " ".join(f"{place}/{self._name}.service" for place in UNITS)
        text = await self._machine.run(f"cat $(ls {places} 2>/dev/null | head -n 1)")
        text += await self._machine.run(
            f"cat /etc/systemd/system/{self._name}.service.d/*.conf 2> /dev/null || true"
        )
        lines = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
        values = dict(lines)
        directory = f"/run/credentials/{self._name}.service"
        state = f"/var/lib/{values.get('StateDirectory', '')}"
        dynamic = values.get("DynamicUser") == "yes"
        await self._machine.run(f"mkdir -p {directory}")
        for key, value in lines:
            if key == "ExecStartPre":
                await self._machine.run(value)
            elif key == "LoadCredential":
                name, _, path = value.partition(":")
                await self._machine.run(f"install -m 400 -o {ACCOUNT} {path} {directory}/{name}")
            elif key == "StateDirectory":
                await self._machine.run(f"install -d -m {values['StateDirectoryMode']} -o {ACCOUNT} {state}")
        variables = [value.replace("%d", directory) for key, value in lines if key == "Environment"]
        where = values.get("WorkingDirectory", "/").replace("%S", "/var/lib")
        user = await self._user() if dynamic else []
        limit = ["prlimit", f"--nofile={allowed(int(values.get('LimitNOFILE', SYSTEMS_LIMIT)))}:"]
        program = shlex.split(self._program(values["ExecStart"]))
        command = [*limit, *user, "env", "--chdir", where, *variables, *program]
        self._terminal = self._machine.terminal()
        await self._terminal.start(f"exec {shlex.join(command)}")
        if ready.startswith("imqtt "):
            await self._terminal.shows(ready)
        else:
            try:
                await wait_until(self._machine, ready)
            except AssertionError:
                log = await self._machine.run(f"tail /var/log/{self._name}/*.log || true")
                raise AssertionError(f"{self._name} does not start: {self._terminal.shown}{log}") from None

    async def limit(self) -> int:
        """The service's limit of open files."""
        assert self._terminal is not None
        output = await self._machine.run(f"grep '^Max open files' /proc/{self._terminal.pid}/limits")
        return int(output.split()[3])

    async def _user(self) -> list[str]:
        """The words that make a command run as another user; none if that user cannot read this Python."""
        become = ["setpriv", f"--reuid={ACCOUNT}", "--regid=nogroup", "--clear-groups"]
        probe = [*become, "env", "/opt/imqtt/bin/python", "-c", "import msgspec"]
        output = await self._machine.run(f"{shlex.join(probe)} 2> /dev/null && echo yes || true")
        return become if output == "yes\n" else []

    async def stop(self) -> None:
        if self._terminal is not None:
            assert await self._terminal.terminate() == 0, self._terminal.shown
            self._terminal = None

    @staticmethod
    def _program(command: str) -> str:
        """The Mosquitto that is tested in place of the system's."""
        if other := broker_directory():
            return command.replace("/usr/sbin/mosquitto", f"{other[0]}/mosquitto")
        return command


def allowed(files: int) -> int:
    """This number of open files, or this machine's limit for a process if that is lower."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return files if most == resource.RLIM_INFINITY else min(files, most)


async def start_mongodb(machine: Machine) -> None:
    """SecantusDB at 127.0.0.1:27017, with the account `imqtt` on the databases `imqtt` and `imqtt2`."""
    program = Path(sysconfig.get_path("scripts")) / "secantusd-py"
    server = f"exec {sys.executable} {program} --storage-path {machine.scratch}/mongodb --port 27017"
    accounts = f"""
import pymongo
with pymongo.MongoClient("mongodb://127.0.0.1/?directConnection=true") as client:
    for name in ("imqtt", "imqtt2"):
        client[name].command("createUser", "imqtt", pwd={STORE_PASSWORD!r}, roles=["readWrite"])
"""
    await machine.run(f"mkdir {machine.scratch}/mongodb")
    first = machine.terminal()
    await first.start(server)
    await machine.run(f"{sys.executable} -c {shlex.quote(accounts)}")
    await first.terminate()
    await machine.terminal().start(server + " --auth")
    await wait_until(machine, listens(27017))


async def start_redis(machine: Machine) -> None:
    """At 127.0.0.1:6379, with a password."""
    await machine.terminal().start(f"exec redis-server --save '' --requirepass {STATE_PASSWORD}")
    await wait_until(machine, listens(6379))


async def wait_until(machine: Machine, command: str) -> None:
    """Returns when a shell command succeeds; fails after a while."""
    await machine.run(f"timeout {WITHIN:.0f} bash -c {shlex.quote(f'until {command}; do sleep 0.05; done')}")


def listens(port: int) -> str:
    """A shell command that succeeds when something listens on the port."""
    return f"(: < /dev/tcp/127.0.0.1/{port}) 2> /dev/null"


async def send(machine: Machine, name: str, password: str, text: str) -> None:
    """Has a device send a message with stock tools; fails unless it is stored."""
    conversation = f"d:{name.partition('@')[0]}:zoe"
    message = {
        "type": "send", "conversation": conversation, "client_msg_id": text.replace(" ", "-"),
        "content": {"text": text},
    }  # fmt: skip
    output = await machine.run(
        f"mosquitto_rr -u {name} -i {name} -P {password} -q 1 -W 10 -t imqtt/{name}/up/0 -e imqtt/{name}/down"
        f" -m {shlex.quote(json.dumps(message))}"
    )
    assert json.loads(output)["frames"][0]["type"] == "accepted", output
