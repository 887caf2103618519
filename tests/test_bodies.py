"""A stored body is decoded to what was encoded, and quickly."""

from functools import partial
from timeit import timeit

from hypothesis import given

from imqtt.bodies import Change, decode_body
from imqtt.model import Content, JsonText
from tests.protocol.strategies import contents


@given(contents)
def test_a_stored_content_keeps_its_value(content: Content) -> None:
    encoded = Change("message", content).encode().decode()
    found = decode_body("message", encoded)
    assert type(found) is Content
    assert found == content
    assert type(found.json) is type(content.json)


def test_a_text_that_looks_like_json_stays_text() -> None:
    content = Content(text='{"json":1,"text":"x"}')
    assert decode_body("message", Change("message", content).encode().decode()) == content


def test_a_content_with_fields_of_a_later_version_is_decoded() -> None:
    found = decode_body("message", '{"font":{"json":[1]},"json":{"a":1}}')
    assert found == Content(json=JsonText('{"a":1}'))
    assert decode_body("message", '{"text":"x","font":{"json":[1]}}') == Content(text="x")


def test_a_large_json_value_is_read_as_fast_as_text() -> None:
    """A page is selected from a hundred messages, and a device asks for pages as often as it wants."""
    array = f"[{','.join(['{}'] * 20_000)}]"
    contents = Content(json=JsonText(array)), Content(text=array)
    slow, fast = (
        min(timeit(partial(decode_body, "message", encoded), number=1) for _ in range(5))
        for encoded in (Change("message", content).encode().decode() for content in contents)
    )
    assert slow < 20 * fast
