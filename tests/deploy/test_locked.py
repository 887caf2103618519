"""requirements/*.txt, from which `make` installs."""

import re
import shutil
from pathlib import Path

import pytest

from tests.deploy import locked

PYPROJECT = (locked.ROOT / "pyproject.toml").read_text()


def test_the_files_match_pyproject() -> None:
    assert locked.stale() == []


@pytest.mark.parametrize(
    ("before", "after", "noticed"),
    [
        ('"rich>=14"', '"rich>=15"', True),
        ('"coverage~=7.10"', '"coverage~=7.11"', True),
        ("# tables", "# tables, and more", False),
        ("line-length = 110", "line-length = 100", False),
    ],
)
def test_a_change_of_requirements_is_noticed(tmp_path: Path, before: str, after: str, noticed: bool) -> None:
    assert PYPROJECT.count(before) == 1
    (tmp_path / "pyproject.toml").write_text(PYPROJECT.replace(before, after))
    shutil.copytree(locked.ROOT / "requirements", tmp_path / "requirements")
    assert locked.stale(tmp_path) == (list(locked.LOCKS) if noticed else [])


@pytest.mark.parametrize("name", locked.LOCKS)
def test_every_package_has_its_version_and_hashes_and_no_address(name: str) -> None:
    text = (locked.ROOT / name).read_text()
    entries = re.split(
        r"^(?=[A-Za-z])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE
    )
    assert entries[1:]
    for entry in filter(None, entries):
        assert re.match(r"[\w.-]+==\S+( ; [^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+$", entry), (
            entry
        )
    assert not re.search(r"://|^-", text, re.MULTILINE)
