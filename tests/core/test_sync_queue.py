"""When a device requests the events that it misses."""

from imqtt.core.sync_queue import SyncQueue


def test_events_that_a_sync_does_not_return_are_requested_less_and_less_often() -> None:
    queue = SyncQueue(lambda: 1.0)
    queue.add("a", 0.0)
    waits, now = [], 0.0
    for _ in range(12):
        due = queue.next_at()
        assert due is not None
        waits.append(due - now)
        now = due
        assert queue.due(now, 10) == ["a"]
        assert queue.next_at() is None
        queue.again("a", now, helped=False)
        queue.add("a", now)  # a request that did not help does not become more urgent by being repeated
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    queue.add("a", now, firm=True)  # the server has sent something of it
    assert queue.next_at() == now + 0.5
    queue.done("a")
    assert queue.next_at() is None
    assert len(queue) == 0
