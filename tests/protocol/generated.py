"""Regenerates the protobuf code, or (without --write) proves that what is committed is current."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "imqtt" / "protocol"
NAMES = ("imqtt_pb2.py", "imqtt_pb2.pyi")


def generate(into: Path) -> None:
    status = protoc.main(
        ["protoc", f"-I{PROTOCOL}", f"--python_out={into}", f"--pyi_out={into}", "imqtt.proto"]
    )
    if status != 0:
        sys.exit(status)


def main() -> None:
    committed = PROTOCOL / "generated"
    if "--write" in sys.argv:
        generate(committed)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [n for n in NAMES if (Path(folder) / n).read_bytes() != (committed / n).read_bytes()]
    if stale:
        sys.exit(f"not current: {', '.join(stale)}; run `make proto` and commit")
    print("generated code is current")


if __name__ == "__main__":
    main()
