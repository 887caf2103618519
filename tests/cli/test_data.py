"""Devices' files in the data directory, for all names."""

from pathlib import Path

import pytest

from imqtt.cli.data import DataDirectory
from imqtt.model import Device


@pytest.mark.parametrize("other", ["phone.db", "phone.db2", "phone.db-wal", "phone.new", "phone2", "phon"])
def test_saving_and_forgetting_a_device_does_not_affect_one_with_a_similar_name(
    tmp_path: Path, other: str
) -> None:
    directory = DataDirectory(tmp_path)
    phone, neighbour = Device("alice", "phone"), Device("alice", other)
    for device in (neighbour, phone):
        directory.save(device, f"password of {device}")
        directory.device_store(device).write_text(f"outbox of {device}")
    directory.save(phone, "another password")
    assert directory.saved() == sorted([phone, neighbour])
    directory.forget(phone)
    assert directory.saved() == [neighbour]
    assert directory.password(neighbour) == f"password of {neighbour}"
    assert directory.device_store(neighbour).read_text() == f"outbox of {neighbour}"
    assert not directory.device_store(phone).exists()
