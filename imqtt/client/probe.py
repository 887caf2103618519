"""Detects the protocol of a listener after a failed connection.

It takes at most three short connections, which carry no secrets.
"""

import asyncio
import contextlib
import ssl
from base64 import b64encode
from os import urandom

from imqtt.client.settings import Address, Protocol

# A CONNECT of MQTT 3.1.1 without an account, which every version of MQTT answers.
_CONNECT = bytes((0x10, 12, 0, 4)) + b"MQTT" + bytes((4, 2, 0, 10, 0, 0))
_CONNACK, _HTTP = 0x20, ord("H")


async def spoken(address: Address, within: float) -> Protocol | None:
    """The listener's protocol; None if it is not known after `within` seconds."""
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(within):
            for protocol in (Protocol.TLS, Protocol.MQTT, Protocol.HTTP):
                if await _speaks(address, protocol):
                    return protocol
    return None


async def answers(address: Address, within: float) -> bool:
    """Whether a listener answers in the address's protocol within `within` seconds.

    A connection proves nothing: a proxy accepts it even if its broker is down.
    """
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(within):
            return await _speaks(address, address.protocol)
    return False


async def refusal(address: Address, context: ssl.SSLContext, within: float) -> ssl.SSLError | None:
    """The error with which the listener ends a TLS connection on which nothing is sent, if it does so."""
    try:
        async with asyncio.timeout(within):
            await _first_byte(address, b"", context)
    except OSError as error:  # TimeoutError is one
        return error if isinstance(error, ssl.SSLError) else None
    return None


def advice(address: Address, found: Protocol) -> str:
    """Advice about a listener that speaks `found`, as the end of an error's sentence."""
    place, path = address.place, address.path if address.is_websocket else ""
    if found is Protocol.TLS:
        scheme = "wss" if address.is_websocket else "mqtts"
        return f"speaks TLS: use {scheme}://{place}{path}"
    if address.is_encrypted:
        return (
            "speaks no TLS: give the port of a TLS listener"
            " (mqtt:// and ws:// would send the password unencrypted)"
        )
    if found is Protocol.MQTT:
        return f"speaks MQTT without WebSockets: use mqtt://{place}"
    return f"speaks HTTP or WebSockets: use ws://{place}, or the port for MQTT"


def _upgrade(address: Address) -> bytes:
    """The opening request of WebSockets (RFC 6455, 4.1). Mosquitto closes the connection on any other."""
    return (
        f"GET {address.path} HTTP/1.1\r\nHost: {address.place}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {b64encode(urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    ).encode()


async def _speaks(address: Address, protocol: Protocol) -> bool:
    match protocol:
        case Protocol.TLS:
            return await _speaks_tls(address)
        case Protocol.HTTP:
            return await _first_byte(address, _upgrade(address)) == _HTTP
        case Protocol.MQTT:
            return await _first_byte(address, _CONNECT) == _CONNACK


async def _speaks_tls(address: Address) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # no data is sent, so the peer's identity does not matter
    context.verify_mode = ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # a refusal in TLS
    except ConnectionError:
        return False
    writer.transport.abort()
    return True


async def _first_byte(address: Address, request: bytes, tls: ssl.SSLContext | None = None) -> int:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
    try:
        writer.write(request)
        answer = await reader.read(1)
    except ConnectionError:
        return -1
    finally:
        writer.transport.abort()
    return answer[0] if answer else -1
