"""`make demo`: three users on a real broker, the server killed in mid-stream, and an audit at the end.

All parts are real: Mosquitto, the server in its own process, and devices on the SDK with stores on disk. The
audit reads the server's database and those of all devices, and compares them.
"""

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imqtt.client import Client
from imqtt.errors import ImqttError
from imqtt.model import Accepted, Event
from imqtt.mosquitto.broker import Mosquitto
from tests.given_mosquitto import use_given
from tests.services import ServerProcess

CONVERSATIONS = ("d:alice:bob", "d:alice:carol", "d:bob:carol", "u:alice", "u:bob", "u:carol")
ROUND = 60  # messages of each device in each of its conversations per round
console = Console(highlight=False)

Place = tuple[str, int, int, str, str]  # conversation, seq, id, sender, client_msg_id


@dataclass
class Actor:
    """A device and its messages."""

    user: str
    device: str
    folder: Path
    password: str
    brokers: str
    client: Client | None = None
    sent: int = 0
    accepted: dict[tuple[str, str], Accepted] = field(default_factory=dict)  # by conversation, client_msg_id
    shown: list[Event] = field(default_factory=list)
    _showing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.user}@{self.device}"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.user}-{self.device}.db"

    @property
    def conversations(self) -> list[str]:
        return [talk for talk in CONVERSATIONS if self.user in talk.split(":")[1:]]

    async def connect(self) -> None:
        """Connects with the existing store and shows what arrives."""
        self.client = Client(
            user=self.user,
            device=self.device,
            password=self.password,
            brokers=self.brokers,
            store=self.file,
            start="beginning",
        )
        await self.client.__aenter__()
        self._showing = asyncio.create_task(self._show(self.client))

    async def disconnect(self) -> None:
        """Disconnects; the device's store stays."""
        assert self.client is not None
        assert self._showing is not None
        self._showing.cancel()
        await asyncio.wait([self._showing])
        await self.client.close()
        self.client = None

    async def send_messages(self, count: int) -> None:
        """Sends messages in all conversations at once, in order within each."""
        async with asyncio.TaskGroup() as tasks:
            for conversation in self.conversations:
                tasks.create_task(self._say(conversation, count))

    async def _say(self, conversation: str, count: int) -> None:
        assert self.client is not None
        for _ in range(count):
            self.sent += 1
            name = f"{self.name}:{self.sent}"
            accepted = await self.client.send(conversation, f"{name} says hello", client_msg_id=name)
            self.accepted[conversation, name] = accepted

    async def _show(self, client: Client) -> None:
        async for event in client.events("demo"):
            self.shown.append(event)

    def log(self) -> list[Place]:
        """The contents of the device's store, read without the SDK."""
        query = """SELECT conversation, seq, json_extract(body, '$.id'), sender,
                          json_extract(body, '$.client_msg_id') FROM events ORDER BY conversation, seq"""
        return _read(self.file, query)


def _read(file: Path, query: str) -> list[Place]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return [(c, seq, int(id), sender, name) for c, seq, id, sender, name in connection.execute(query)]


