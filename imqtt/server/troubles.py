"""What is wrong with what the server stands on, at the moment."""

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Troubles:
    """One sentence for each part; "" while it works. For health pages and `imqtt workers`."""

    store: str = ""
    cluster: str = ""  # a server of another store on this broker
    stranger: str = ""  # a worker of this store that this one does not see in its state
    store_since: float = 0.0  # of `time.monotonic`

    def store_failed(self, error: Exception) -> None:
        """Something waits for the store, and asks again."""
        if not self.store:
            self.store_since = time.monotonic()
        self.store = f"the store does not answer: {error}"

    def store_answered(self) -> None:
        self.store = ""

    @property
    def stuck(self) -> float:
        """For how many seconds nothing could be stored."""
        return time.monotonic() - self.store_since if self.store else 0.0
