"""One attempt to log in to a broker, which blocks.

It needs one packet and its answer. They are coded here, so that it also works beside a running event loop.
"""

import socket
import ssl

from imqtt.addresses import host_port

TIMEOUT = 5.0  # seconds, for the connection and for the answer

_CONNECT, _CONNACK, _DISCONNECT = 0x10, 0x20, 0xE0
_CLEAN, _PASSWORD, _USERNAME = 0x02, 0x40, 0x80
_REFUSED_CREDENTIALS = (4, 5)  # bad username or password; not authorised (MQTT 3.1.1, section 3.2.2.3)


def log_in(host: str, port: int, username: str, password: str, tls: ssl.SSLContext | None = None) -> bool:
    """Connects with a clean session and disconnects. Returns whether the broker accepted.

    The broker assigns the client id. Raises `OSError` without an answer of MQTT.
    """
    body = _text("MQTT") + bytes((4, _USERNAME | _PASSWORD | _CLEAN, 0, 30))
    body += _text("") + _text(username) + _text(password)
    connection = socket.create_connection((host, port), TIMEOUT)
    if tls is not None:
        connection = tls.wrap_socket(connection, server_hostname=host)
    with connection:
        connection.sendall(bytes((_CONNECT,)) + _length(len(body)) + body)
        with connection.makefile("rb") as stream:
            answer = stream.read(4)
        if len(answer) == 4 and answer[0] == _CONNACK:
            if answer[3] == 0:
                connection.sendall(bytes((_DISCONNECT, 0)))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)  # until the broker has closed the connection and dropped the session
                return True
            if answer[3] in _REFUSED_CREDENTIALS:
                return False
        raise ConnectionError(f"{host_port(host, port)} does not answer like an MQTT broker")


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _length(size: int) -> bytes:
    """MQTT's variable byte integer."""
    data = bytearray()
    while True:
        size, low = divmod(size, 128)
        data.append(low | 0x80 if size else low)
        if not size:
            return bytes(data)
