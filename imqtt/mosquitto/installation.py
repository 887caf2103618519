"""What is installed: Mosquitto itself, and its configuration, which comes with imqtt."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from imqtt.errors import SetupError

PLACES = (
    Path("/usr/sbin"),  # Debian's, which is not on everybody's PATH
    Path("/usr/local/sbin"),
    Path("/opt/homebrew/sbin"),
    Path("/usr/local/opt/mosquitto/sbin"),
)
HOW_TO_INSTALL = (
    "Mosquitto is not installed: `apt install mosquitto`, `dnf install mosquitto` or `brew install mosquitto`"
    " (it need not be running), or put the directory it is in on PATH"
)


def executable() -> str:
    """Mosquitto's path. Raises `SetupError`."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(map(str, PLACES)))
    if found is None:
        raise SetupError(HOW_TO_INSTALL)
    return found


def configuration() -> Path:
    """The directory that holds `mosquitto.conf` and `acl`: in the wheel, or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "deploy" / "mosquitto", package.parent / "deploy" / "mosquitto"):
        if (place / "mosquitto.conf").is_file():
            return place
    raise SetupError(f"mosquitto.conf is missing from this installation of imqtt, in {package}")


def configure(text: str, options: Mapping[str, str | None], listeners: Mapping[str, str]) -> str:
    """`mosquitto.conf` with these values in place of its own; None leaves an option out.

    `listeners` maps a listener's port in `text` to its port and address here. Raises `SetupError` unless
    each option and each listener stands in `text` exactly once: a setting that silently stayed behind
    would be worse.
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
