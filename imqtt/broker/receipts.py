"""Messages that were received and not acked: the order in which their PUBACKs may leave.

MQTT 5 wants PUBACKs in the order of receipt (section 4.6). The application may be done with messages in
another order, so an ack waits until everything before it is acked too.
"""

from collections import deque
from itertools import count

_connections = count()


class Receipts:
    """The FIFO of one connection. It ends with it: on another connection the packet ids mean other messages.

    Receipts are numbered on, from another beginning for each connection, so that one of another connection
    is told from one of this.
    """

    def __init__(self) -> None:
        self._first = self._next = next(_connections) << 40  # `_first` is the oldest that is not acked
        self._waiting: deque[tuple[int, int]] = deque()  # (packet id, bytes), the oldest first
        self._done: set[int] = set()  # acked, but something before it is not
        self.size = 0  # bytes of payload of what waits

    def __len__(self) -> int:
        """Messages whose PUBACK has not been made."""
        return len(self._waiting)

    def add(self, packet_id: int, size: int) -> int:
        """Notes a message, and returns its receipt."""
        receipt = self._next
        self._next = receipt + 1
        self._waiting.append((packet_id, size))
        self.size += size
        return receipt

    def ack(self, receipt: int) -> list[int]:
        """The packet ids whose PUBACKs may leave now, in their order.

        A receipt that is acked already, or of another connection, changes nothing.
        """
        if not self._first <= receipt < self._next:
            return []
        if receipt != self._first:
            self._done.add(receipt)
            return []
        packet_id, size = self._waiting.popleft()
        self.size -= size
        self._first = receipt = receipt + 1
        if not self._done:
            return [packet_id]
        free = [packet_id]
        while receipt in self._done:
            self._done.remove(receipt)
            packet_id, size = self._waiting.popleft()
            self.size -= size
            free.append(packet_id)
            receipt += 1
        self._first = receipt
        return free
