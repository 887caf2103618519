"""The user's own marks in a conversation, and those that the server is known to have."""

from dataclasses import dataclass


@dataclass(slots=True)
class OwnMarks:
    """`is_raised`: they rose since they were last stored. `is_server_changed`: the server's changed since."""

    delivered: int = 0
    read: int = 0
    server_delivered: int = 0
    server_read: int = 0
    is_raised: bool = False
    is_server_changed: bool = False

    @property
    def is_ahead(self) -> bool:
        """Whether the server lacks some of them."""
        return self.delivered > self.server_delivered or self.read > self.server_read

    def merge(self, delivered: int, read: int) -> None:
        """Marks that another device of the user set."""
        self.delivered, self.read = max(self.delivered, delivered), max(self.read, read)

    def deliver(self, seq: int) -> None:
        self.delivered = max(self.delivered, seq)
        self.is_raised = True

    def set_server(self, delivered: int, read: int) -> None:
        """The server has exactly these."""
        if (delivered, read) != (self.server_delivered, self.server_read):
            self.server_delivered, self.server_read = delivered, read
            self.is_server_changed = True

    def bound(self, seq: int) -> None:
        """The log was replaced by one that ends at `seq`, and the server has no marks in it yet."""
        self.delivered, self.read = min(self.delivered, seq), min(self.read, seq)
        self.is_raised = True
        self.set_server(0, 0)
