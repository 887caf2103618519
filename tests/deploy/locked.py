"""Writes requirements/*.txt from pyproject.toml, or (without --write) checks that they belong to it.

The check needs no network: each file names the digest of the part of pyproject.toml that it was made from.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.generated import write_or_check

ROOT = Path(__file__).parents[2]
LOCKS = {  # what each file is made from; the second must agree with the first
    "requirements/dev.txt": ("pyproject.toml", "--extra=scale", "--extra=motor", "--group=dev"),
    "requirements/fuzz.txt": ("--group=fuzz", "--constraints=requirements/dev.txt"),
}
HEADER = "# Written by `make lock`, from requirements in pyproject.toml with digest {digest}.\n"


def digest(pyproject: str) -> str:
    """A digest of the requirements in a pyproject.toml. No other change of the file affects it."""
    whole = tomllib.loads(pyproject)
    project = whole["project"]
    parts = [project[key] for key in ("requires-python", "dependencies", "optional-dependencies")]
    text = json.dumps([*parts, whole["dependency-groups"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stale(root: Path = ROOT) -> list[str]:
    """The files that were made from other requirements than those of `root`."""
    header = HEADER.format(digest=digest((root / "pyproject.toml").read_text()))
    return [name for name in LOCKS if not (root / name).read_text().startswith(header)]


def write(*options: str) -> None:
    header = HEADER.format(digest=digest((ROOT / "pyproject.toml").read_text()))
    for name, sources in LOCKS.items():
        # Without an address of an index, and for every platform and Python that imqtt runs on.
        subprocess.run(
            [
                sys.executable, "-m", "uv", "pip", "compile", "--quiet", *sources, *options, "--universal",
                "--python-version=3.11", "--generate-hashes", "--no-header", "--no-emit-index-url",
                "--no-emit-find-links", "--output-file", name,
            ],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        path = ROOT / name
        path.write_text(header + path.read_text())
        # A version may have no file for this Python, which uv does not check.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--require-hashes", "-r", name]
        subprocess.run(pip, cwd=ROOT, check=True)


def main() -> None:
    options = [option for option in sys.argv[1:] if option != "--write"]
    write_or_check("requirements/", "make lock", write=lambda: write(*options), stale=stale)


if __name__ == "__main__":
    main()
