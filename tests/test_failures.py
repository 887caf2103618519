"""The report about a failed test."""

import re
import subprocess
import sys
from pathlib import Path

FAILING = """\
from pathlib import Path

def test_that_fails(tmp_path: Path) -> None:
    (tmp_path / "worker-1").mkdir()
    (tmp_path / "worker-1" / "server.log").write_text("first\\n" * 100 + "the disk is full\\n")
    assert False

def test_that_passes(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("all is well")
"""


def test_a_failure_keeps_its_directory_and_shows_how_its_logs_end(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(FAILING)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "tests.conftest", "-o", "tmp_path_retention_policy=failed",
            f"--basetemp={tmp_path / 'made'}", f"--rootdir={tmp_path}", tmp_path / "test_two.py",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    kept = re.search(r"kept in (\S+)", done.stdout)
    assert kept is not None
    assert (Path(kept[1]) / "worker-1" / "server.log").exists()
    assert "--- worker-1/server.log\n" in done.stdout
    assert "\nthe disk is full\n" in done.stdout
    assert done.stdout.count("first\n") < 50
    assert "all is well" not in done.stdout
    assert [path.name for path in (tmp_path / "made").iterdir() if not path.is_symlink()] == [
        Path(kept[1]).name
    ]
