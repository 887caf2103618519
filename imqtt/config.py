"""The server's settings, read once into one frozen value.

Each setting is defined only here. The setting `broker_host` has the flag `--broker-host`, the environment
variable `IMQTT_BROKER_HOST`, and the line `broker_host = "..."` in a settings file.
"""

import difflib
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imqtt.core.snowflake import MAX_PARTITIONS
from imqtt.errors import SetupError
from imqtt.redaction import redacted

# Variables that begin with IMQTT_ and are not settings of the server.
OTHER_VARIABLES = frozenset(
    {
        "IMQTT_CONFIG", "IMQTT_DEBUG", "IMQTT_LIFELINE",
        "IMQTT_BROKER", "IMQTT_CA", "IMQTT_CERT", "IMQTT_DATA", "IMQTT_DEVICE", "IMQTT_KEY",
        "IMQTT_PASSWORD", "IMQTT_USER",
        "IMQTT_BIND", "IMQTT_MQTT_PORT", "IMQTT_WEBSOCKET_PORT",
    }
)  # fmt: skip
TESTS_VARIABLES = "IMQTT_TEST_"
LIKELY = 0.75  # the similarity of two names, from 0 to 1, at which one is probably the other misspelt
YEAR = 31_536_000  # seconds


def _setting(
    default: str | int, help: str, unit: str = "", least: int = 0, most: int = 0,
    *, secret: bool = False, address: bool = False,
) -> Any:  # fmt: skip
    return field(
        default=default,
        metadata={
            "help": help, "unit": unit, "least": least, "most": most, "secret": secret, "address": address,
        },
    )  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False)
class ServerConfig:
    """The settings of a server process. Sizes in bytes, times in seconds."""

    broker_host: str = _setting("127.0.0.1", "host of Mosquitto's internal listener")
    broker_port: int = _setting(1884, "port of Mosquitto's internal listener", "", 1, 65_535)
    broker_username: str = _setting("imqtt-server", "the server's account on the broker")
    broker_password: str = _setting("", "the password of the server's account", secret=True)
    broker_ca: str = _setting(
        "", "PEM file with the authorities that sign the broker's certificate; enables TLS"
    )
    broker_certificate: str = _setting("", "PEM file with the server's own certificate, for mutual TLS")
    broker_key: str = _setting("", "PEM file with the certificate's key")
    store: str = _setting(
        "sqlite:///imqtt.db", "the store: sqlite:///path or mongodb://host/name", address=True
    )
    store_password: str = _setting("", "MongoDB's password (instead of one in the address)", secret=True)
    mongo_driver: str = _setting("pymongo", "MongoDB driver: pymongo or motor")
    state: str = _setting(
        "memory:",
        "where seen ids, device lists, presence and workers are kept: memory: or redis://host:port/0",
        address=True,
    )
    state_password: str = _setting("", "Redis's password (instead of one in the address)", secret=True)
    workers: int = _setting(
        1, "processes on this machine; more than one needs MongoDB and Redis", "processes", 1, 256
    )
    worker_ttl: int = _setting(
        2, "time without a heartbeat after which a worker is considered dead", "seconds", 1, 60
    )
    partitions: int = _setting(
        0,
        "number of partitions of a new store, which never changes; 0: as in the store, 16 in a new one",
        "partitions", 0, MAX_PARTITIONS,
    )  # fmt: skip
    health: str = _setting("", "host:port of a health page over HTTP; empty: none")
    max_content: int = _setting(65_536, "largest content of a message", "bytes", 1, 8_388_608)
    max_command: int = _setting(262_144, "largest command", "bytes", 1_024, 16_777_216)
    max_packet: int = _setting(
        262_144,
        "largest packet sent to a device, unless its `hello` sets a smaller `max_packet`",
        "bytes", 2_048, 16_777_216,
    )  # fmt: skip
    device_rate: int = _setting(
        1_000, "sustained rate at which one device may send messages", "messages a second", 1, 1_000_000
    )
    device_burst: int = _setting(
        4_000, "messages that one device may send in a burst", "messages", 1, 10_000_000
    )
    max_batch: int = _setting(500, "maximum number of commands in one batch", "commands", 1, 10_000)
    conversations_cached: int = _setting(
        100_000, "heads of conversations kept in memory, all partitions together",
        "conversations", 1, 100_000_000,
    )  # fmt: skip
    reads_at_once: int = _setting(
        4, "`Hello`, `Sync` and `History` commands that are served at the same time", "commands", 1, 1_000
    )
    reads_waiting: int = _setting(
        2_000, "`Hello`, `Sync` and `History` commands that may wait; more are rejected as busy",
        "commands", 1, 1_000_000,
    )  # fmt: skip
    presence_ttl: int = _setting(
        300, "time without a command after which a device is considered offline", "seconds", 1, 604_800
    )
    device_days: int = _setting(
        90, "time without a command after which a device is forgotten", "days", 1, 36_500
    )
    devices_per_user: int = _setting(
        100,
        "maximum number of devices of one user; beyond that, those unseen for longest are forgotten",
        "devices", 1, 1_000_000,
    )  # fmt: skip
    clock_tolerance: int = _setting(
        60,
        "how far the clock may lag behind the newest ids before a warning is logged;"
        " ids keep growing meanwhile",
        "seconds", 1, YEAR,
    )  # fmt: skip

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], file: Mapping[str, str | int] | None = None, **given: Any
    ) -> "ServerConfig":
        """The settings `given` (None: not given), else those of `IMQTT_…`, else of `file`, else the defaults.

        `file` is from `read_settings`. Raises `SetupError` for a value of the wrong type or out of bounds.
        """
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            value: Any = given.get(setting.name)
            if value is None:
                value = environment.get(setting.variable)
            if value is None and file is not None:
                value = file.get(setting.name)
            if value is None:
                continue
            try:
                values[setting.name] = setting.check(value) if setting.number else str(value)
            except SetupError as error:
                raise SetupError(f"{setting.name}: {error.reason}") from None
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
    name: str
    default: str | int
    help: str
    secret: bool
    address: bool  # a URL, which may contain a password
    unit: str  # of a number; may be empty
    least: int  # the bounds of a number, inclusive
    most: int

    @property
    def number(self) -> bool:
        return isinstance(self.default, int)

    @property
    def bounds(self) -> str:
        """The bounds of a number as text, such as `bytes, 1,024 to 16,777,216`; "" for a text setting."""
        if not self.number:
            return ""
        return (f"{self.unit}, " if self.unit else "") + f"{self.least:,} to {self.most:,}"

    def check(self, value: Any) -> int:
        """Returns the value as a number within the bounds. Raises `SetupError`."""
        try:
            number = int(value)
        except ValueError:
            raise SetupError(f"{value!r} is not a whole number") from None
        if number < self.least:
            raise SetupError(f"{number} is less than {self.least} ({self.bounds})")
        if number > self.most:
            raise SetupError(f"{number} is more than {self.most} ({self.bounds})")
        return number

    @property
    def variable(self) -> str:
        return f"IMQTT_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of a secret names a file, because all users of a machine can see command lines."""
        return f"--{self.name.replace('_', '-')}" + ("-file" if self.secret else "")


