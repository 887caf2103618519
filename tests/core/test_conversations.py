import pytest

from imqtt.core.conversations import conversation_with, members_from_ids, members_of
from imqtt.errors import Invalid, NotAllowed, Unsupported


def test_the_id_of_a_direct_conversation_names_its_two_users() -> None:
    assert members_of("d:alice:bob") == ("alice", "bob")
    assert members_of("d:a.b-c_d:z") == ("a.b-c_d", "z")


def test_a_users_own_conversation_has_one_member() -> None:
    assert members_of("u:alice") == ("alice",)


def test_unsorted_users_are_rejected_with_the_correct_id() -> None:
    with pytest.raises(Invalid, match="d:alice:bob"):
        members_of("d:bob:alice")


def test_a_direct_conversation_needs_two_different_users() -> None:
    with pytest.raises(Invalid, match="u:alice"):
        members_of("d:alice:alice")


def test_groups_are_distinguished_from_malformed_ids() -> None:
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
def test_a_malformed_conversation_id_is_invalid(conversation: str) -> None:
    with pytest.raises(Invalid):
        members_of(conversation)


def test_only_members_are_accepted() -> None:
    assert members_from_ids(["d:alice:bob"]).check("d:alice:bob", "bob") == ("alice", "bob")
    with pytest.raises(NotAllowed):
        members_from_ids(["d:alice:bob"]).check("d:alice:bob", "mallory")


def test_a_users_name_stands_for_the_conversation_with_that_user() -> None:
    assert conversation_with("bob", "alice") == conversation_with("alice", "bob") == "d:alice:bob"
    assert conversation_with("alice", "alice") == "u:alice"
    assert conversation_with("alice", "g:team") == "g:team"
    with pytest.raises(Invalid, match="'b ob' is neither a user nor a conversation"):
        conversation_with("alice", "b ob")
