"""The limit of open files, and the number of connections that it leaves to devices.

A connection is a file. A Mosquitto without free files closes every new connection. After its restart, devices
may reconnect before the server and use up all files, and the server could not connect. So the listeners for
devices are limited, which leaves files for the server.
"""

import re

try:
    import resource
except ImportError:  # Windows, where sockets are not files
    resource = None  # type: ignore[assignment]  # checked where it is used

# Enough for `imqtt up`. The system's limit may be too high: libwebsockets allocates memory for each possible
# file, and containers are often allowed a thousand million.
FILES = 65_536
# For the server (a connection for each of at most 1,024 partitions, and a few more) and for Mosquitto's own
# listeners, log and files. At most half of all files.
RESERVED = 1_100
PUBLIC_LISTENERS = 2

_MAX_CONNECTIONS = re.compile(r"^max_connections .*$", re.MULTILINE)


def raise_file_limit() -> int:
    """Raises the limit of open files of this process and those that it starts. Returns the limit."""
    if resource is None:
        return FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FILES if hard == unlimited else min(FILES, hard)
    if soft == unlimited or soft >= wanted:
        return FILES if soft == unlimited else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the limit of macOS is lower than it says
        return soft
    return wanted


def public_connections(files: int) -> int:
    """The maximum number of connections per public listener of a broker with this limit of open files."""
    return max((files - min(RESERVED, files // 2)) // PUBLIC_LISTENERS, 1)


def limit_connections(text: str, files: int) -> str:
    """`mosquitto.conf` with limits of its public listeners that suit this limit of open files."""
    return _MAX_CONNECTIONS.sub(f"max_connections {public_connections(files)}", text)
