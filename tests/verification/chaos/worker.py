"""`python -m tests.verification.chaos.worker CLOCK`: `imqtt serve` with a clock that the harness can step.

CLOCK is a file that both processes map: the harness writes the offset of this worker's clock, and the worker
writes back the offset that it last used, so a step counts as fired only when the server has used it.
"""

import functools
import mmap
import struct
import sys
from pathlib import Path

from imqtt.cli import services
from imqtt.cli.app import run
from imqtt.server.app import wall_clock
from imqtt.serving import serving

_NUMBER = struct.Struct("<q")


class Clock:
    """Two numbers in a file, in milliseconds: the offset that is set, and the offset that was last read."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(2 * _NUMBER.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 2 * _NUMBER.size)

    @property
    def offset(self) -> int:
        return int(_NUMBER.unpack_from(self._map, 0)[0])

    def step(self, offset: int) -> None:
        """Sets the offset of the worker's clock. Called by the harness."""
        _NUMBER.pack_into(self._map, 0, offset)

    @property
    def seen(self) -> int:
        """The offset that the worker last used."""
        return int(_NUMBER.unpack_from(self._map, _NUMBER.size)[0])

    def now(self) -> int:
        """The worker's time in milliseconds since the Unix epoch. Called by the worker."""
        offset = self.offset
        _NUMBER.pack_into(self._map, _NUMBER.size, offset)
        return wall_clock() + offset


def main() -> int:
    clock = Clock(Path(sys.argv[1]))
    # Runs the real command: only the clock differs from a real server.
    services.serving = functools.partial(serving, clock=clock.now)  # type: ignore[attr-defined]
    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
