"""Addresses are printed in a form that can be used as input."""

from pathlib import Path

import pytest

from imqtt.addresses import host_port
from imqtt.cli.connection import _broker
from imqtt.cli.data import DataDirectory
from imqtt.cli.server import _say_ready
from imqtt.client.settings import parse_address
from imqtt.errors import SetupError
from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.listeners import Listeners, choose


@pytest.mark.parametrize("host", ["127.0.0.1", "broker.example.com", "::1", "fe80::1"])
def test_host_and_port_are_valid_input(host: str) -> None:
    address = parse_address(host_port(host, 1883))
    assert (address.host, address.port) == (host, 1883)


def test_up_prints_where_to_connect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = Mosquitto(tmp_path, host="::1", port=1883, websocket_port=8083)
    _say_ready(broker, DataDirectory(tmp_path), 16, 1.0, as_json=False)
    output = capsys.readouterr().out
    assert "  devices    [::1]:1883\n" in output
    assert "  browsers   ws://[::1]:8083\n" in output


def test_commands_connect_to_the_address_of_up(tmp_path: Path) -> None:
    (tmp_path / "listeners.json").write_text('{"host": "::1", "port": 1883}')
    assert _broker(DataDirectory(tmp_path)) == "[::1]:1883"


def test_an_address_that_cannot_be_listened_on_is_named() -> None:
    unassigned = Listeners("2001:db8::1", 1883, 8083, 1884)  # a network reserved for documentation
    with pytest.raises(SetupError, match=r"cannot listen on \[2001:db8::1\]:1883"):
        choose(unassigned, unassigned)