DEFAULTS = ServerConfig()
SETTINGS = tuple(Setting(one.name, getattr(DEFAULTS, one.name), **one.metadata) for one in fields(DEFAULTS))


def read_settings(path: Path) -> Mapping[str, str | int]:
    """A TOML file's settings by name; a secret may be in its own file (`broker_password_file`).

    Raises `SetupError` with the file and the key. An unknown key is an error: the server would use the
    default of a misspelt setting. A password in a file that all users of the machine can read is an error,
    too.
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
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Unknown names that begin with `IMQTT_`, for a warning.

    Raises `SetupError` for a name that is very similar to a setting's: it is probably misspelt, and the
    server would use the default. Other software may set the rest; Kubernetes sets `IMQTT_SERVICE_HOST` for a
    service named `imqtt`.
    """
    known = {one.variable for one in SETTINGS} | {f"{one.variable}_FILE" for one in SETTINGS if one.secret}
    known |= OTHER_VARIABLES
    bare = {variable.removeprefix("IMQTT_"): variable for variable in known}
    unknown: list[str] = []
    for name in sorted(environment.keys() - known):
        if not name.startswith("IMQTT_") or name.startswith(TESTS_VARIABLES):
            continue
        if near := difflib.get_close_matches(name.removeprefix("IMQTT_"), bare, 1, LIKELY):
            raise SetupError(f"{name}: no such setting; did you mean {bare[near[0]]}?")
        unknown.append(name)
    return unknown


def _check_line(key: str, value: object, settings: Mapping[str, object], *, public: bool) -> None:
    """Raises `SetupError` if a line of a settings file is wrong."""
    known = {setting.name: setting for setting in SETTINGS}
    secrets = {f"{setting.name}_file" for setting in SETTINGS if setting.secret}
    setting = known.get(key)
    if setting is None and key not in secrets:
        near = difflib.get_close_matches(key.lower(), [*known, *secrets], 1)
        raise SetupError("no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    if setting is not None and setting.number:
        if type(value) is not int:  # a bool is an instance of int
            raise SetupError(f"{value!r} is not a whole number")
        setting.check(value)
        return
    if not isinstance(value, str):
        raise SetupError("not a text in quotes")  # without the value, which may be a password of digits
    if setting is None:
        return
    if setting.secret and f"{key}_file" in settings:
        raise SetupError(f"{key}_file is given as well; give only one of them")
    if public and (setting.secret or (setting.address and redacted(value) != value)):
        instead = f"{key}_file" if setting.secret else f"{key}_password_file"
        raise SetupError(
            "a password, or an option that may be one, in a file that all users of this machine can read: "
            f"`chmod o-r` it, or use {instead}"
        )
