"""The corpus finds faults: with each planted fault, a replay violates a property."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest

from imqtt import fields
from imqtt.broker.connection import Connection
from imqtt.broker.packets import Cutter
from imqtt.broker.receipts import Receipts
from imqtt.model import Event, Head, Id, JsonText, Limits, Marks, Value
from tests.verification.fuzz.corpus import corpus_files
from tests.verification.fuzz.seeds import seeds
from tests.verification.fuzz.targets import TARGETS

CHECK = import_module("imqtt.protocol.check")  # the package exports a function of this name
Plant = Callable[[pytest.MonkeyPatch], None]


def nothing(*_: object) -> None:
    """Replaces a check."""


def unchecked(module: str, name: str) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(import_module(module), name, nothing)

    plant.__name__ = f"without {module}.{name}"
    return plant


def unconstrained(*what: object) -> Plant:
    """Fields with this constraint, or of this class, are not checked."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        checks = CHECK._checks

        def fewer(cls: type[Value], annotation: Any, bounds: Any) -> Iterator[Any]:
            if annotation in what or set(what).intersection(getattr(annotation, "__metadata__", ())):
                return iter(())
            return checks(cls, annotation, bounds)

        patch.setattr(CHECK, "_checks", fewer)
        for compiled in ("_checker", "_fields"):
            patch.setattr(CHECK, compiled, cache(getattr(CHECK, compiled).__wrapped__))

    plant.__name__ = f"without {what}"
    return plant


def json_stored_unchanged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(import_module("imqtt.protocol.protobuf_format"), "_json_in", JsonText)


def unlimited_reasons(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        import_module("imqtt.protocol.json_format"), "_reason", lambda what, error: f"{what}: {error!r}" * 9
    )


def malformed_names_are_echoed(patch: pytest.MonkeyPatch) -> None:
    info = import_module("imqtt.protocol.command_info").CommandInfo
    patch.setattr(info, "of", classmethod(lambda cls, *names: cls(*names)))


def ids_without_a_range(patch: pytest.MonkeyPatch) -> None:
    def lax(wanted: type, value: object) -> object:
        return Id(int(str(value))) if wanted is Id else JsonText(value)

    protocol = import_module("imqtt.protocol.json_format")
    decoder = import_module("msgspec").json.Decoder(import_module("imqtt.model").AnyCommand, dec_hook=lax)
    patch.setattr(protocol, "_command", decoder)


def awaiting(patch: pytest.MonkeyPatch, needed: Callable[[int], int]) -> None:
    """Changes how many bytes the cutter awaits."""
    cut = Cutter.cut

    def cut_and_await(self: Cutter, data: bytes) -> object:
        result = cut(self, data)
        if result[0]:  # else it waits for what it already needed
            self._needed = needed(self._needed)
        return result

    patch.setattr(Cutter, "cut", cut_and_await)


def one_byte_too_many_is_awaited(patch: pytest.MonkeyPatch) -> None:
    awaiting(patch, lambda needed: needed + 1)


def every_piece_is_joined_with_all_previous(patch: pytest.MonkeyPatch) -> None:
    awaiting(patch, lambda _: 0)


def packets_of_any_size(patch: pytest.MonkeyPatch) -> None:
    begin = Cutter.__init__
    patch.setattr(Cutter, "__init__", lambda self, _: begin(self, None))


def acks_out_of_order(patch: pytest.MonkeyPatch) -> None:
    def ack(self: Receipts, receipt: int) -> list[int]:
        at = receipt - self._first
        if not 0 <= at < len(self._waiting):
            return []
        return [self._waiting[at][0]]

    patch.setattr(Receipts, "ack", ack)


def errors_reported_after_the_end(patch: pytest.MonkeyPatch) -> None:
    def violated(self: Any, error: Any, events: list[Any]) -> None:
        connection = import_module("imqtt.broker.connection")
        events.append(self._end(connection.Closed(error.reason, error.code), error.code))

    patch.setattr(Connection, "_violated", violated)


def payloads_to_the_end_of_the_buffer(patch: pytest.MonkeyPatch) -> None:
    packets = import_module("imqtt.broker.packets")
    was = packets.read_publish
    patch.setattr(packets, "read_publish", lambda data, cut: was(data, (cut[0], cut[1], len(data))))


def a_puback_is_read_without_its_code(patch: pytest.MonkeyPatch) -> None:
    packets = import_module("imqtt.broker.packets")
    patch.setattr(packets, "read_puback", lambda data, cut: (data[cut[1]] << 8 | data[cut[1] + 1], 0))


def names_of_any_length(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(import_module("imqtt.protocol.topics"), "MAX_NAME", 100)


def members_in_any_order(patch: pytest.MonkeyPatch) -> None:
    def members_of(conversation: str) -> tuple[str, ...]:
        return tuple(conversation.split(":")[1:])

    patch.setattr(import_module("imqtt.core.conversations"), "members_of", members_of)


PLANTED: dict[str, list[Plant]] = {
    "commands": [
        *map(unconstrained, (fields.SEQ, fields.ID, fields.TIME, fields.TOKEN, fields.CONVERSATION)),
        json_stored_unchanged, unlimited_reasons, malformed_names_are_echoed,
        ids_without_a_range,
    ],
    "content": [unchecked("imqtt.model", "_check_json")],
    "frames": [
        unchecked("imqtt.protocol", "check"),
        *map(unconstrained, (Marks, Event, Head, Limits, fields.COUNT)),
    ],
    "link": [
        one_byte_too_many_is_awaited, every_piece_is_joined_with_all_previous, packets_of_any_size,
        acks_out_of_order, errors_reported_after_the_end, payloads_to_the_end_of_the_buffer,
        a_puback_is_read_without_its_code,
    ],
    "names": [names_of_any_length, members_in_any_order],
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "plant"),
    [
        pytest.param(target, plant, id=plant.__name__)
        for target, plants in PLANTED.items()
        for plant in plants
    ],
)
def test_a_planted_mistake_violates_a_property(
    target: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - an assertion, or what the fault lets out
        replay(target)


def replay(target: str) -> None:
    for data in (*seeds(target), *(path.read_bytes() for path in corpus_files(target))):
        TARGETS[target](data)
