"""The newest position of each conversation, as far as the owner of its partition remembers."""

from collections import OrderedDict
from collections.abc import Collection, Mapping

from imqtt.model import Position


class HeadCache:
    """An LRU of at most `size` conversations. A stale entry costs a refused append, never a wrong one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._positions: OrderedDict[str, Position] = OrderedDict()

    def get(self, conversation: str) -> Position | None:
        position = self._positions.get(conversation)
        if position is not None:
            self._positions.move_to_end(conversation)
        return position

    def put(self, positions: Mapping[str, Position]) -> None:
        """Replaces entries, and drops those unused for longest."""
        for conversation, position in positions.items():
            self._positions[conversation] = position
            self._positions.move_to_end(conversation)
        while len(self._positions) > self._size:
            self._positions.popitem(last=False)

    def forget(self, conversations: Collection[str] | None = None) -> None:
        """Drops some entries, or all: another owner may have appended since."""
        for conversation in tuple(self._positions) if conversations is None else conversations:
            self._positions.pop(conversation, None)
