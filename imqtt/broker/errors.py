"""The errors of the link.

    LinkError
    +-- ConnackRefused        the broker refuses the connection
    +-- SubscriptionRefused   the broker refuses a subscription
    +-- Closed                the link has ended (also a ConnectionError)

Reason codes (MQTT 5, section 2.4) are plain numbers, not an enumeration: brokers also send codes that the
specification does not list, and an enumeration would fail on them.
"""

from typing import Final

SUCCESS: Final = 0x00
NO_MATCHING_SUBSCRIBERS: Final = 0x10
MALFORMED_PACKET: Final = 0x81
PROTOCOL_ERROR: Final = 0x82
KEEP_ALIVE_TIMEOUT: Final = 0x8D
SESSION_TAKEN_OVER: Final = 0x8E
TOPIC_NAME_INVALID: Final = 0x90
PACKET_TOO_LARGE: Final = 0x95
QOS_NOT_SUPPORTED: Final = 0x9B

_NAMES: Final = {
    0x00: "success",
    0x04: "disconnect with will message",
    0x10: "no matching subscribers",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x92: "packet identifier not found",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}

_PASSING: Final = frozenset({0x80, 0x83, 0x88, 0x89, 0x8B, 0x96, 0x97, 0x9F})
"""Codes of CONNACK about the state of the broker, not of this client."""


def describe(code: int) -> str:
    """`not authorized (0x87)`."""
    return f"{_NAMES.get(code, 'reason code')} (0x{code:02X})"


class LinkError(Exception):
    """The root."""


class ConnackRefused(LinkError):
    """The broker answered CONNECT with an error code.

    `retryable`: the same CONNECT may succeed later. `server`: the server to use instead, or "".
    """

    def __init__(self, code: int, reason: str = "", server: str = "") -> None:
        detail = f": {reason}" if reason else ""
        super().__init__(f"the broker refused the connection, {describe(code)}{detail}")
        self.code = code
        self.reason = reason
        self.server = server

    @property
    def retryable(self) -> bool:
        return self.code in _PASSING


class SubscriptionRefused(LinkError):
    """The broker answered SUBSCRIBE with an error code for `pattern`."""

    def __init__(self, pattern: str, code: int) -> None:
        super().__init__(f"the broker refused a subscription to {pattern!r}, {describe(code)}")
        self.pattern = pattern
        self.code = code


class Closed(LinkError, ConnectionError):
    """The link has ended.

    `code` is the reason code of the DISCONNECT that either side sent; None if there was none. The broker
    redelivers received packets that were not acked on the session's next connection. Publishes without an
    answer may or may not have reached the broker.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason if code is None else f"{reason}, {describe(code)}")
        self.reason = reason
        self.code = code
