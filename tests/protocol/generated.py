"""Regenerates the protobuf code; without --write, checks that the committed code is current."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

from tests.generated import write_or_check

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "imqtt" / "protocol"
COMMITTED = PROTOCOL / "generated"
NAMES = ("imqtt_pb2.py", "imqtt_pb2.pyi")


def generate(into: Path) -> None:
    status = protoc.main(
        ["protoc", f"-I{PROTOCOL}", f"--python_out={into}", f"--pyi_out={into}", "imqtt.proto"]
    )
    if status != 0:
        sys.exit(status)


def stale() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [n for n in NAMES if (Path(folder) / n).read_bytes() != (COMMITTED / n).read_bytes()]


def main() -> None:
    write_or_check("generated code", "make proto", write=lambda: generate(COMMITTED), stale=stale)


if __name__ == "__main__":
    main()
