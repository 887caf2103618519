"""Every example of topics.md, in the order of the page, against a real broker and server.

The page's ids and times stand for the observed ones, each for one value throughout. Presence may arrive at
any time, so only the presence that the page shows is expected.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiomqtt
import pytest

from imqtt.config import ServerConfig
from imqtt.errors import ImqttError
from imqtt.mosquitto.broker import INTERNAL_HOST, Mosquitto
from imqtt.mosquitto.passwords import SERVER_ACCOUNT
from imqtt.protocol import Format, decode_frames, encode_frame, format_of, join
from imqtt.server.app import Server
from imqtt.serving import serving
from tests.protocol import topics_page
from tests.protocol.topics_page import Example, as_protobuf, frames_of
from tests.services import WITHIN, eventually

STANDS_FOR = {"id", "previous", "more_heads", "heads_before", "time", "last_seen"}

Json = object


class Placeholders:
    """The observed ids and times that the page's ones stand for, learned as they arrive."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Json], Json] = {}

    def filled_in(self, text: str) -> str:
        """The example with observed ids in place of the page's."""
        ids = {page: seen for (name, page), seen in self._seen.items() if name == "id"}
        return re.sub(r'(?<="id":")\d+(?=")', lambda match: str(ids.get(match[0], match[0])), text)

    def difference(self, page: Json, seen: Json, at: str = "") -> str:
        """The first difference between what was observed and the page; "" if there is none."""
        name = at.rpartition(".")[2]
        if name in STANDS_FOR and page not in ("0", 0) and type(page) is type(seen):
            # `previous` names an event that was or will be observed.
            known = self._seen.setdefault(("id" if name == "previous" else name, page), seen)
            return "" if known == seen else f"{at}: {page} stood for {known}, and now for {seen}"
        if name == "reason" and page == "…":
            return "" if isinstance(seen, str) and seen else f"{at}: no reason"
        if isinstance(page, dict) and isinstance(seen, dict):
            if page.keys() != seen.keys():
                return f"{at}: has {sorted(seen)}, not {sorted(page)}"
            differences = (self.difference(page[key], seen[key], f"{at}.{key}") for key in page)
        elif isinstance(page, list) and isinstance(seen, list):
            if len(page) != len(seen):
                return f"{at}: has {len(seen)} entries, not {len(page)}"
            pairs = zip(page, seen, strict=True)
            differences = (self.difference(a, b, f"{at}[{n}]") for n, (a, b) in enumerate(pairs))
        else:
            return "" if page == seen else f"{at}: {seen!r}, not {page!r}"
        return next(filter(None, differences), "")


class Phone:
    """One device of the page: a stock MQTT client and its frames that are not compared yet."""

    def __init__(self, client: aiomqtt.Client, format: Format) -> None:
        self.client = client
        self.frames: asyncio.Queue[dict[str, Json]] = asyncio.Queue()
        self._format = format
        self._reader = asyncio.create_task(self._read())

    async def expect(self, wanted: list[dict[str, Json]], stand: Placeholders, place: str) -> None:
        """Takes the next frames, which must be the expected ones; skips other presence."""
        for frame in wanted:
            difference = "no frame arrived"
            try:
                async with asyncio.timeout(WITHIN):
                    while True:
                        seen = await self.frames.get()
                        difference = stand.difference(frame, seen)
                        if not difference:
                            break
                        if seen["type"] != "presence":
                            pytest.fail(f"{place}: {difference}\n  page: {frame}\n  seen: {seen}")
            except TimeoutError:
                pytest.fail(f"{place}: {difference} instead of {frame}")

    def rest(self) -> list[dict[str, Json]]:
        """Frames that were not expected."""
        frames = [self.frames.get_nowait() for _ in range(self.frames.qsize())]
        return [frame for frame in frames if frame["type"] != "presence"]

    def drop_out(self) -> None:
        """Breaks the connection without a DISCONNECT."""
        connection = self.client._client.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            async for message in self.client.messages:
                assert isinstance(message.payload, bytes)
                assert format_of(message.payload) is self._format
                for frame in frames_of(as_json(message.payload)):
                    self.frames.put_nowait(frame)


