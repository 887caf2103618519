"""A deployment for the commands: a broker, a server, and credentials in the data directory."""

from pathlib import Path

import pytest

from imqtt.cli.data import DataDirectory
from imqtt.model import Device
from imqtt.mosquitto.broker import Mosquitto
from tests.services import ServerProcess


@pytest.fixture
async def data(broker: Mosquitto, server: ServerProcess) -> Path:
    """The data directory of a running broker, with the credentials of alice@phone and bob@laptop saved."""
    assert server.pid is not None
    given = broker.passwords.add_all(["alice@phone", "bob@laptop"])
    for device in (Device("alice", "phone"), Device("bob", "laptop")):
        DataDirectory(broker.directory).save(device, given[str(device)])
    return broker.directory
