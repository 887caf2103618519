"""Which lines of imqtt the corpus reaches, file by file.

    python -m tests.verification.fuzz.reach

A fuzzer that never gets beyond the first bytes finds nothing for ever: this is how one sees that.
"""

import sys
from pathlib import Path

import coverage

import imqtt

ROOM = Path(imqtt.__file__).parent
FILES = (
    "protocol/__init__.py", "protocol/check.py", "protocol/json_format.py", "protocol/command_info.py",
    "protocol/protobuf_format.py", "protocol/topics.py", "model.py", "core/conversations.py",
    "core/sequencing.py", "server/intake.py", "broker/packets.py", "broker/connection.py",
    "broker/receipts.py", "broker/publications.py", "client/replica.py",
)  # fmt: skip


def main() -> None:
    watch = coverage.Coverage(data_file=None, branch=True, include=[str(ROOM / name) for name in FILES])
    watch.start()
    # Only now: what a module says at its top counts as reached when it is imported.
    from tests.verification.fuzz.corpus import kept
    from tests.verification.fuzz.targets import TARGETS

    for name, law in TARGETS.items():
        for path in kept(name):
            law(path.read_bytes())
    watch.stop()
    watch.report(show_missing=True, file=sys.stdout)


if __name__ == "__main__":
    main()
