"""Mutation, splitting and minimizing of inputs."""

import contextlib
from random import Random

import pytest

from imqtt.errors import ImqttError, Malformed
from imqtt.protocol import Bounds, decode_command, decode_frames
from tests.verification.fuzz.__main__ import smaller
from tests.verification.fuzz.boundary_values import some_bytes
from tests.verification.fuzz.mutation import mutate
from tests.verification.fuzz.seeds import packets, seeds
from tests.verification.fuzz.stream import whole_packets
from tests.verification.fuzz.targets import TARGETS


def changed(target: str, number: int, most: int = 1_000) -> bytes:
    random = Random(number)
    data = random.choice(seeds(target))
    return mutate(target, data, random, lambda piece, _: some_bytes(piece, random), most)


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_seed_makes_the_same_mutation_within_the_size_limit(target: str) -> None:
    for number in range(50):
        assert changed(target, number, 40) == changed(target, number, 40)
        assert len(changed(target, number, 40)) <= 40


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_vary(target: str) -> None:
    assert len({changed(target, number) for number in range(300)} - set(seeds(target))) > 150


def test_many_mutated_commands_are_parsed() -> None:
    outcomes = {"taken": 0, "checked": 0}
    for number in range(500):
        try:
            decode_command(changed("commands", number), Bounds())
            outcomes["taken"] += 1
        except Malformed:
            pass
        except ImqttError:
            outcomes["checked"] += 1
    assert outcomes["taken"] > 100
    assert outcomes["checked"] > 50


def test_many_mutated_packets_of_frames_are_parsed() -> None:
    taken = 0
    for number in range(500):
        with contextlib.suppress(Malformed):
            taken += bool(decode_frames(changed("frames", number)))
    assert taken > 150


def test_a_stream_is_split_at_packet_boundaries() -> None:
    every = [packet for packet in packets() if not packet.startswith(b"\x30\xff\xff\xff\xff")]
    assert whole_packets(b"".join(every)) == every
    assert whole_packets(b"".join(every) + b"\x30\xff") == every


def test_a_finding_is_minimized(monkeypatch: pytest.MonkeyPatch) -> None:
    def law(data: bytes) -> None:
        assert b"x" not in data or b"y" not in data

    monkeypatch.setitem(TARGETS, "names", law)
    assert smaller("names", b"abcdefxghijklmnopqrstuvwyz" * 3) in (b"xy", b"yx")
    assert smaller("names", b"harmless") == b"harmless"
