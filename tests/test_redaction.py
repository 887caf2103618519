"""Addresses are shown without their secrets."""

import pytest

from imqtt.client.settings import parse_address
from imqtt.errors import SetupError
from imqtt.redaction import redacted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/lib/a:b@c/imqtt.db", "sqlite:////var/lib/a:b@c/imqtt.db"),
        ("memory:", "memory:"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:word@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://host/0?password=word&db=1", "redis://host/0?password=***&db=1"),
        ("mongodb://user@host/name", "mongodb://user@host/name"),
        ("mongodb://user:word@a:1,b:2/name?w=1", "mongodb://user:***@a:1,b:2/name?w=1"),
        ("mongodb://user:un/esc@ped?@host/name", "mongodb://user:***@host/name"),
        (
            "mongodb://h/n?tlsCertificateKeyFilePassword=word",
            "mongodb://h/n?tlsCertificateKeyFilePassword=***",
        ),
        (
            "mongodb://h/n?w=1&authMechanismProperties=AWS_SESSION_TOKEN:word",
            "mongodb://h/n?w=1&authMechanismProperties=***",
        ),
        ("mongodb://h/n?W=majority;newOption=word", "mongodb://h/n?W=majority&newOption=***"),
        ("mongodb://h/n?appName=wo#rd&word", "mongodb://h/n?appName=***&***"),
        ("mongodb+srv://u:word@h/n?tls=true", "mongodb+srv://u:***@h/n?tls=true"),
        (
            "rediss://h:1/0?ssl_ca_certs=/etc/ca.pem&ssl_password=word",
            "rediss://h:1/0?ssl_ca_certs=/etc/ca.pem&ssl_password=***",
        ),
        ("unix://:word@/run/redis.sock?db=1&password=word", "unix://:***@/run/redis.sock?db=1&password=***"),
        ("mongodb:/u:word@h/n", "mongodb:***@h/n"),
        ("u:word@h/n", "u:***@h/n"),
        ("sqlite://u:word@h/n", "sqlite://u:***@h/n"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "text", ["mqtt://alice:hidden@host:port", "http://alice:hidden@host", "a:hid/den@h:x"]
)
def test_an_error_about_a_brokers_address_shows_no_password(text: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_address(text)
    assert "hid" not in str(refused.value)
