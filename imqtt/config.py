"""The server's settings, read once into one frozen value.

Each setting is defined here and nowhere else: its flag is `--broker-host` for `broker_host`, its
environment variable `IMQTT_BROKER_HOST`, its help the text beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from imqtt.errors import SetupError


def _setting(default: Any, help: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "secret": secret})


@dataclass(frozen=True, slots=True)
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
    store: str = _setting("sqlite:///imqtt.db", "where events are kept: sqlite:///path")
    state: str = _setting("memory:", "where seen ids, device lists and presence are kept: memory:")
    partitions: int = _setting(16, "used when the store is created, and fixed from then on")
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
    def from_environment(cls, environment: Mapping[str, str], **given: Any) -> "ServerConfig":
        """Settings `given` (a None counts as not given), else from `IMQTT_…`, else the defaults.

        Raises `SetupError` for a value that is not of the setting's type, or not positive where it counts.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            value: Any = given.get(setting.name)
            if value is None:
                value = environment.get(f"IMQTT_{setting.name.upper()}")
            if value is None:
                continue
            if setting.type in (int, "int"):
                try:
                    value = int(value)
                except ValueError:
                    raise SetupError(f"{setting.name}: {value!r} is not a whole number") from None
                if value < 1:
                    raise SetupError(f"{setting.name}: {value} is less than 1")
            values[setting.name] = value
        return cls(**values)
