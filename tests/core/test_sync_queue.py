"""When a device requests the events that it misses."""

from imqtt.core.sync_queue import SyncQueue


def test_what_asking_does_not_bring_is_asked_for_less_and_less() -> None:
    wanted = SyncQueue(lambda: 1.0)
    wanted.add("a", 0.0)
    waits, now = [], 0.0
    for _ in range(12):
        due = wanted.next_at()
        assert due is not None
        waits.append(due - now)
        now = due
        assert wanted.due(now, 10) == ["a"]
        assert wanted.next_at() is None
        wanted.again("a", now, helped=False)
        wanted.add("a", now)  # a wish that did not help does not become more urgent by being repeated
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    wanted.add("a", now, firm=True)  # the server has said something of it
    assert wanted.next_at() == now + 0.5
    wanted.done("a")
    assert wanted.next_at() is None
    assert len(wanted) == 0
