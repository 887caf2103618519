"""Selects the Mosquitto of all tests: the installed one, or the executable in `IMQTT_TEST_MOSQUITTO`.

imqtt and the tests find Mosquitto and its tools on PATH, which their processes inherit. So the given
executable and its tools are put first on PATH.
"""

import asyncio
import atexit
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from imqtt.errors import SetupError
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.installation import executable

VARIABLE = "IMQTT_TEST_MOSQUITTO"
TOOLS = ("mosquitto_ctrl", "mosquitto_passwd", "mosquitto_pub", "mosquitto_rr", "mosquitto_sub")
OLDEST = (2, 0)


def use_given() -> None:
    """Puts the Mosquitto of `IMQTT_TEST_MOSQUITTO` first on PATH, if the variable is set.

    Ends the program with the reason if imqtt cannot run on it; otherwise each test would fail in its own way.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return
    program = Path(given).expanduser().absolute()
    found = shutil.which("mosquitto")
    if found is not None and Path(found).resolve() == program.resolve():
        return  # PATH was inherited from a process that has done it
    version = _version(program)
    if version < OLDEST:
        raise SystemExit(f"{VARIABLE}={given} is Mosquitto {_dotted(version)}; imqtt needs {_dotted(OLDEST)}")
    os.environ["PATH"] = f"{_links(program)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    _try(given)


def installed_version() -> tuple[int, ...]:
    """The version of the Mosquitto of all tests."""
    return _version(Path(executable()))


def _version(program: Path) -> tuple[int, ...]:
    try:
        output = subprocess.run(
            [program, "-h"], capture_output=True, text=True, check=False, timeout=120
        ).stdout
    except OSError as error:
        raise SystemExit(f"{VARIABLE}={program} cannot be run: {error.strerror}") from None
    match = re.match(r"mosquitto version (\d+(?:\.\d+)*)", output)
    if match is None:
        raise SystemExit(
            f"{VARIABLE}={program} is not the Mosquitto broker: its help begins with {output[:60]!r}"
        )
    return tuple(map(int, match[1].split(".")))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _links(program: Path) -> Path:
    """A directory in which `mosquitto` is this program, with the tools that came with it."""
    directory = Path(tempfile.mkdtemp(prefix="imqtt-mosquitto-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)  # as root, `imqtt up` runs Mosquitto as another user
    (directory / "mosquitto").symlink_to(program)
    for tool in TOOLS:
        for place in (program.parent, program.parent.parent / "bin"):
            if (place / tool).is_file():
                (directory / tool).symlink_to(place / tool)
                break
    return directory


def _try(given: str) -> None:
    """Starts the given Mosquitto once with the configuration of `imqtt up`."""

    async def start(directory: str) -> None:
        async with Mosquitto(Path(directory)):
            pass

    with tempfile.TemporaryDirectory(prefix="imqtt-mosquitto-") as directory:
        try:
            asyncio.run(start(directory))
        except SetupError as error:
            why = str(error)
            if "websocket" in why.lower():
                why += "; imqtt needs a Mosquitto that is built with websockets"
            raise SystemExit(f"{VARIABLE}={given} does not run with imqtt's configuration: {why}") from None
