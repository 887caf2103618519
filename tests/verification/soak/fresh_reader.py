"""Reads everything that a user can see, with a device that starts with nothing."""

from imqtt.model import Cursor, Id, Page, Sync
from imqtt.protocol import Format
from tests.device import RawDevice
from tests.verification.chaos.stack import Broker
from tests.verification.checker.history import Held, History, Row, now
from tests.verification.events import row_of

PAGE_SECONDS = 20.0


async def read_all(broker: Broker, user: str, history: History) -> int:
    """Records all conversations of a user; returns the number of events. Raises `AssertionError`."""
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
        rows += [row_of(event) for slice in page.slices for event in slice.events]
        if not page.more:
            return tuple(rows)


async def _ask(device: RawDevice, question: Sync) -> Page:
    """The page that answers; asks again once. Discards earlier frames."""
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
