"""The installed Mosquitto, and the configuration that comes with imqtt."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from imqtt.errors import SetupError

PLACES = (
    Path("/usr/sbin"),  # on Debian, where it is not on every PATH
    Path("/usr/local/sbin"),
    Path("/opt/homebrew/sbin"),
    Path("/usr/local/opt/mosquitto/sbin"),
)
HOW_TO_INSTALL = (
    "Mosquitto is not installed: `apt install mosquitto`, `dnf install mosquitto` or `brew install mosquitto`"
    " (it need not be running), or add its directory to PATH"
)


def executable() -> str:
    """Mosquitto's path. Raises `SetupError`."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(map(str, PLACES)))
    if found is None:
        raise SetupError(HOW_TO_INSTALL)
    return found


def configuration() -> Path:
    """The directory of `mosquitto.conf` and `acl`, in the wheel or in a checkout. Raises `SetupError`."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "deploy" / "mosquitto", package.parent / "deploy" / "mosquitto"):
        if (place / "mosquitto.conf").is_file():
            return place
    raise SetupError(f"mosquitto.conf is missing from this installation of imqtt, in {package}")


def configure(text: str, options: Mapping[str, str | None], listeners: Mapping[str, str]) -> str:
    """`mosquitto.conf` with these values instead of its own; None removes an option.

    `listeners` maps the port of a listener in `text` to its new port and address. Raises `SetupError` unless
    `text` has each option and each listener exactly once, so that no setting silently keeps its value.
    """
    lines = text.splitlines()
    for what, value in [
        *((f"{name} ", None if value is None else f"{name} {value}") for name, value in options.items()),
        *((f"listener {port} ", f"listener {value}") for port, value in listeners.items()),
    ]:
        found = [number for number, line in enumerate(lines) if line.startswith(what)]
        if len(found) != 1:
            raise SetupError(
                f"mosquitto.conf has {len(found)} lines that begin with {what.strip()!r}, not one"
            )
        lines[found[0] : found[0] + 1] = [] if value is None else [value]
    return "\n".join(lines) + "\n"