class Subscriber:
    """A `mosquitto_sub -C 1 &`: subscribed when started, ends after one message."""

    def __init__(self, words: list[str]) -> None:
        self._words = [*words, "-d"]
        self._lines = asyncio.StreamReader()

    async def start(self) -> None:
        # It writes to a terminal: on a pipe, its lines would appear only when it ends.
        terminal, self._end = os.openpty()
        self._process = await _run(self._words, stdout=self._end)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._lines), os.fdopen(terminal, "rb", buffering=0)
        )
        await self.line("Subscribed")

    async def line(self, beginning: str) -> str:
        """The next line with this prefix."""
        async with asyncio.timeout(WITHIN):
            while True:
                line = (await self._lines.readline()).decode()
                if line.startswith(beginning):
                    return line

    async def received(self) -> str:
        packet = await self.line("{")
        await self._process.wait()
        self._transport.close()
        os.close(self._end)  # only now: reading a terminal that no process has open fails
        return packet


class Reader:
    """Follows the page on a broker."""

    def __init__(
        self, broker: Mosquitto, page: list[Example], format: Format, version: aiomqtt.ProtocolVersion
    ) -> None:
        self._broker = broker
        self._format = format
        self._version = version
        self._wills = {example.device: example for example in page if example.what == "will"}
        self._phones: dict[str, Phone] = {}
        self._variables: dict[str, str] = {}  # of the console
        self._stack = AsyncExitStack()
        self.stand = Placeholders()

    async def follow(self, example: Example) -> None:
        """Executes the example and compares what arrives."""
        if example.what == "up":
            phone = await self._phone(example.device)
            topic = f"imqtt/{example.device}/up/{example.partition}"
            await phone.client.publish(topic, self._payload(example), qos=1)
        elif example.what == "down":
            phone = await self._phone(example.device)
            await phone.expect(frames_of(example.payload), self.stand, example.place)
        elif example.what == "drops out":
            (await self._phone(example.device)).drop_out()
        elif example.what == "console":
            await self._console(example)

    async def close(self) -> None:
        """Checks that nothing else arrived."""
        unread = {name: rest for name, phone in self._phones.items() if (rest := phone.rest())}
        with contextlib.suppress(aiomqtt.MqttError):
            await self._stack.aclose()
        assert not unread

    def _payload(self, example: Example) -> bytes:
        if example.raw:
            return example.payload
        text = self.stand.filled_in(example.text).rstrip("\n")
        if self._format is Format.JSON:
            return text.encode()
        try:
            return as_protobuf(Example(example.line, example.what, text=text))
        except ImqttError:  # an example of a rejection
            return text.encode()

    async def _phone(self, name: str) -> Phone:
        if (known := self._phones.get(name)) is not None:
            return known
        will = None
        if (last := self._wills.get(name)) is not None:
            will = aiomqtt.Will(f"imqtt/{name}/up/{last.partition}", self._payload(last), qos=1)
        client = aiomqtt.Client(
            self._broker.host,
            self._broker.port,
            username=name,
            password=self._broker.passwords.add(name),
            protocol=self._version,
            will=will,
        )
        await self._stack.enter_async_context(client)
        await client.subscribe(f"imqtt/{name}/down", qos=1)
        phone = self._phones[name] = Phone(client, self._format)
        self._stack.push_async_callback(phone.close)
        return phone

    async def _console(self, example: Example) -> None:
        """Runs the commands; their output, in the order in which they end, must be the page's.

        `mosquitto_rr` prints whatever arrives first. A person does not run the next command within the
        quarter of a second in which the others are told that a new user is online.
        """
        lines = example.text.splitlines()
        shown = [frames_of(line.encode()) for line in lines if not line.startswith("$ ")]
        background: list[Subscriber] = []
        printed: list[str] = []
        online: set[str] = set()
        async with self._presence_told() as told:
            for line in (line.removeprefix("$ ") for line in lines if line.startswith("$ ")):
                command = self._filled(line.removesuffix(" &"))
                if assignment := re.fullmatch(r'([A-Z]+)="(.*)"', command):
                    self._variables[assignment[1]] = assignment[2]
                elif line.endswith(" &"):
                    background.append(Subscriber(shlex.split(command)))
                    await background[-1].start()
                else:
                    printed += await _output(await _run(shlex.split(command)), example)
                    (device,) = re.findall(r"-u (\S+)", command)
                    if device not in online:
                        user = device.partition("@")[0]
                        await eventually(lambda user=user: {(other, user) for other in online} <= told)
                        online.add(device)
        printed += [await subscriber.received() for subscriber in background]
        assert len(printed) == len(shown), f"{example.place}: printed {printed}"
        for page, seen in zip(shown, printed, strict=True):
            if difference := self.stand.difference(page, frames_of(seen.encode())):
                pytest.fail(f"{example.place}: {difference}\n  seen: {seen}")

    @contextlib.asynccontextmanager
    async def _presence_told(self) -> AsyncIterator[set[tuple[str, str]]]:
        """Each device that has been told of a presence, and of whose."""
        told: set[tuple[str, str]] = set()

        async def watch() -> None:
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                device = message.topic.value.split("/")[1]
                for frame in frames_of(as_json(message.payload)):
                    if frame["type"] == "presence":
                        told.add((device, str(frame["user"])))

        async with aiomqtt.Client(
            INTERNAL_HOST,
            self._broker.internal_port,
            username=SERVER_ACCOUNT,
            password=self._broker.server_password,
        ) as client:
            await client.subscribe("imqtt/+/down")
            watching = asyncio.create_task(watch())
            yield told
            watching.cancel()
            await asyncio.wait([watching])

    def _filled(self, line: str) -> str:
        """The line with this broker's address and variables; creates its account."""
        line = line.replace("-h localhost -p 1883", f"-h {self._broker.host} -p {self._broker.port}")
        line = re.sub(r"\$([A-Z]+)", lambda match: self._variables[match[1]], line)
        for name, password in re.findall(r"-u (\S+) -P (\S+)", line):
            if not self._broker.passwords.holds(name, password):
                self._broker.passwords.add(name, password)
        return line


