"""The calls of a batch: several questions and changes in one round trip."""

from collections.abc import Coroutine
from typing import Any

from imqtt.model import Device, Key, Registration
from imqtt.state.base import Begun, State
from imqtt.state.memory import MemoryState
from tests.contract.states import BURST, RATE

PHONE = Device("alice", "phone")
ALICE = (Registration(PHONE, "protobuf"),)
KEYS = [Key("d:alice:bob", "alice", f"m{number}") for number in range(3)]


async def fill(state: State) -> None:
    await state.fill_devices(await state.lease_devices(["alice"]), {"alice": ALICE})


async def test_a_batch_begins_with_lists_seen_keys_and_tokens(state: State) -> None:
    await fill(state)
    await state.mark_seen(KEYS[:1])
    begun = await state.begin(["alice", "bob"], KEYS, {PHONE: BURST + 5}, 0)
    assert begun == Begun({"alice": ALICE}, frozenset(KEYS[:1]), {PHONE: BURST})
    assert await state.begin(["bob"], KEYS[1:], {PHONE: 1}, 0) == ({}, frozenset(), {PHONE: 0})


async def test_a_batch_may_begin_without_some_of_them(state: State) -> None:
    await fill(state)
    await state.mark_seen(KEYS[:1])
    assert await state.begin([], [], {}, 0) == ({}, frozenset(), {})
    assert await state.begin(["alice"], [], {}, 0) == ({"alice": ALICE}, frozenset(), {})
    assert await state.begin([], KEYS, {PHONE: 2}, 0) == ({}, frozenset(KEYS[:1]), {PHONE: 2})


async def test_a_finished_batch_marks_its_keys_and_returns_lists(state: State) -> None:
    await fill(state)
    assert await state.finish(KEYS[:2], ["alice", "bob"]) == {"alice": ALICE}
    assert await state.seen(KEYS) == frozenset(KEYS[:2])


async def test_a_batch_may_finish_without_keys_or_users(state: State) -> None:
    await fill(state)
    assert await state.finish([], []) == {}
    assert await state.finish([], ["alice"]) == {"alice": ALICE}
    assert await state.finish(KEYS[:1], []) == {}
    assert await state.seen(KEYS) == frozenset(KEYS[:1])


def test_state_in_memory_answers_a_batch_without_waiting() -> None:
    """The pipeline calls it without a task."""
    state = MemoryState(RATE, BURST)

    def finishes(call: Coroutine[Any, Any, object]) -> bool:
        try:
            call.send(None)
        except StopIteration:
            return True
        return False

    assert finishes(state.begin(["alice"], KEYS, {PHONE: 1}, 0))
    assert finishes(state.finish(KEYS, ["alice"]))
