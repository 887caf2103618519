"""Reading from stdin."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import BinaryIO

from imqtt.errors import SetupError

CHUNK = 65_536


def stdin_bytes() -> bytes:
    """Reads stdin to its end. Raises `SetupError`."""
    try:
        return _stdin().read()
    except OSError as error:
        raise SetupError(f"cannot read stdin: {error.strerror}") from error


async def lines_of_stdin() -> AsyncIterator[bytes]:
    """Yields each line as soon as it is complete. Waiting blocks neither the connection nor Ctrl-C."""
    rest = b""
    while chunk := await _chunk():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


async def _chunk() -> bytes:
    stdin = _stdin()
    try:
        number = stdin.fileno()
    except OSError:  # not a file, if a program has replaced sys.stdin
        return stdin.read(CHUNK)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(number, readable.set)
    except PermissionError:
        pass  # a regular file is always readable
    else:
        try:
            await readable.wait()
        finally:
            loop.remove_reader(number)
    try:
        return os.read(number, CHUNK)
    except OSError as error:
        raise SetupError(f"cannot read stdin: {error.strerror}") from error


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise SetupError("stdin is closed")
    return sys.stdin.buffer
