"""Questions to the server and their answers, which are matched by `ref`."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import random
from uuid import uuid4

import msgspec

from imqtt.client.settings import Timing
from imqtt.client.uplink import Uplink
from imqtt.client.values import error_of
from imqtt.core.backoff import backoff
from imqtt.model import Hello, History, Page, Rejected, Sync


@dataclass(slots=True)
class _Question:
    asked: dict[str, bool]
    answer: "asyncio.Future[Page | Rejected]" = field(default_factory=asyncio.Future)


class Requests:
    """Asks until there is an answer: a question may get lost, or be served by nobody for a while."""

    def __init__(self, uplink: Uplink, timing: Timing) -> None:
        self._uplink = uplink
        self._timing = timing
        self._questions: dict[str, _Question] = {}

    async def ask(self, command: Hello | Sync | History, place: str) -> Page:
        """The page that answers. Asks again, with growing patience, while there is none or a retryable error.

        `place` is the conversation whose partition is asked. Raises the error of a `Rejected` that is not
        retryable, `NotConnected`, or `mqtt.Lost`.
        """
        ref = uuid4().hex[:16]
        command = msgspec.structs.replace(command, ref=ref)
        cursors = () if isinstance(command, History) else command.cursors
        question = _Question({it.conversation: True for it in cursors if it.seq})
        self._questions[ref] = question
        tries = 0
        try:
            while True:
                # From the second try on to partition 0: the number of partitions may not be what it was.
                await self._uplink.publish(command, place, anywhere=tries > 0)
                tries += 1
                wait = min(self._timing.patience, self._timing.answer * 2.0 ** (tries - 1))
                try:
                    async with asyncio.timeout(wait * (1 + 0.2 * random())):
                        answer = await asyncio.shield(question.answer)
                except TimeoutError:
                    continue
                if isinstance(answer, Page):
                    return answer
                if not answer.retryable:
                    raise error_of(answer)
                question.answer = asyncio.Future()
                await asyncio.sleep(answer.retry_after / 1000 + backoff(tries, random(), cap=30.0))
        finally:
            del self._questions[ref]

    def asked(self, ref: str) -> Mapping[str, bool]:
        """The conversations whose cursors the answer judges: true where no doubt has come since.

        None if nobody waits for the answer any more.
        """
        question = self._questions.get(ref)
        return {} if question is None else dict(question.asked)

    def void(self, conversation: str) -> None:
        """The log begins anew: what has been asked so far speaks of a cursor that it does not have."""
        for question in self._questions.values():
            question.asked.pop(conversation, None)

    def doubt(self, conversation: str) -> None:
        """What has been asked so far may have been answered before what has just made the log doubtful."""
        for question in self._questions.values():
            if conversation in question.asked:
                question.asked[conversation] = False

    def answer(self, frame: Page | Rejected) -> bool:
        """False if nobody waits for it."""
        question = self._questions.get(frame.ref)
        if question is None or question.answer.done():
            return False
        question.answer.set_result(frame)
        return True
