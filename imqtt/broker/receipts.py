"""Received packets that are not acked yet, and the order of their PUBACKs.

MQTT 5 requires PUBACKs in the order of receipt (section 4.6). The application may ack in any order, so a
PUBACK waits until all packets before it are acked.
"""

from collections import deque
from itertools import count

_connections = count()


class Receipts:
    """The FIFO of one connection. Packet ids have no meaning on another connection.

    Receipts are consecutive numbers that start at another value for each connection, so a receipt of an
    earlier connection is recognized.
    """

    def __init__(self) -> None:
        self._first = self._next = next(_connections) << 40  # `_first` is the oldest that is not acked
        self._waiting: deque[tuple[int | None, int]] = deque()  # (packet id, bytes), the oldest first
        self._done: set[int] = set()  # acked, but a packet before them is not
        self.size = 0  # payload bytes of all that wait

    def __len__(self) -> int:
        """Packets that wait for their ack, or for that of a packet before them."""
        return len(self._waiting)

    def add(self, packet_id: int | None, size: int) -> int:
        """Adds a packet; at QoS 0 its id is None. Returns its receipt."""
        receipt = self._next
        self._next = receipt + 1
        self._waiting.append((packet_id, size))
        self.size += size
        return receipt

    def ack(self, receipt: int) -> list[int]:
        """Returns the packet ids to PUBACK now, in order.

        Ignores a receipt that is acked already or belongs to another connection.
        """
        if not self._first <= receipt < self._next:
            return []
        if receipt != self._first:
            self._done.add(receipt)
            return []
        free: list[int] = []
        while True:
            packet_id, size = self._waiting.popleft()
            self.size -= size
            if packet_id is not None:
                free.append(packet_id)
            self._first += 1
            if self._first not in self._done:
                return free
            self._done.remove(self._first)
