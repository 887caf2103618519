"""The error tree."""

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterator

import pytest

import imqtt
from imqtt import errors
from imqtt.errors import ImqttError, Unavailable

for module in pkgutil.walk_packages(imqtt.__path__, "imqtt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)


def below(kind: type[ImqttError]) -> Iterator[type[ImqttError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("imqtt."):  # not those of tests
            yield child
            yield from below(child)


ALL = list(below(ImqttError))
each_error = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


def instance_of(kind: type[ImqttError]) -> ImqttError:
    """An instance, with a value of the right type for each argument without a default."""
    parameters = inspect.signature(kind).parameters.values()
    given = [1 if one.annotation is int else "text" for one in parameters if one.default is one.empty]
    return kind(*given)


def test_a_code_belongs_to_one_class() -> None:
    codes = Counter(kind.code for kind in [ImqttError, *ALL] if "code" in vars(kind))
    assert [code for code, number in codes.items() if number > 1] == []


def test_every_class_in_errors_has_its_own_code_except_the_kinds_of_unavailable() -> None:
    for kind in ALL:
        if kind.__module__ == errors.__name__ and not issubclass(kind, Unavailable):
            assert "code" in vars(kind), kind


def test_a_code_of_the_wire_builds_its_class() -> None:
    for code, kind in errors.WIRE_ERRORS.items():
        error = kind("reason", retry_after=7)
        assert (error.code, error.reason, error.retry_after) == (code, "reason", 7)


@each_error
def test_every_error_is_described_and_says_whether_it_is_retryable(kind: type[ImqttError]) -> None:
    assert vars(kind).get("__doc__")
    assert kind.code.replace("_", "").isalpha()
    assert isinstance(kind.retryable, bool)
    error = instance_of(kind)
    assert str(error) == error.reason != ""


@each_error
def test_every_error_is_drawn_in_the_tree(kind: type[ImqttError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "").replace(",", "").split()
    if kind.__module__ != errors.__name__:
        assert kind.__module__ in errors.__doc__
