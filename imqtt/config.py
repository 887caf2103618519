"""The server's settings, read once into one frozen value.

Each setting is defined here and nowhere else: its flag is `--broker-host` for `broker_host`, its
environment variable `IMQTT_BROKER_HOST`, its line in a file of settings `broker_host = "..."`, its help the
text beside it.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imqtt.errors import SetupError

# The options of a URL that are secrets themselves, or hold one: a key file's password, a session's token.
SECRET_OPTION = re.compile(
    r"([?&][^=&]*(?:password|token|authMechanismProperties)[^=&]*=)[^&]*", re.IGNORECASE
)


def _setting(default: Any, help: str, *, secret: bool = False, address: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "secret": secret, "address": address})


@dataclass(frozen=True, slots=True, repr=False)
class ServerConfig:
    """What a server process needs to know. Sizes in bytes, times in seconds."""

    broker_host: str = _setting("127.0.0.1", "Mosquitto's internal listener: host")
    broker_port: int = _setting(1884, "Mosquitto's internal listener: port")
    broker_username: str = _setting("imqtt-server", "the server's account on the broker")
    broker_password: str = _setting("", "its password", secret=True)
    broker_ca: str = _setting(
        "", "PEM file with the authorities that sign the broker's certificate; enables TLS"
    )
    broker_certificate: str = _setting("", "PEM file with the server's own certificate, for mutual TLS")
    broker_key: str = _setting("", "PEM file with the key of that certificate")
    store: str = _setting(
        "sqlite:///imqtt.db", "where events are kept: sqlite:///path, mongodb://host/name", address=True
    )
    store_password: str = _setting("", "MongoDB's password, in place of one in the address", secret=True)
    mongo_driver: str = _setting("pymongo", "what speaks to MongoDB: pymongo, or motor")
    state: str = _setting(
        "memory:",
        "where seen ids, device lists, presence and workers are kept: memory:, redis://host:port/0",
        address=True,
    )
    state_password: str = _setting("", "Redis's password, in place of one in the address", secret=True)
    workers: int = _setting(1, "processes on this machine; more than one need MongoDB and Redis")
    worker_ttl: int = _setting(2, "a worker that has not shown itself for so long is taken for dead")
    partitions: int = _setting(0, "of a store that is created; fixed from then on, 0: its own, else 16")
    health: str = _setting("", "address of a health page over HTTP: host:port; empty: none")
    max_content: int = _setting(65_536, "largest content of a message")
    max_command: int = _setting(262_144, "largest command")
    max_packet: int = _setting(262_144, "largest packet to a device that did not say less in `Hello`")
    device_rate: int = _setting(1_000, "messages a second that one device may send, sustained")
    device_burst: int = _setting(4_000, "messages that one device may send at once")
    max_batch: int = _setting(500, "commands that are decided together, at most")
    conversations_cached: int = _setting(
        100_000, "heads of conversations kept in memory, over all partitions"
    )
    reads_at_once: int = _setting(4, "`Sync` and `History` served at the same time")
    reads_waiting: int = _setting(2_000, "`Sync` and `History` waiting; further ones are rejected as busy")
    presence_ttl: int = _setting(300, "a device that says nothing for so long is taken for offline")
    clock_tolerance: int = _setting(60, "how far ids may run ahead of a clock that stepped back")

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], file: "SettingsFile | None" = None, **given: Any
    ) -> "ServerConfig":
        """Settings `given` (a None counts as not given), else from `IMQTT_…`, else `file`, else the defaults.

        Raises `SetupError` for a value that is not of the setting's type, or too small.
        """
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            value: Any = given.get(setting.name)
            if value is None:
                value = environment.get(setting.variable)
            if value is None and file is not None:
                value = file.settings.get(setting.name)
            if value is not None:
                values[setting.name] = _checked(setting, value)
        return cls(**values)

    def __repr__(self) -> str:
        shown: list[str] = []
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            if not setting.secret:
                shown.append(f"{setting.name}={(redacted(value) if setting.address else value)!r}")
        return f"ServerConfig({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of `ServerConfig`: what it is called, and what may stand there."""

    name: str
    default: str | int
    help: str
    secret: bool
    address: bool  # a URL, in which a password may stand

    @property
    def number(self) -> bool:
        return isinstance(self.default, int)

    @property
    def least(self) -> int:
        """Of a number. 0 only where that is the default: there it says that nothing is asked for."""
        return 0 if self.default == 0 else 1

    @property
    def variable(self) -> str:
        return f"IMQTT_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """A secret's names a file that holds it: everybody on the machine sees a process's arguments."""
        return f"--{self.name.replace('_', '-')}" + ("-file" if self.secret else "")


DEFAULTS = ServerConfig()
SETTINGS = tuple(Setting(one.name, getattr(DEFAULTS, one.name), **one.metadata) for one in fields(DEFAULTS))


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A TOML file: settings by their names, and `broker_password_file` and its like beside the secrets."""

    path: Path
    settings: Mapping[str, str | int] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "SettingsFile":
        """Raises `SetupError`, with the file and the key.

        A key that is no setting is an error, not a warning: what is misspelt would run with the default.
        So is a password in a file that everybody on the machine may read.
        """
        try:
            with path.open("rb") as file:
                public = os.name == "posix" and bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)
                settings = tomllib.load(file)
        except OSError as error:
            raise SetupError(f"cannot read the settings in {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SetupError(f"{path} is not TOML: {error}") from error
        for key, value in settings.items():
            try:
                _check_line(key, value, settings, public=public)
            except SetupError as error:
                raise SetupError(f"{path}: {key}: {error.reason}") from None
        return cls(path, settings)


def redacted(url: str) -> str:
    """`url` as it may be shown: with `***` in place of a password.

    Whatever stands before the last `@` is taken for a name and its password, though a correct URL would
    have it end at the first `/`: a password that its owner forgot to escape is not to be shown either.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "sqlite":
        return url
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    if at and colon:
        rest = f"{user}:***@{place}"
    return f"{scheme}://" + SECRET_OPTION.sub(r"\1***", rest)


def _checked(setting: Setting, value: Any) -> str | int:
    """What a flag, a variable or a line of a file says, as the setting's type. Raises `SetupError`."""
    if not setting.number:
        return str(value)
    try:
        number = int(value)
    except ValueError:
        raise SetupError(f"{setting.name}: {value!r} is not a whole number") from None
    if number < setting.least:
        raise SetupError(f"{setting.name}: {number} is less than {setting.least}")
    return number


def _check_line(key: str, value: object, settings: Mapping[str, object], *, public: bool) -> None:
    """Raises `SetupError` for a line of a settings file that cannot be meant."""
    known = {setting.name: setting for setting in SETTINGS}
    secrets = {f"{setting.name}_file" for setting in SETTINGS if setting.secret}
    setting = known.get(key)
    if setting is None and key not in secrets:
        near = difflib.get_close_matches(key.lower(), [*known, *secrets], 1)
        raise SetupError("no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    if setting is not None and setting.number:
        if type(value) is not int:  # to Python, `true` is one
            raise SetupError(f"{value!r} is not a whole number")
        if value < setting.least:
            raise SetupError(f"{value} is less than {setting.least}")
        return
    if not isinstance(value, str):
        raise SetupError("not a text in quotes")  # unshown: it may be a password of digits
    if setting is None:
        return
    if setting.secret and f"{key}_file" in settings:
        raise SetupError(f"{key}_file is there too, and only one of them can be meant")
    if public and (setting.secret or (setting.address and redacted(value) != value)):
        instead = f"{key}_file" if setting.secret else f"{key}_password_file"
        raise SetupError(
            f"a password, in a file that everybody on this machine may read: `chmod o-r` it, or use {instead}"
        )
