"""Events of imqtt as rows of a history."""

from imqtt.model import Event
from tests.verification.checker.history import Row


def row_of(event: Event) -> Row:
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, event.content.text or "")
