"""Which lines of imqtt the corpus reaches, by file.

    python -m tests.verification.fuzz.reach

Shows whether the fuzzer gets beyond the first bytes, without which it finds nothing.
"""

import sys
from pathlib import Path

import coverage

import imqtt

ROOM = Path(imqtt.__file__).parent
FILES = (
    "protocol/__init__.py", "protocol/check.py", "protocol/json_format.py", "protocol/command_info.py",
    "protocol/protobuf_format.py", "protocol/topics.py", "model.py", "core/conversations.py",
    "core/sequencing.py", "server/router.py", "broker/packets.py", "broker/session.py", "broker/receipts.py",
    "broker/publications.py", "core/replica.py", "core/device_log.py",
)  # fmt: skip


def main() -> None:
    watch = coverage.Coverage(data_file=None, branch=True, include=[str(ROOM / name) for name in FILES])
    watch.start()
    # Imported only now, so that module-level code counts as reached.
    from tests.verification.fuzz.corpus import corpus_files
    from tests.verification.fuzz.targets import TARGETS

    for name, law in TARGETS.items():
        for path in corpus_files(name):
            law(path.read_bytes())
    watch.stop()
    watch.report(show_missing=True, file=sys.stdout)


if __name__ == "__main__":
    main()
