"""Requests to the server and their answers, matched by `ref`."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import random
from typing import Never
from uuid import uuid4

import msgspec

from imqtt.client.settings import Timing
from imqtt.client.transport import Lost, Untaken
from imqtt.client.uplink import Uplink
from imqtt.client.values import error_of
from imqtt.core.backoff import backoff, untaken
from imqtt.errors import ImqttError, NotConnected
from imqtt.model import Hello, History, Page, Rejected, Sync

ARRIVING = 0.5  # seconds between two looks at whether a packet is still arriving


@dataclass(slots=True)
class _Question:
    asked: dict[str, bool]
    waits_since: float  # on `time.monotonic`; infinite if no answer is expected
    resting: bool = False  # the server asked for a pause
    answer: "asyncio.Future[Page | Rejected | None]" = field(default_factory=asyncio.Future)  # None: repeat


class Requests:
    """Repeats each request until it is answered: it may be lost, or its partition may have no owner."""

    def __init__(self, uplink: Uplink, timing: Timing) -> None:
        self._uplink = uplink
        self._timing = timing
        self._questions: dict[str, _Question] = {}
        self._no_subscriber = False  # the last request met no subscriber
        self._heard_at = 0.0  # when the last packet arrived on this connection, or when it began
        self._changed = asyncio.Event()  # a request was made, or the server answers again
        self.is_silent = False  # see `ConnectionState`
        self.silence_changed: Callable[[], None] = lambda: None

    async def ask(self, command: Hello | Sync | History) -> Page:
        """Returns the page that answers. Repeats the command with backoff until then.

        Raises the error of a `Rejected` that is not retryable, or `NotConnected`.
        """
        ref = uuid4().hex[:16]
        command = msgspec.structs.replace(command, ref=ref)
        cursors = () if isinstance(command, History) else command.cursors
        # One conversation's partition may have no owner while all others are served.
        begun = math.inf if isinstance(command, History) else time.monotonic()
        question = _Question({cursor.conversation: True for cursor in cursors if cursor.seq}, begun)
        self._questions[ref] = question
        self._changed.set()
        tries = refusals = 0
        try:
            while True:
                try:
                    # From the second try on to partition 0: the number of partitions may have changed.
                    await self._uplink.publish(command, anywhere=tries + refusals > 0)
                    tries += 1
                    self._no_subscriber = False
                    wait = min(self._timing.patience, self._timing.answer * 2.0 ** (tries - 1))
                    wait *= 1 + 0.2 * random()
                except Untaken:
                    refusals += 1
                    self._no_subscriber = True
                    wait = untaken(refusals, random(), most=self._timing.untaken)
                try:
                    answer = await self._answer(question, wait)
                except TimeoutError:
                    continue
                if isinstance(answer, Page):
                    return answer
                question.answer = asyncio.Future()
                if answer is None:
                    tries = refusals = 0
                    continue
                if not answer.retryable:
                    raise error_of(answer)
                question.resting, question.waits_since = True, math.inf
                await asyncio.sleep(answer.retry_after / 1000 + backoff(max(tries, 1), random(), cap=30.0))
                question.resting, question.waits_since = False, max(begun, time.monotonic())
                self._changed.set()
        finally:
            del self._questions[ref]

    async def _answer(self, question: _Question, wait: float) -> Page | Rejected | None:
        """Raises `TimeoutError` if no answer came within `wait` seconds and none is arriving.

        On a slow link, repeating the request while a page arrives would double the traffic and slow it
        further. A packet that stops halfway ends with its connection, by the keep-alive at the latest.
        """
        while True:
            try:
                async with asyncio.timeout(wait):
                    return await asyncio.shield(question.answer)
            except TimeoutError:
                if not self._uplink.is_receiving:
                    raise
                wait = ARRIVING

    def renew(self) -> None:
        """The server has welcomed the device: repeats the open requests of earlier connections at once."""
        for question in self._questions.values():
            if not question.answer.done() and not question.resting:
                question.answer.set_result(None)

    def heard(self) -> None:
        """A packet has arrived on this connection."""
        self._heard_at = time.monotonic()
        self._set_silent(False)

    async def check_idle(self) -> None:
        """Sends a request if the server was idle for a while, so that its silence is noticed."""
        while self._timing.idle:
            wait = self._heard_at + self._timing.idle - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            try:
                await self.ask(Sync())
            except NotConnected:
                raise
            except ImqttError:  # an answer too
                await asyncio.sleep(self._timing.idle)

    async def listen(self) -> Never:
        """Runs during a connection. Raises `Lost` if a request is open and nothing at all arrives.

        The broker may be fine but have no server, or the subscription may be lost.
        """
        self._heard_at = time.monotonic()
        silence = self._timing.silence * (1 + 0.2 * random())
        while True:
            asked_at = min((question.waits_since for question in self._questions.values()), default=math.inf)
            silent_for = time.monotonic() - max(asked_at, self._heard_at)  # less than 0 without open requests
            if silent_for >= silence:
                why = "; no imqtt server has connected to the broker yet" if self._no_subscriber else ""
                raise Lost(f"no packet from the server in {silence:.0f} s{why}")
            doubtful = silent_for >= self._timing.answer
            if doubtful and not self._uplink.is_receiving:
                self._set_silent(True)
            if doubtful and not self.is_silent:
                left = ARRIVING
            else:
                left = (silence if doubtful else min(silence, self._timing.answer)) - silent_for
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if asked_at == math.inf else left):
                    await self._changed.wait()

    def _set_silent(self, silent: bool) -> None:
        if silent != self.is_silent:
            self.is_silent = silent
            self._changed.set()
            self.silence_changed()

    def asked(self, ref: str) -> Mapping[str, bool]:
        """The conversations whose cursors an awaited answer judges; true if no doubt arose since."""
        question = self._questions.get(ref)
        return {} if question is None else dict(question.asked)

    def revise(self, doubted: set[str], voided: set[str]) -> None:
        """Open requests may have been answered before a log was doubted, or judge a cursor that is void."""
        for question in self._questions.values():
            question.asked.update(dict.fromkeys(doubted & question.asked.keys(), False))
            for conversation in voided & question.asked.keys():
                del question.asked[conversation]

    def answer(self, frame: Page | Rejected) -> bool:
        """False if nobody waits for it."""
        question = self._questions.get(frame.ref)
        if question is None or question.answer.done():
            return False
        question.answer.set_result(frame)
        return True
