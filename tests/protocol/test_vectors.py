"""This version writes the golden vectors and reads all their alternatives."""

import json
from typing import Any
from zlib import crc32

import pytest

from imqtt.core.partitions import partition_of
from imqtt.errors import ImqttError
from imqtt.protocol import (
    Bounds,
    Format,
    decode_command,
    decode_frames,
    encode_command,
    encode_frame,
    identify,
    join,
)
from tests.protocol.vectors import generate

Entry = dict[str, Any]


def load(name: str) -> Any:
    return json.loads((generate.HERE / name).read_text())


def name_of(entry: Entry) -> str:
    return str(entry["name"])


def payloads(entry: Entry) -> list[bytes]:
    """All payloads with the same meaning."""
    texts = [entry["json"], *entry.get("also_json", [])]
    binaries = [entry["protobuf"], *entry.get("also_protobuf", [])]
    return [text.encode() for text in texts] + [bytes.fromhex(binary) for binary in binaries]


def test_the_files_are_current() -> None:
    for name, text in generate.vectors().items():
        assert (generate.HERE / name).read_text() == text, f"{name}: see vectors/README.md"


@pytest.mark.parametrize("entry", load("commands.json"), ids=name_of)
def test_a_command_is_decoded_and_encoded_as_the_vector_says(entry: Entry) -> None:
    for payload in payloads(entry):
        command = decode_command(payload, Bounds())
        assert command == generate.COMMANDS[entry["name"]]
        assert encode_command(command, Format.JSON) == entry["json"].encode()
        assert encode_command(command, Format.PROTOBUF).hex() == entry["protobuf"]


@pytest.mark.parametrize("entry", load("frames.json"), ids=name_of)
def test_a_packet_is_decoded_and_encoded_as_the_vector_says(entry: Entry) -> None:
    for payload in payloads(entry):
        frames = decode_frames(payload)
        assert frames == generate.FRAMES[entry["name"]]
        for format, written in ((Format.JSON, entry["json"].encode()), (Format.PROTOBUF, entry["protobuf"])):
            packet = join([encode_frame(frame, format) for frame in frames], format)
            assert written == (packet if format is Format.JSON else packet.hex())


@pytest.mark.parametrize("entry", load("partitions.json"), ids=lambda entry: entry["conversation"])
def test_a_partition_is_what_the_vector_says(entry: Entry) -> None:
    assert crc32(entry["conversation"].encode()) == entry["crc32"]
    assert partition_of(entry["conversation"], entry["partitions"]) == entry["partition"]


@pytest.mark.parametrize("entry", load("rejected.json")["rejected"], ids=name_of)
def test_a_bad_payload_is_rejected_as_the_vector_says(entry: Entry) -> None:
    payload = generate.payload_of(entry)
    with pytest.raises(ImqttError) as caught:
        decode_command(payload, Bounds(**load("rejected.json")["limits"]))
    assert (caught.value.code, caught.value.retryable) == (entry["code"], entry["retryable"])
    found = dict(zip(("command", "conversation", "client_msg_id", "ref"), identify(payload), strict=True))
    assert {key: value for key, value in found.items() if value} == entry["named"]
