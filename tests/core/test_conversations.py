import pytest

from imqtt.core.conversations import members_from_ids, members_of
from imqtt.errors import Invalid, NotAllowed, Unsupported


def test_a_direct_conversation_has_the_two_users_in_its_name() -> None:
    assert members_of("d:alice:bob") == ("alice", "bob")
    assert members_of("d:a.b-c_d:z") == ("a.b-c_d", "z")


def test_a_users_own_conversation_has_one_member() -> None:
    assert members_of("u:alice") == ("alice",)


def test_unsorted_users_are_told_the_right_name() -> None:
    with pytest.raises(Invalid, match="d:alice:bob"):
        members_of("d:bob:alice")


def test_nobody_talks_directly_to_himself() -> None:
    with pytest.raises(Invalid, match="u:alice"):
        members_of("d:alice:alice")


def test_groups_are_told_apart_from_nonsense() -> None:
    with pytest.raises(Unsupported):
        members_of("g:abc")


@pytest.mark.parametrize(
    "conversation",
    [
        "d:alice",
        "d:alice:",
        "d::bob",
        "d:a:b:c",
        "u:",
        "u:a:b",
        "x:alice",
        "alice",
        "d:al ice:bob",
        "u:é",
        "u:a/b",
    ],
)
def test_what_is_no_conversation_is_invalid(conversation: str) -> None:
    with pytest.raises(Invalid):
        members_of(conversation)


def test_only_members_are_let_in() -> None:
    assert members_from_ids(["d:alice:bob"]).check("d:alice:bob", "bob") == ("alice", "bob")
    with pytest.raises(NotAllowed):
        members_from_ids(["d:alice:bob"]).check("d:alice:bob", "mallory")
