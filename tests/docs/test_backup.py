"""docs/backup.md: a store is moved, copied while it is served, and restored, by the page's commands."""

from pathlib import Path

from tests.docs import pages
from tests.docs.machine import Machine, Terminal, machine, needs_root
from tests.docs.reader import Reader, password
from tests.docs.services import STORE_PASSWORD, send, start_mongodb

PAGE = pages.ROOT / "docs" / "backup.md"
DATA = "/var/lib/imqtt"


class Operator:
    """A deployment with its store in /var/lib/imqtt. `imqtt up` stands in for the unit."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._up: Terminal | None = None

    async def prepare(self, terminal: Terminal) -> None:
        await terminal.run(". .venv/bin/activate")
        await self._machine.run(f"install -d /etc/imqtt && echo {STORE_PASSWORD} > /etc/imqtt/store-password")
        await start_mongodb(self._machine)
        self._activated = terminal
        await self.start()
        output = await terminal.run(f"imqtt device add alice@phone --data {DATA}")
        await send(self._machine, "alice@phone", password(output, "alice@phone"), "kept")
        await terminal.run(f"cd {DATA}")

    async def start(self, reader: Reader | None = None) -> None:
        self._up = self._activated.copy()
        await self._up.start(f"imqtt up --data {DATA}")
        await self._up.shows("imqtt is ready")

    async def stop(self, reader: Reader) -> None:
        assert self._up is not None
        assert await self._up.interrupt() == 0

    async def make_room(self, reader: Reader) -> None:
        await reader.terminal.run("rm -f backup.db*")

    async def see_backup(self, reader: Reader) -> None:
        output = await reader.terminal.run("sqlite3 backup.db 'SELECT count(*) FROM events'")
        assert output == "1\n"

    async def see_proof(self, reader: Reader) -> None:
        assert "1 event" in reader.output, reader.output
        assert STORE_PASSWORD not in reader.output


@needs_root
async def test_the_copies_made_by_the_commands_of_the_page_are_complete(tmp_path: Path) -> None:
    async with machine(tmp_path) as own:
        operator = Operator(own)
        reader = Reader(
            own,
            before={"sqlite3": operator.make_room, "imqtt store copy --live": operator.make_room},
            then={
                "sqlite3": operator.see_backup,
                "imqtt store copy --live": operator.see_backup,
                "imqtt store copy": operator.see_proof,
            },
            instead={"systemctl stop imqtt": operator.stop, "systemctl start imqtt": operator.start},
            edits={"db1,db2,db3": lambda _: "127.0.0.1"},
        )
        await operator.prepare(reader.terminal)
        await reader.follow(PAGE)
