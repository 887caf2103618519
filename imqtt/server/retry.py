"""Retrying idempotent writes until their outcome is known."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import random
from typing import TypeVar

from imqtt.core.backoff import backoff
from imqtt.problems import explain
from imqtt.server.problems import Problems
from imqtt.stores.base import OutcomeUnknown

log = logging.getLogger(__name__)

T = TypeVar("T")


async def until_known(what: str, write: Callable[[int], Awaitable[T]], problems: Problems) -> tuple[T, int]:
    """Returns the result of `write` and the number of attempts, from 1 on, which is also its argument.

    Retries while the outcome is unknown; any other error passes through.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            result = await write(attempt)
        except OutcomeUnknown as error:
            problems.store.start(explain(error), what)
            log.debug("%s, try %d: %s", what, attempt, error)
            await asyncio.sleep(backoff(attempt, random()))
        else:
            if attempt > 1:
                problems.store.end(what)
            return result, attempt
