"""Idempotent writes, tried again until the store says what became of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import random
from typing import TypeVar

from imqtt.core.backoff import backoff
from imqtt.stores.base import OutcomeUnknown

log = logging.getLogger(__name__)

T = TypeVar("T")


async def until_known(what: str, write: Callable[[], Awaitable[T]]) -> T:
    """The write's result. Waits for as long as its outcome is unknown; any other error passes through."""
    attempt = 0
    while True:
        try:
            return await write()
        except OutcomeUnknown as error:
            attempt += 1
            log.warning("%s, try %d: %s", what, attempt, error)
            await asyncio.sleep(backoff(attempt, random()))
