"""A device without the SDK: a process that records what it did, with any MQTT client and JSON text.

`python -m tests.verification.chaos.plain_device`, with a `Plan` on stdin. It does what topics.md requires and
no more. Of imqtt it uses only an MQTT link, as an independent implementation of the protocol. Unanswered
messages are lost with the process.
"""

import asyncio
import contextlib
import json
import logging
import zlib
from dataclasses import dataclass
from random import uniform
from typing import Any
from uuid import uuid4

from imqtt.broker.errors import LinkError
from imqtt.broker.link import Link, LinkSettings, Packet, Will, connect
from tests.verification.chaos.console import Console, Started, run_device, until_one_ends
from tests.verification.chaos.journal import Journal
from tests.verification.chaos.journal import Message as Sent
from tests.verification.checker.history import Row, now, recall_of

TICK = 0.1
ANSWER_WITHIN = 3.0  # seconds for the first try; topics.md suggests 10, but a run is short
PATIENCE = 12.0  # upper bound for later tries
CONNECTED_WITHIN = 5.0
PUBACK_WITHIN = 8.0

log = logging.getLogger("plain")

Frame = dict[str, Any]


@dataclass(slots=True)
class Open:
    """An unanswered message. `due`: when it is sent again or given up."""

    sent: Sent
    again: bool
    due: float
    tries: int = 1


