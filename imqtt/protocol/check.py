"""The conditions that a decoded command or frame must meet before any later stage sees it.

Both formats pass through here, so a store, a broker or another client's parser never meets a value that it
cannot handle. Each class has one check, compiled from the constraints in its annotations (`imqtt.fields`).
Whether a conversation exists for the sender is not decided here.
"""

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Union, get_args, get_origin, get_type_hints

from imqtt import fields
from imqtt.errors import Invalid, TooLarge
from imqtt.model import Content, Cursor, Value
from imqtt.protocol.topics import is_name

MAX_MENTIONS = 100


@dataclass(frozen=True, slots=True, eq=False)  # by identity: it is half of a key that each command looks up
class Bounds:
    """How large a command may be. Sizes in bytes."""

    content: int = 65_536
    command: int = 262_144
    cursors: int = 1_000


Check = Callable[[Any, str], None]
Matches = Callable[[Any], object]


def check(value: Value, bounds: Bounds | None) -> None:
    """Raises `Malformed`, `Invalid` or `TooLarge` for a command, or part of one, that may not go further.

    Without `bounds` it is a frame, and only a number that a device's store could not keep is `Malformed`: a
    server of a later version may send other values.
    """
    _checker(type(value), bounds)(value, "")


def check_content(content: Content, bounds: Bounds) -> None:
    """Raises unless `content` holds exactly one body within the bounds."""
    bodies = [body for body in (content.text, content.data, content.json) if body is not None]
    if len(bodies) != 1:
        raise Invalid("content holds exactly one of text, data and json")
    body = bodies[0]
    if content.json == "null":
        raise Invalid("content.json is null, which in JSON is the same as no content")
    size = len(body) if isinstance(body, bytes) or body.isascii() else len(body.encode())
    if size == 0:
        raise Invalid("content is empty")
    if size > bounds.content:
        raise TooLarge.of("content", size, bounds.content)
    if content.content_type and (len(content.content_type) > 127 or not content.content_type.isprintable()):
        raise Invalid("content_type is at most 127 printable characters")
    if content.data is not None and not content.content_type:
        raise Invalid("data needs a content_type, such as application/octet-stream")
    if content.mentions:
        if len(content.mentions) > MAX_MENTIONS:
            raise TooLarge.of("content", len(content.mentions), MAX_MENTIONS, "mentions")
        if not all(map(is_name, content.mentions)):
            raise Invalid("mentions holds user ids")
    if content.reply_to is not None:
        check(content.reply_to, None)


@cache
def _checker(cls: type[Value], bounds: Bounds | None) -> Check:
    """Checks the fields of one class. `bounds` are those of commands; None: it is a frame, or part of one."""
    every = _fields(cls, bounds)
    hints = get_type_hints(cls, include_extras=True)
    ranges = {name: most for name in cls.__struct_fields__ if (most := _most(hints[name])) >= 0}
    others = tuple(field for field in every if field[0] not in ranges)
    tests = " and ".join(f"0 <= value.{name} <= {most}" for name, most in ranges.items())
    # A page has six numbers for each event. One expression for all of them takes a sixth of the time that a
    # loop takes, which is a twentieth of a device's time for a sync.
    is_in_range: Callable[[Any], bool] = eval(f"lambda value: {tests or True}")  # noqa: S307 - of the model

    def check_value(value: Any, _: str) -> None:
        for name, matches, check_field in others if is_in_range(value) else every:
            field = getattr(value, name)
            if matches is None or matches(field) is None:
                check_field(field, name)

    return check_value


@cache
def _fields(cls: type[Value], bounds: Bounds | None) -> tuple[tuple[str, Matches | None, Check], ...]:
    """The fields with constraints: name, test of a text, and check.

    The check raises. It is called only where the test does not suffice, since a call costs more.
    """
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        (name, _matches(hints[name]), check_field)
        for name in cls.__struct_fields__
        for check_field in _checks(cls, hints[name], bounds)
    )


def _checks(cls: type[Value], annotation: Any, bounds: Bounds | None) -> Iterator[Check]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    constraints = getattr(annotation, "__metadata__", ())
    for constraint in constraints:
        if isinstance(constraint, fields.Range) or (
            bounds is not None and not isinstance(constraint, fields.Inverse)
        ):
            yield constraint.check
    if constraints:
        return
    if bounds is not None and annotation is Content:
        yield lambda content, _: check_content(content, bounds)
    elif isinstance(annotation, type) and issubclass(annotation, Value):
        if _fields(annotation, bounds):
            yield _checker(annotation, bounds)
    elif origin is tuple:
        if bounds is not None and arguments[0] is Cursor:
            yield partial(_check_number, f"a {cls.__name__.lower()}", bounds.cursors)
        for check_item in _checks(cls, arguments[0], bounds):
            yield partial(_check_all, check_item)
    elif origin in (Union, types.UnionType):
        for check_value in _checks(cls, arguments[0], bounds):
            yield partial(_check_given, check_value)


def _most(annotation: Any) -> int:
    constraints = getattr(annotation, "__metadata__", ())
    return next((constraint.most for constraint in constraints if isinstance(constraint, fields.Range)), -1)


def _matches(annotation: Any) -> Matches | None:
    constraints = getattr(annotation, "__metadata__", ())
    patterns = (constraint.pattern for constraint in constraints if isinstance(constraint, fields.Pattern))
    return next((pattern.fullmatch for pattern in patterns), None)


def _check_all(check_item: Check, values: tuple[Any, ...], name: str) -> None:
    for value in values:
        check_item(value, name)


def _check_given(check_value: Check, value: Any, name: str) -> None:
    if value is not None:
        check_value(value, name)


def _check_number(what: str, most: int, values: tuple[Any, ...], name: str) -> None:
    if len(values) > most:
        raise TooLarge.of(what, len(values), most, name)