async def _output(process: asyncio.subprocess.Process, example: Example) -> list[str]:
    """The packets that the command printed."""
    async with asyncio.timeout(WITHIN):
        out, _ = await process.communicate()
    assert process.returncode == 0, f"{example.place}: {out.decode()}"
    return [line for line in out.decode().splitlines() if line.startswith("{")]


async def _run(words: list[str], stdout: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    environment = os.environ | {"HOME": "/nonexistent"}  # no options from the user's configuration
    return await asyncio.create_subprocess_exec(
        *words, stdout=stdout, stderr=asyncio.subprocess.STDOUT, env=environment
    )


def as_json(payload: bytes) -> bytes:
    """A packet in JSON form."""
    if format_of(payload) is Format.JSON:
        return payload
    return join([encode_frame(frame, Format.JSON) for frame in decode_frames(payload)], Format.JSON)


@pytest.fixture
async def running(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Server]:
    config = ServerConfig(
        broker_port=broker.internal_port,
        broker_password=broker.server_password,
        store=f"sqlite:///{tmp_path / 'imqtt.db'}",
    )
    async with serving(config) as server:
        yield server


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("format", "version"),
    [(Format.JSON, aiomqtt.ProtocolVersion.V311), (Format.PROTOBUF, aiomqtt.ProtocolVersion.V5)],
    ids=["JSON over MQTT 3.1.1", "protobuf over MQTT 5"],
)
async def test_every_example_of_the_page_is_correct(
    broker: Mosquitto, format: Format, version: aiomqtt.ProtocolVersion
) -> None:
    page = topics_page.examples(topics_page.PAGE.read_text())
    reader = Reader(broker, page, format, version)
    for example in page:
        await reader.follow(example)
    await reader.close()


def test_the_comparison_detects_differences() -> None:
    """The test above depends on this."""
    stand = Placeholders()
    page = {"type": "accepted", "seq": 1, "id": "11", "reason": "…"}
    assert stand.difference(page, {"type": "accepted", "seq": 1, "id": "99", "reason": "because"}) == ""
    assert stand.difference(page, {"type": "accepted", "seq": 1, "id": "98", "reason": "because"})
    assert stand.difference(page, {"type": "accepted", "seq": 2, "id": "99", "reason": "because"})
    assert stand.difference(page, {"type": "accepted", "seq": 1, "id": "99", "reason": ""})
    assert stand.difference(page, {"type": "accepted", "seq": 1, "id": "99"})
    assert stand.difference({"previous": "11"}, {"previous": "99"}) == ""
    assert stand.difference({"previous": "11"}, {"previous": "98"})
    assert stand.difference([page], [])
    assert json.loads(stand.filled_in('{"id":"11"}')) == {"id": "99"}