async def main() -> int:
    """Runs the demo. Returns the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="imqtt-demo-") as folder:
        broker = Mosquitto(Path(folder) / "broker")
        await broker.start()
        server = ServerProcess(broker, Path(folder))
        try:
            await server.start()
            say(f"Mosquitto on port {broker.port}, the server is process {server.pid}.")
            actors = await play(broker, server, Path(folder))
            await server.stop()
            faults = audit(actors, Path(folder) / "imqtt.db")
        finally:
            await server.kill()
            await broker.stop()
    say(f"Took {time.monotonic() - began:.0f} s.")
    if faults:
        console.print(f"[bold red]The audit found {faults} faults.")
        return 1
    console.print("[bold green]None lost, none twice, none out of order.")
    return 0


async def play(broker: Mosquitto, server: ServerProcess, folder: Path) -> list[Actor]:
    """Runs the scenario. Returns the devices, all disconnected."""
    names = ("alice@phone", "alice@laptop", "bob@phone", "bob@tablet", "carol@phone")
    actors = [
        Actor(*name.split("@"), folder, broker.passwords.add(name), f"{broker.host}:{broker.port}")
        for name in names
    ]
    tablet = actors[3]
    for actor in actors:
        await actor.connect()
    say(f"{len(actors)} devices of three users are online and exchange messages.")
    await all_talk(actors)

    await tablet.disconnect()
    say("bob@tablet went offline. The others continue.")
    others = [actor for actor in actors if actor is not tablet]
    await all_talk(others)

    talking = asyncio.create_task(all_talk(others))
    before = sum(len(actor.accepted) for actor in actors)
    while sum(len(actor.accepted) for actor in actors) < before + 100:
        await asyncio.sleep(0.001)
    await server.kill()
    stored = sum(len(actor.accepted) for actor in actors)
    unsent = sum(actor.sent - len(actor.accepted) for actor in actors)
    say(f"[bold]kill -9[/] of the server, {stored} messages accepted, {unsent} in flight.")
    await server.start()
    say(f"The server is back as process {server.pid}, and answers the messages that waited.")
    await talking

    await tablet.connect()
    say("bob@tablet is online again and sends its messages.")
    await tablet.send_messages(ROUND)
    for actor in actors:
        await settled(actor, actors)
        await actor.disconnect()
    return actors


async def all_talk(actors: Iterable[Actor]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for actor in actors:
            tasks.create_task(actor.send_messages(ROUND))


async def settled(actor: Actor, actors: Iterable[Actor], within: float = 60.0) -> None:
    """Waits until a device has shown everything; the audit finds events that never arrive."""
    expected = sum(c in actor.conversations for sender in actors for c, _ in sender.accepted)
    deadline = time.monotonic() + within
    while len(actor.shown) < expected and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


def audit(actors: list[Actor], database: Path) -> int:
    """Reads every store, prints the table, and returns the number of faults."""
    query = """SELECT name, seq, id, sender, client_msg_id
               FROM events JOIN conversations ON conversation = number ORDER BY name, seq"""
    stored = _read(database, query)
    accepted = {
        (c, answer.seq, int(answer.id), actor.user, name)
        for actor in actors
        for (c, name), answer in actor.accepted.items()
    }
    table = Table(title="Contents of the stores", title_justify="left")
    for column in ("", "sent", "accepted", "holds", "shown", "lost", "twice", "out of order"):
        table.add_column(column, justify="left" if not column else "right")
    faults = 0
    lost, twice, disorder = len(accepted - set(stored)), _twice(stored), _disorder(stored)
    faults += lost + twice + disorder
    sent = sum(actor.sent for actor in actors)
    table.add_row(
        "server", str(sent), str(len(accepted)), str(len(stored)), "", *map(str, (lost, twice, disorder))
    )
    for actor in actors:
        expected = {place for place in stored if place[0] in actor.conversations}
        held = actor.log()
        shown = [
            (event.conversation, event.seq, int(event.id), event.sender, event.client_msg_id)
            for event in actor.shown
        ]
        lost = len(expected - set(held)) + len(expected - set(shown)) + len(set(held) - expected)
        twice = _twice(held) + _twice(shown)
        disorder = _disorder(held) + _disorder(shown)
        faults += lost + twice + disorder
        numbers = (actor.sent, len(actor.accepted), len(held), len(shown), lost, twice, disorder)
        table.add_row(actor.name, *map(str, numbers))
    console.print(table)
    if sent != len(accepted) or not stored:
        console.print(f"{sent} sent, {len(accepted)} accepted: some messages were not answered.")
        faults += 1
    return faults


def _twice(places: list[Place]) -> int:
    messages = Counter((conversation, sender, name) for conversation, _, _, sender, name in places)
    return sum(count - 1 for count in messages.values())


def _disorder(places: list[Place]) -> int:
    """Events out of order: holes, steps back, and violations of each sender's order."""
    faults = 0
    last: dict[str, int] = defaultdict(int)
    own: dict[tuple[str, str], int] = defaultdict(int)
    for conversation, seq, _, _, name in places:
        faults += seq != last[conversation] + 1
        last[conversation] = seq
        device, _, number = name.rpartition(":")
        faults += int(number) <= own[conversation, device]
        own[conversation, device] = int(number)
    return faults


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


if __name__ == "__main__":
    use_given()
    try:
        sys.exit(asyncio.run(main()))
    except ImqttError as error:
        sys.exit(f"imqtt: {error.reason}")
