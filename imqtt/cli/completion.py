"""Shell completion of the users and devices in the data directory.

It connects to nothing, and ignores unreadable files, because a shell cannot show errors here.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from imqtt.cli.data import DEFAULT, DataDirectory


def for_bash(complete: Callable[[], object]) -> str:
    """Returns the output of `complete` in the form for bash.

    Bash splits `alice@ph` into the words alice, @ and ph, and replaces @ph.
    """
    words = os.environ["COMP_WORDS"].split("\n")
    joined: list[str] = []
    before = ""
    for word in words[: int(os.environ["COMP_CWORD"]) + 1]:
        if joined and "@" in (word, before):
            joined[-1] += word
        else:
            joined.append(word)
        before = word
    kept, at, _ = joined[-1].partition("@")
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        complete()
    offered = out.getvalue()
    if not at or words == joined:
        return offered
    return "".join(f"{line.removeprefix(kept)}\n" for line in offered.splitlines())


def devices(context: typer.Context, incomplete: str) -> list[str]:
    """Devices with a credential that are not on the command line yet."""
    given = context.params.get("names") or ()
    known = (str(device) for device in _directory(context).devices())
    return _starting(incomplete, (name for name in known if name not in given))


def peers(context: typer.Context, incomplete: str) -> list[str]:
    """Users with a device."""
    return _starting(incomplete, (device.user for device in _directory(context).devices()))


def own_users(context: typer.Context, incomplete: str) -> list[str]:
    """Users with a device whose password is saved."""
    return _starting(incomplete, (device.user for device in _directory(context).saved()))


def own_devices(context: typer.Context, incomplete: str) -> list[str]:
    """Devices of the given user, or of all users, whose password is saved."""
    user = context.params.get("user") or ""
    saved = (device for device in _directory(context).saved() if user in ("", device.user))
    return _starting(incomplete, (device.device for device in saved))


def _directory(context: typer.Context) -> DataDirectory:
    given = context.params.get("data") or os.environ.get("IMQTT_DATA") or DEFAULT
    return DataDirectory(Path(given).expanduser())


def _starting(incomplete: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(incomplete)})