class PlainDevice:
    """One run of the device's process."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan = console.plan
        self._journal = Journal(self._plan)
        self._link: Link | None = None
        self._connected = asyncio.Event()
        self._welcomed = asyncio.Event()  # on the present connection
        self._nonce = ""
        self._hello_due = 0.0  # when it is sent again unless answered
        self._partitions = 0
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._open: dict[str, Open] = {}  # by name
        self._heads: dict[str, int] = {}  # the newest known seq by conversation
        self._pages: dict[str, asyncio.Future[Frame]] = {}  # by ref
        self._reported: object = None

    async def run(self) -> None:
        """Runs until told to finish, or until stdin is closed."""
        self._journal.start(ordered=False, durable=False)
        self._console.report(Started())
        await until_one_ends(self._stay_connected, self._send, self._tick, self._execute_orders)

    async def _execute_orders(self) -> None:
        await self._console.execute_orders(self._may_send, self._settle, self._replay)
        if self._console.is_finished:
            self._console.done("finish", await self._finish())

    # --- the connection

    async def _stay_connected(self) -> None:
        tries = 0
        while True:
            try:
                await self._connect()
                tries = 0
                await self._receive()
            except (LinkError, OSError, TimeoutError) as error:
                log.info("no connection: %s", error)
            finally:
                self._connected.clear()
                self._welcomed.clear()
                if self._link is not None:
                    self._link.abort()
                self._link = None
            tries += 1
            await asyncio.sleep(uniform(0.5, 1.0) * min(3.0, 0.2 * 2.0**tries))

    async def _connect(self) -> None:
        name, nonce = self._plan.process, uuid4().hex
        self._nonce = nonce
        broker = self._plan.brokers[self._journal.random.randrange(len(self._plan.brokers))]
        host, _, port = broker.rpartition(":")
        will = {"type": "status", "state": "offline", "nonce": nonce}
        settings = LinkSettings(
            host, int(port), client_id=name, username=name, password=self._plan.password, clean_start=True,
            keep_alive=5, timeout=3.0, will=Will(self._topic(f"u:{self._plan.user}"), _text(will)),
        )  # fmt: skip
        self._link = await connect(settings)
        await self._link.subscribe(f"imqtt/{name}/down")
        self._say_hello()
        self._connected.set()

    def _say_hello(self) -> None:
        """Repeated until answered: a broker that lost its state has no subscribers for a while."""
        hello = {"type": "hello", "nonce": self._nonce, "platform": "plain"}
        self._hello_due = now() + ANSWER_WITHIN
        self._publish(hello, f"u:{self._plan.user}")

    async def _receive(self) -> None:
        link = self._link
        assert link is not None
        while True:
            for received in await link.receive(1_000):
                for frame in json.loads(received.payload)["frames"]:
                    self._take(frame)
                link.ack(received)

    def _topic(self, place: str) -> str:
        known = self._partitions and not self._plan.detour
        partition = zlib.crc32(place.encode()) % self._partitions if known else 0
        return f"imqtt/{self._plan.process}/up/{partition}"

    def _publish(self, command: Frame, place: str) -> "asyncio.Future[list[int]] | None":
        """The future of its PUBACK's reason code; None without a connection."""
        if self._link is None or self._link.closed is not None:
            return None
        return self._link.publish([Packet(self._topic(place), _text(command))])

    # --- sending

    async def _send(self) -> None:
        journal, plan = self._journal, self._plan
        if not (plan.rate and plan.conversations):
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(journal.random.uniform(0.5, 1.5) / plan.rate)
            await self._may_send.wait()
            await self._connected.wait()  # the broker queues it for a server that is down
            if len(self._open) < plan.max_unanswered:
                sent = journal.compose(journal.random.choice(plan.conversations))
                again = journal.random.random() < plan.resend
                wait = ANSWER_WITHIN if again else plan.patience
                self._open[sent.name] = Open(sent, again, now() + wait)
                self._send_out(sent)

    def _send_out(self, sent: Sent) -> "asyncio.Future[list[int]] | None":
        """Sends for the first time or again, always the same bytes."""
        self._journal.invoke(sent)
        command = {
            "type": "send", "conversation": sent.conversation, "client_msg_id": sent.name,
            "content": {"text": sent.value},
        }  # fmt: skip
        puback = self._publish(command, sent.conversation)
        if puback is not None:
            puback.add_done_callback(lambda done: self._acked(sent, done))
        return puback

    def _acked(self, sent: Sent, puback: "asyncio.Future[list[int]]") -> None:
        if _is_success(puback):
            self._journal.queue(sent)

    async def _replay(self, count: int) -> int:
        """Publishes old messages again once connected; returns how many the broker acked."""
        try:
            async with asyncio.timeout(CONNECTED_WITHIN):
                await self._connected.wait()
        except TimeoutError:
            return 0
        known = [
            message for name, message in self._journal.messages.items() if name not in self._journal.failed
        ]
        more = self._journal.random.choices(known, k=max(0, count - len(known))) if known else []
        chosen = self._journal.random.sample(known, min(count, len(known))) + more
        pubacks = [puback for sent in chosen if (puback := self._send_out(sent)) is not None]
        if not pubacks:
            return 0
        done, _ = await asyncio.wait(pubacks, timeout=PUBACK_WITHIN)
        return sum(map(_is_success, done))

    async def _tick(self) -> None:
        journal = self._journal
        while True:
            await asyncio.sleep(TICK)
            if journal.progress != self._reported:
                self._reported = journal.progress
                self._console.report(journal.progress)
            if self._connected.is_set() and not self._welcomed.is_set() and self._hello_due <= now():
                self._say_hello()
            for open in list(self._open.values()):
                if open.due <= now():
                    self._answer_overdue(open)
            if self._heads and journal.random.random() < TICK * self._plan.marks and self._may_send.is_set():
                conversation = journal.random.choice(list(self._heads))
                mark = {"type": "mark", "conversation": conversation, "read": self._heads[conversation]}
                self._publish(mark, conversation)

    def _answer_overdue(self, open: Open) -> None:
        if not open.again:
            del self._open[open.sent.name]
            self._journal.info(open.sent, "no answer")
        elif self._connected.is_set():
            open.due = now() + min(PATIENCE, ANSWER_WITHIN * 2.0**open.tries) * uniform(1.0, 1.2)
            open.tries += 1
            self._send_out(open.sent)

    # --- receiving

    def _take(self, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "accepted":
            conversation, name, seq = frame["conversation"], frame["client_msg_id"], frame["seq"]
            self._journal.ok(conversation, name, seq, int(frame["id"]))
            self._open.pop(name, None)
            self._heads[conversation] = max(seq, self._heads.get(conversation, 0))
        elif kind == "event":
            conversation = frame["conversation"]
            self._heads[conversation] = max(frame["seq"], self._heads.get(conversation, 0))
        elif kind == "welcome":
            self._partitions = frame["partitions"]
            self._welcomed.set()
        elif kind == "page":
            page = self._pages.get(frame.get("ref", ""))
            if page is not None and not page.done():
                page.set_result(frame)
        elif kind == "rejected":
            self._take_rejection(frame)

    def _take_rejection(self, frame: Frame) -> None:
        name = frame.get("client_msg_id", "")
        open = self._open.get(name)
        if not name:
            log.warning("a %s is rejected: %s: %s", frame.get("command"), frame["code"], frame["reason"])
        elif not frame.get("retryable"):
            self._journal.fail(frame["conversation"], name, frame["code"])
            self._open.pop(name, None)
        elif open is not None:
            # The server is done with it, so the device decides what happens next.
            self._journal.info(open.sent, frame["code"], answered=True)
            if open.again:
                open.due = now() + frame.get("retry_after", 0) / 1000 + uniform(0.2, 1.0)
            else:
                del self._open[name]

    async def _ask(self, command: Frame) -> Frame:
        """Asks until a page answers."""
        ref = uuid4().hex
        self._pages[ref] = asyncio.get_running_loop().create_future()
        try:
            while True:
                await self._welcomed.wait()
                self._publish({**command, "ref": ref}, f"u:{self._plan.user}")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_WITHIN):
                        return await asyncio.shield(self._pages[ref])
        finally:
            del self._pages[ref]

    # --- the end

    async def _settle(self) -> None:
        """Reports when all messages are answered or given up, and there is a connection."""
        while self._open:
            await asyncio.sleep(TICK)
        await self._welcomed.wait()
        self._console.done("settle")

    async def _finish(self) -> int:
        """Fetches all conversations from the first event on, and records them."""
        self._may_send.clear()
        for open in self._open.values():
            self._journal.info(open.sent, "the device ends")
        self._open.clear()
        conversations = await self._conversations()
        for conversation in conversations:
            self._journal.hold(conversation, 0, await self._whole(conversation))
        if self._link is not None:
            with contextlib.suppress(LinkError, OSError):
                await self._link.close()
        return len(conversations)

    async def _conversations(self) -> list[str]:
        found: set[str] = set()
        before = "0"
        while True:
            page = await self._ask({"type": "sync", "heads": True, "heads_before": before})
            found |= {head["conversation"] for head in page.get("heads", ())}
            before = page.get("more_heads", "0")
            if before == "0":
                return sorted(found)

    async def _whole(self, conversation: str) -> tuple[Row, ...]:
        rows: list[Row] = []
        while True:
            seq, id = (rows[-1].seq, rows[-1].id) if rows else (0, 0)
            cursor = {"conversation": conversation, "seq": seq, "id": str(id)}
            page = await self._ask({"type": "sync", "cursors": [cursor]})
            slices = [slice_ for slice_ in page.get("slices", ()) if slice_["conversation"] == conversation]
            part: Frame = slices[0] if slices else {}
            if part.get("restart"):
                rows.clear()
            rows += map(_row, part.get("events", ()))
            if not (part.get("more") or page.get("more")):
                return tuple(rows)


def _is_success(puback: "asyncio.Future[list[int]]") -> bool:
    """Whether the code is Success. 0x10: there was no subscriber, and the broker dropped the message."""
    return not puback.cancelled() and puback.exception() is None and puback.result()[0] == 0


def _text(command: Frame) -> bytes:
    return json.dumps(command, separators=(",", ":")).encode()


def _row(event: Frame) -> Row:
    value = event["content"].get("text", "")
    if "recall" in event:
        target = event["recall"]["target"]
        value = recall_of(target["seq"], int(target["id"]))
    return Row(event["seq"], int(event["id"]), event["sender"], event["client_msg_id"], value)


if __name__ == "__main__":
    run_device(PlainDevice)
