"""Events of imqtt as rows of a history."""

from imqtt.model import Event, Id, Position
from tests.verification.checker.history import Row, recall_of, target_of


def row_of(event: Event) -> Row:
    value = event.content.text or ""
    if event.recall is not None:
        value = recall_value(event.recall.target)
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, value)


def recall_value(target: Position) -> str:
    """The value of a recall in a history."""
    return recall_of(target.seq, int(target.id))


def recalled_by(value: str) -> Position | None:
    """The message that a value recalls, if it is a recall's."""
    target = target_of(Row(0, 0, "", "", value))
    return None if target is None else Position(target[0], Id(target[1]))
