"""How many files a process may have open, and how many of the broker's connections devices may take.

A connection is a file. A Mosquitto that has none left serves those that are connected and hangs up on all
others. Devices that come back after its restart may be faster than the server and take all files, and then
nobody serves them. So the listeners for devices are limited to what leaves room for the server.
"""

import re

try:
    import resource
except ImportError:  # Windows, where sockets are not files
    resource = None  # type: ignore[assignment]  # checked where it is used

# Enough for `imqtt up`. Not as many as the system allows: libwebsockets takes memory for each possible file,
# and containers are often allowed a thousand million.
FILES = 65_536
# For the server (a session for each of at most 1,024 partitions, and some more), and for Mosquitto's own
# listeners, log and files. It is never more than half of all.
RESERVED = 1_100
PUBLIC_LISTENERS = 2

_MAX_CONNECTIONS = re.compile(r"^max_connections .*$", re.MULTILINE)


def raise_file_limit() -> int:
    """Lets this process, and those that it starts, open more files; returns how many they may open now."""
    if resource is None:
        return FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FILES if hard == unlimited else min(FILES, hard)
    if soft == unlimited or soft >= wanted:
        return FILES if soft == unlimited else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a limit of its own below the one that it tells
        return soft
    return wanted


def public_connections(files: int) -> int:
    """How many connections each public listener of a broker may have that may open so many files."""
    return max((files - min(RESERVED, files // 2)) // PUBLIC_LISTENERS, 1)


def limit_connections(text: str, files: int) -> str:
    """`mosquitto.conf` with its public listeners limited for a broker that may open so many files."""
    return _MAX_CONNECTIONS.sub(f"max_connections {public_connections(files)}", text)
