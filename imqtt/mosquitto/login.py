"""One attempt to log in to a broker: whether it is there, and whether it takes these credentials.

By hand rather than with a client library, since all that is asked is one packet and its answer, and
`imqtt device add` should not wait for a library to load.
"""

import socket

from imqtt.addresses import host_port

TIMEOUT = 5.0  # seconds, for each of connecting and answering

_CONNECT, _CONNACK, _DISCONNECT = 0x10, 0x20, 0xE0
_CLEAN, _PASSWORD, _USERNAME = 0x02, 0x40, 0x80
_REFUSED_CREDENTIALS = (4, 5)  # bad username or password; not authorised (MQTT 3.1.1, section 3.2.2.3)


def log_in(host: str, port: int, username: str, password: str, client_id: str = "") -> bool:
    """Connects with a clean session and disconnects at once; whether the broker accepted.

    An empty `client_id` lets the broker choose one. A given one ends any connection and session that has
    it, which is also the way to do just that. Raises `OSError` when nothing answers, or not as MQTT does.
    """
    body = _text("MQTT") + bytes((4, _USERNAME | _PASSWORD | _CLEAN, 0, 30))
    body += _text(client_id) + _text(username) + _text(password)
    with socket.create_connection((host, port), TIMEOUT) as connection:
        connection.sendall(bytes((_CONNECT,)) + _length(len(body)) + body)
        answer = b""
        while len(answer) < 4:
            chunk = connection.recv(4 - len(answer))
            if not chunk:
                break
            answer += chunk
        if len(answer) == 4 and answer[0] == _CONNACK:
            if answer[3] == 0:
                connection.sendall(bytes((_DISCONNECT, 0)))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)  # until the broker has closed it: the session is gone then
                return True
            if answer[3] in _REFUSED_CREDENTIALS:
                return False
        raise ConnectionError(f"{host_port(host, port)} does not answer as an MQTT broker does")


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
