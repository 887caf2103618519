"""Tables between values and protobuf messages of the same name, compiled from the values' annotations.

A field has the same name in both. `fields.Inverse` names the one exception; text that is JSON is checked.
"""

import types
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from imqtt import fields
from imqtt.model import Id, Value

Fill = Callable[[Any, Any], None]  # (message, value)
Read = Callable[[Any], Any]  # the value of a message


class Codec(NamedTuple):
    """Both directions, for a class or for one of its fields. `fill` writes into an empty message."""

    fill: Fill
    read: Read


OVERRIDES: dict[type[Value], Codec] = {}
"""Codecs written by hand, for messages that a profile shows."""


@cache
def codec(cls: type[Value]) -> Codec:
    if cls in OVERRIDES:
        return OVERRIDES[cls]
    hints = get_type_hints(cls, include_extras=True)
    compiled = [_field(name, hints[name]) for name in cls.__struct_fields__]
    fills, reads = [field.fill for field in compiled], [field.read for field in compiled]

    def fill(message: Any, value: Any) -> None:
        message.SetInParent()  # one whose fields all have their defaults is there too
        for fill_field in fills:
            fill_field(message, value)

    def read(message: Any) -> Any:
        return cls(*[read_field(message) for read_field in reads])

    return Codec(fill, read)


def _field(name: str, annotation: Any) -> Codec:
    for constraint in getattr(annotation, "__metadata__", ()):
        if isinstance(constraint, fields.Inverse):
            return _inverse(name, constraint.name)
    if hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return _repeated(name, arguments[0])
    if origin in (Union, types.UnionType):
        return _optional(name, arguments[0])
    if issubclass(annotation, msgspec.Struct):
        return _message(name, annotation)
    if annotation is Id:
        return Codec(_scalar(name).fill, lambda message: Id(getattr(message, name)))
    return _scalar(name)


def _scalar(name: str) -> Codec:
    def fill(message: Any, value: Any) -> None:
        if scalar := getattr(value, name):
            setattr(message, name, scalar)

    return Codec(fill, lambda message: getattr(message, name))


def _inverse(name: str, opposite: str) -> Codec:
    def fill(message: Any, value: Any) -> None:
        setattr(message, opposite, not getattr(value, name))

    return Codec(fill, lambda message: not getattr(message, opposite))


def _message(name: str, cls: type[Value]) -> Codec:
    def fill(message: Any, value: Any) -> None:
        part = getattr(message, name)
        part.SetInParent()  # also where a codec that is written by hand sets nothing
        codec(cls).fill(part, getattr(value, name))

    return Codec(fill, lambda message: codec(cls).read(getattr(message, name)))


def _optional(name: str, annotation: Any) -> Codec:
    present = _field(name, annotation)
    is_scalar = not issubclass(annotation, msgspec.Struct)

    def fill(message: Any, value: Any) -> None:
        given = getattr(value, name)
        if given is None:
            return
        if is_scalar:
            setattr(message, name, given)  # zero as well
        else:
            present.fill(message, value)

    return Codec(fill, lambda message: present.read(message) if message.HasField(name) else None)


def _repeated(name: str, annotation: Any) -> Codec:
    if not issubclass(annotation, msgspec.Struct):
        return Codec(
            lambda message, value: getattr(message, name).extend(getattr(value, name)),
            lambda message: tuple(getattr(message, name)),
        )

    def fill(message: Any, value: Any) -> None:
        if items := getattr(value, name):
            fill_item, parts = codec(annotation).fill, getattr(message, name)
            for item in items:
                fill_item(parts.add(), item)

    def read(message: Any) -> Any:
        return tuple(map(codec(annotation).read, getattr(message, name)))

    return Codec(fill, read)
