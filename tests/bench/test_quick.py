"""The benchmark runs, from beginning to end, in a short form."""

import subprocess
import sys

import pytest

from bench.__main__ import PARTS


@pytest.mark.verify
@pytest.mark.parametrize("arguments", [*([f"--only={part}"] for part in PARTS), ["--growth"]], ids="".join)
def test_the_benchmark_runs(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "bench", "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "took" in done.stdout


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "--only", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
