"""Everything that a user has, read by a device that begins with nothing."""

from imqtt.model import Cursor, Event, Id, Page, Sync
from imqtt.protocol import Format
from tests.device import RawDevice
from tests.verification.chaos.parts import Broker
from tests.verification.checker.history import Held, History, Row, now

PAGE_SECONDS = 20.0


async def read_all(broker: Broker, user: str, history: History) -> int:
    """Writes down all of a user's conversations; how many events there are. Raises `AssertionError`."""
    name = f"{user}@fresh"
    count = 0
    async with RawDevice(broker, name, Format.PROTOBUF) as device:
        heads = await _ask(device, Sync(heads=True, ref="heads"))
        assert not heads.more_heads, "a user has more conversations than a page has heads"
        for conversation in sorted(head.conversation for head in heads.heads):
            rows = await _whole(device, conversation)
            history.write(Held(name, now(), conversation, 0, rows, fresh=True))
            count += len(rows)
    return count


async def _whole(device: RawDevice, conversation: str) -> tuple[Row, ...]:
    rows: list[Row] = []
    while True:
        seq, id = (rows[-1].seq, rows[-1].id) if rows else (0, 0)
        page = await _ask(device, Sync((Cursor(conversation, seq, Id(id)),), ref=f"{conversation}-{seq}"))
        rows += [_row(event) for slice in page.slices for event in slice.events]
        if not page.more:
            return tuple(rows)


async def _ask(device: RawDevice, question: Sync) -> Page:
    """The page that answers; asks once more if there is none. What came before is forgotten."""
    for attempt in (1, 2):
        device.frames.clear()
        await device.command(question)
        try:
            answer = await device.until(
                lambda frame: isinstance(frame, Page) and frame.ref == question.ref, within=PAGE_SECONDS
            )
        except AssertionError:
            if attempt == 2:
                raise
        else:
            assert isinstance(answer, Page)
            return answer
    raise AssertionError("unreachable")


def _row(event: Event) -> Row:
    return Row(event.seq, int(event.id), event.sender, event.client_msg_id, event.content.text or "")
