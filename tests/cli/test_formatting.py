"""Model values as text."""

from imqtt.cli.formatting import words_of, words_of_command
from imqtt.model import NO_CONTENT, Content, Event, Id, LogCommand, Send


class Pin(LogCommand, frozen=True):
    """A command that is not a message."""


def test_an_outbox_entry_shows_its_text_or_the_name_of_its_command() -> None:
    assert words_of_command(Send("d:alice:bob", "m1", Content(text="hi"))) == "hi"
    assert words_of_command(Pin("d:alice:bob", "m2")) == "[pin]"


def test_an_event_of_an_unknown_kind_shows_its_kind() -> None:
    event = Event("d:alice:bob", 1, Id(10), 1_000, "bob", "phone", "m1", NO_CONTENT, "later\x1b")
    assert words_of(event) == "[later\N{REPLACEMENT CHARACTER}]"
