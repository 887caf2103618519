from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.partitions import assign, home_of, partition_of

names = st.text("abcdef0123456789", min_size=1, max_size=8)
workers = st.lists(names, min_size=1, max_size=8, unique=True)


def test_worked_examples_never_change() -> None:
    # Clients in other languages compute the same partitions: a change would misroute their messages.
    assert partition_of("d:alice:bob", 16) == 12
    assert partition_of("u:alice", 16) == 3
    assert partition_of("d:alice:bob", 1) == 0


def test_a_users_home_is_the_users_own_conversation() -> None:
    assert home_of("alice") == "u:alice"


def test_conversations_spread_evenly() -> None:
    counts = Counter(partition_of(f"d:user{n}:user{n + 1}", 16) for n in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1.2 * min(counts.values())


# --- assignment to workers


def test_without_workers_no_partition_is_owned() -> None:
    assert assign(3, []) == ["", "", ""]


def test_one_worker_owns_everything() -> None:
    assert assign(4, ["a"]) == ["a"] * 4


@given(workers, st.integers(1, 64))
def test_the_order_of_workers_does_not_matter(names: list[str], partitions: int) -> None:
    assert assign(partitions, names) == assign(partitions, sorted(names, reverse=True))


@given(workers, names, st.integers(1, 64))
def test_a_joining_worker_only_moves_partitions_to_itself(
    present: list[str], joins: str, partitions: int
) -> None:
    before = assign(partitions, present)
    after = assign(partitions, [*present, joins])
    assert all(now in (then, joins) for then, now in zip(before, after, strict=True))


@given(workers, st.integers(1, 64), st.data())
def test_a_leaving_worker_only_moves_its_own_partitions(
    present: list[str], partitions: int, data: st.DataObject
) -> None:
    leaves = data.draw(st.sampled_from(present))
    before = assign(partitions, present)
    after = assign(partitions, [worker for worker in present if worker != leaves])
    assert all(now == then for then, now in zip(before, after, strict=True) if then != leaves)


def test_shares_are_fair_on_average() -> None:
    owners = assign(10_000, ["a", "b", "c", "d"])
    assert all(2_300 < owners.count(name) < 2_700 for name in "abcd")
