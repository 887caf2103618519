"""PUBACKs leave in the order of receipt, whatever the order of acks."""

from hypothesis import given
from hypothesis import strategies as st

from imqtt.broker.receipts import Receipts


@given(st.data(), st.integers(1, 30))
def test_any_order_of_acks_frees_packet_ids_in_order_of_receipt(data: st.DataObject, count: int) -> None:
    receipts = Receipts()
    packet_ids = [100 + number % 7 for number in range(count)]  # ids repeat before they are acked
    numbers = [receipts.add(packet_id, 10) for packet_id in packet_ids]
    acked: set[int] = set()
    freed: list[int] = []

    for number in data.draw(st.permutations(numbers)):
        freed += receipts.ack(number)
        acked.add(number)
        unbroken = next((place for place, number in enumerate(numbers) if number not in acked), count)
        assert freed == packet_ids[:unbroken]
        assert len(receipts) == count - unbroken
        assert receipts.size == 10 * (count - unbroken)


@given(st.lists(st.booleans(), max_size=60))
def test_packets_received_between_acks_are_queued_after_earlier_ones(steps: list[bool]) -> None:
    receipts = Receipts()
    added: list[int] = []
    freed: list[int] = []
    for add in steps:
        if add:
            added.append(receipts.add(len(added), 1))
        elif len(freed) < len(added):
            freed += receipts.ack(added[len(freed)])

    assert freed == list(range(len(freed)))


def test_a_second_ack_and_one_of_another_connection_change_nothing() -> None:
    earlier, receipts = Receipts(), Receipts()
    foreign = earlier.add(1, 1)
    first, second = receipts.add(1, 1), receipts.add(2, 1)

    assert receipts.ack(foreign) == []
    assert receipts.ack(first) == [1]
    assert receipts.ack(first) == []
    assert receipts.ack(second) == [2]
    assert receipts.ack(second) == []
    assert receipts.ack(second + 1) == []
