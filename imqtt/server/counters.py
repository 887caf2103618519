"""The server's counters: plain numbers, for reports."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Since the process began."""

    received: int = 0  # commands, redeliveries included
    stored: int = 0  # events committed
    known: int = 0  # commands whose event was stored already
    rejected: int = 0  # commands refused
    unanswered: int = 0  # refusals that were not sent, so that a flood is not answered with another
    passed_on: int = 0  # commands published to the wrong partition
    frames: int = 0  # frames to devices
    packets: int = 0  # packets that carried them
    packets_refused: int = 0  # packets that the broker did not take
    reads: int = 0  # `Hello`, `Sync` and `History` served
    commits_retried: int = 0  # appends whose outcome was unknown
    conflicts: int = 0  # appends that met a row of the same seq or key
    failures: int = 0  # batches that raised what no code expected
    devices_removed: int = 0  # abandoned devices
    devices_revoked: int = 0  # devices whose credentials an operator removed
    by_code: dict[str, int] = field(default_factory=dict)  # commands refused, by error code

    def reject(self, code: str, count: int = 1) -> None:
        self.rejected += count
        self.by_code[code] = self.by_code.get(code, 0) + count
