from collections import Counter

from imqtt.core.partitions import home_of, partition_of


def test_worked_examples_hold_for_ever() -> None:
    # A client in another language computes these; a change would send its messages astray.
    assert partition_of("d:alice:bob", 16) == 12
    assert partition_of("u:alice", 16) == 3
    assert partition_of("d:alice:bob", 1) == 0


def test_a_users_home_is_his_own_conversation() -> None:
    assert home_of("alice") == "u:alice"


def test_conversations_spread_evenly() -> None:
    counts = Counter(partition_of(f"d:user{n}:user{n + 1}", 16) for n in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1.2 * min(counts.values())
