"""The system user as which the broker runs if root starts it."""

import contextlib
import logging
import os
import pwd
import re
from dataclasses import dataclass, field
from pathlib import Path

from imqtt.errors import SetupError

log = logging.getLogger(__name__)

PACKAGED = ("mosquitto", "_mosquitto")  # created by packages of Mosquitto
NOBODY = 65_534  # in a container without a user database

# CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID (capabilities(7)). Root needs them to give files to
# another user, to read that user's files and signal its processes, and to become that user. A container may
# withhold them.
_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 5, 6, 7))


@dataclass(frozen=True, slots=True)
class SystemUser:
    name: str
    uid: int
    gid: int
    groups: list[int] = field(default_factory=list)


def broker_user(name: str = "") -> SystemUser | None:
    """The user that a broker started by this process should become; None: the user of this process.

    `name` is the operator's choice. Without one, root becomes Mosquitto's own user, or else `nobody`. If root
    lacks the capabilities, as in some containers, it remains itself, with a warning. Raises `SetupError` if
    the choice is impossible.
    """
    own = os.geteuid()
    if not name and own != 0:
        return None
    user = _named(name) if name else _default()
    if user.uid == own:
        return None
    if own != 0:
        raise SetupError(f"only root can run Mosquitto as {name}")
    if reason := _obstacle(user):
        if name:
            raise SetupError(f"Mosquitto cannot run as {name}: {reason}")
        log.warning("Mosquitto runs as %s: %s", own_name(), reason)
        return None
    return user


def own_name() -> str:
    """The name of this process's user, or the number if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _named(name: str) -> SystemUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise SetupError(f"there is no user {name!r} on this machine") from None
    return SystemUser(name, entry.pw_uid, entry.pw_gid, os.getgrouplist(name, entry.pw_gid))


def _default() -> SystemUser:
    for name in (*PACKAGED, "nobody"):
        with contextlib.suppress(SetupError):
            return _named(name)
    return SystemUser(str(NOBODY), NOBODY, NOBODY)


def _obstacle(user: SystemUser) -> str:
    """Why root cannot become this user; empty if it can."""
    try:
        status = Path("/proc/self/status").read_text()
        users, groups = (Path(f"/proc/self/{kind}_map").read_text() for kind in ("uid", "gid"))
    except OSError:  # not Linux
        return ""
    capabilities = int(re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE).group(1), 16)  # type: ignore[union-attr]
    if capabilities & _CAPABILITIES != _CAPABILITIES:
        return "root lacks the capabilities to change owners of files and to become another user"
    if not (_is_mapped(user.uid, users) and _is_mapped(user.gid, groups)):
        return f"this user namespace has no user {user.name} (user_namespaces(7))"
    return ""


def _is_mapped(number: int, ranges: str) -> bool:
    starts = (line.split() for line in ranges.splitlines())
    return any(int(start) <= number < int(start) + int(count) for start, _, count in starts)
