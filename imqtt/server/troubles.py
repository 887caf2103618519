"""What is wrong with what the server stands on, at the moment."""

from dataclasses import dataclass


@dataclass(slots=True)
class Condition:
    """One sentence for each part; "" while it works. For health pages and `imqtt workers`."""

    store: str = ""
    rival: str = ""

    def store_failed(self, error: Exception) -> None:
        """Something waits for the store, and asks again."""
        self.store = f"the store does not answer: {error}"

    def store_answered(self) -> None:
        self.store = ""
