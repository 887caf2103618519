"""The names of a refused command, for its `Rejected`."""

import re
from typing import NamedTuple

READ_UP_TO = 1 << 20  # bytes: a longer payload is not parsed just to name it

_NAME = re.compile(r"[!-~]{1,131}")


class CommandInfo(NamedTuple):
    """The names of a command; "" for one that it lacks or that could not be read.

    They are echoed to the sender, so they hold printable ASCII without spaces and are short.
    """

    type: str = ""
    conversation: str = ""
    client_msg_id: str = ""
    ref: str = ""

    @classmethod
    def of(cls, *names: str) -> "CommandInfo":
        """The names that may be echoed. One that is too long is left out: cut short it would name another."""
        return cls(*(name if _NAME.fullmatch(name) else "" for name in names))
