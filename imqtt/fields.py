"""Constraints on the fields of commands and frames, for their annotations.

`imqtt.protocol.check` compiles them into one check for each class. A number out of range is `Malformed`, in
commands and in frames, since a store could not keep it. The rest is `Invalid`, in commands only: a server of
a later version may send values that this version would not.
"""

import re
from dataclasses import dataclass, replace

from imqtt.errors import Invalid, Malformed

MAX_CONVERSATION = 131  # `d:` and two names of 64 characters
MAX_SEQ = (1 << 53) - 1  # the largest integer that JavaScript's numbers hold exactly
MAX_ID = (1 << 63) - 1
MAX_COUNT = (1 << 32) - 1
MIN_PACKET = 2048  # bytes: room for any frame whose content is withheld
MAX_PACKET = 268_435_455  # bytes: MQTT 5, section 2.1.4


@dataclass(frozen=True, slots=True)
class Range:
    """An integer from 0 to `most`."""

    most: int
    description: str

    def check(self, value: int, name: str) -> None:
        if not 0 <= value <= self.most:
            raise Malformed(f"{name} is out of range: {self.description}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that matches `pattern` as a whole; an `optional` one may be empty."""

    pattern: re.Pattern[str]
    description: str
    subject: str = ""  # of the error, in place of the field's name
    optional: bool = False

    def check(self, value: str, name: str) -> None:
        if self.pattern.fullmatch(value) is None and not (self.optional and not value):
            raise Invalid(f"{self.subject or name} is {self.description}")


@dataclass(frozen=True, slots=True)
class Label:
    """Text for people: short and printable."""

    def check(self, value: str, name: str) -> None:
        if len(value) > 64 or not value.isprintable():
            raise Invalid(f"{name} is at most 64 printable characters")


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these texts."""

    values: tuple[str, ...]

    def check(self, value: str, name: str) -> None:
        if value not in self.values:
            raise Invalid(f"{name} is one of {', '.join(self.values)}")


@dataclass(frozen=True, slots=True)
class Within:
    """A number from `least` to `most`; 0 and None stand for one that is not given."""

    least: int
    most: int
    description: str

    def check(self, value: int | None, name: str) -> None:
        if value and not self.least <= value <= self.most:
            raise Invalid(f"{name} is {self.description}")


@dataclass(frozen=True, slots=True)
class Inverse:
    """A boolean that protobuf carries as its opposite, under another name, since its default is false."""

    name: str


SEQ = Range(MAX_SEQ, "0 to 2**53 - 1")
TIME = Range(MAX_SEQ, "milliseconds since 1970, below 2**53")
COUNT = Range(MAX_COUNT, "below 2**32")
ID = Range(MAX_ID, "below 2**63")
TOKEN = Pattern(re.compile(r"[!-~]{1,64}"), "1 to 64 printable ASCII characters without spaces")
REF = replace(TOKEN, optional=True)
# `core` decides which kinds of conversations there are, and who their members are.
CONVERSATION = Pattern(
    re.compile(r"[!-~]{3,131}"),
    f"3 to {MAX_CONVERSATION} printable ASCII characters without spaces",
    subject="a conversation id",
)
PERCENT = Within(0, 100, "a percentage, 0 to 100")
PACKET = Within(MIN_PACKET, MAX_PACKET, f"at least {MIN_PACKET} bytes and at most MQTT's {MAX_PACKET}")
