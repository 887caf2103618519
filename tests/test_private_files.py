"""Files that only their owner can read, whatever the umask and the earlier mode."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imqtt.errors import SetupError
from imqtt.private_files import create_private_directory, create_private_file, make_private


@pytest.fixture(autouse=True, params=[0o000, 0o022], ids=["umask 000", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_created_is_private(tmp_path: Path) -> None:
    create_private_file(tmp_path / "file")
    create_private_directory(tmp_path / "parent" / "directory")
    assert mode(tmp_path / "file") == 0o600
    assert mode(tmp_path / "parent" / "directory") == 0o700


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o644, 0o600), (0o666, 0o600), (0o604, 0o600), (0o444, 0o400), (0o600, 0o600), (0o640, 0o640)],
)
def test_a_file_is_taken_from_others_and_left_to_a_group_that_alone_has_it(
    tmp_path: Path, before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    path.chmod(before)
    create_private_file(path)
    assert (mode(path), path.read_text()) == (after, "kept")
    assert len(caplog.records) == (before != after)


@pytest.mark.parametrize(
    ("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o711, 0o700), (0o750, 0o750)]
)
def test_a_directory_is_closed_to_others(tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    path.chmod(before)
    create_private_directory(path)
    assert mode(path) == after


def test_nothing_is_no_error(tmp_path: Path) -> None:
    make_private(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o666)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        os.setuid(12_345)
        try:
            make_private(path)
        except SetupError as error:
            os._exit(0 if "belongs to another user" in error.reason and "chmod o= " in error.reason else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
