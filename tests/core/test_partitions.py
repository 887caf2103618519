from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imqtt.core.partitions import assign, home_of, partition_of

names = st.text("abcdef0123456789", min_size=1, max_size=8)
workers = st.lists(names, min_size=1, max_size=8, unique=True)


def test_worked_examples_hold_for_ever() -> None:
    # Clients in other languages compute the same partitions: a change would misroute their messages.
    assert partition_of("d:alice:bob", 16) == 12
    assert partition_of("u:alice", 16) == 3
    assert partition_of("d:alice:bob", 1) == 0


def test_a_users_home_is_his_own_conversation() -> None:
    assert home_of("alice") == "u:alice"


def test_conversations_spread_evenly() -> None:
    counts = Counter(partition_of(f"d:user{n}:user{n + 1}", 16) for n in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1.2 * min(counts.values())


# --- assignment to workers


def test_nobody_owns_anything_where_nobody_is() -> None:
    assert assign(3, []) == ["", "", ""]


def test_one_worker_owns_everything() -> None:
    assert assign(4, ["a"]) == ["a"] * 4


@given(workers, st.integers(1, 64))
def test_the_order_in_which_workers_are_named_does_not_matter(names: list[str], partitions: int) -> None:
    assert assign(partitions, names) == assign(partitions, sorted(names, reverse=True))


@given(workers, names, st.integers(1, 64))
def test_who_joins_takes_only_what_becomes_his_own(them: list[str], joins: str, partitions: int) -> None:
    before = assign(partitions, them)
    after = assign(partitions, [*them, joins])
    assert all(now in (then, joins) for then, now in zip(before, after, strict=True))


@given(workers, st.integers(1, 64), st.data())
def test_of_who_leaves_nothing_moves_but_what_was_his(
    them: list[str], partitions: int, data: st.DataObject
) -> None:
    leaves = data.draw(st.sampled_from(them))
    before = assign(partitions, them)
    after = assign(partitions, [worker for worker in them if worker != leaves])
    assert all(now == then for then, now in zip(before, after, strict=True) if then != leaves)


def test_shares_are_fair_on_average() -> None:
    owners = assign(10_000, ["a", "b", "c", "d"])
    assert all(2_300 < owners.count(name) < 2_700 for name in "abcd")
