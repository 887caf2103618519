"""A problem is logged when it starts, when its cause changes, and when it is over; and only once."""

import asyncio
import errno
import logging
from pathlib import Path

import pytest

from imqtt.problems import REPEAT_SECONDS, Problem, duration, explain
from tests.services import eventually

log = logging.getLogger("imqtt.test")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def problem(clock: Clock, caplog: pytest.LogCaptureFixture) -> Problem:
    caplog.set_level(logging.INFO, "imqtt")
    return Problem(log, "no connection to b:1884", "connected to b:1884 again", calm=0.0, clock=clock)


def test_a_problem_that_occurs_often_is_logged_only_when_it_starts_and_when_it_ends(
    problem: Problem, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        problem.start("Connection refused")
        clock.now += 0.5
    problem.end()
    problem.end()
    assert caplog.messages == [
        "no connection to b:1884: Connection refused",
        "connected to b:1884 again, after 50 s",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_cause_that_changes_is_logged_and_one_that_differs_in_a_number_is_not(
    problem: Problem, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    problem.start("no answer within 10 s")
    clock.now += 180
    problem.start("no answer within 12 s")
    problem.start("the certificate has expired")
    assert caplog.messages[1:] == ["no connection to b:1884, for 3 min now: the certificate has expired"]
    assert problem.text.endswith("UTC: the certificate has expired")
    assert problem.seconds == 180


def test_causes_that_alternate_do_not_fill_the_log(
    problem: Problem, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        problem.start("one")
        problem.start("another")
        clock.now += 1
    assert len(caplog.messages) == 2
    clock.now += REPEAT_SECONDS
    problem.start("one")
    assert len(caplog.messages) == 3


def test_a_problem_of_many_parts_is_logged_once_and_ends_with_the_last_of_them(
    problem: Problem, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(16):
        problem.start("the connection was lost", f"partition {number}")
    for number in range(15):
        problem.end(f"partition {number}")
    clock.now += 2
    assert caplog.messages == ["no connection to b:1884 (partition 0): the connection was lost"]
    problem.end("partition 15")
    assert caplog.messages[1:] == ["connected to b:1884 again, after 2.0 s; 16 were affected"]
    assert problem.text == ""


async def test_a_problem_that_returns_at_once_has_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem(log, "cut", "connected", calm=0.1)
    for _ in range(20):
        problem.start("the connection was lost")
        problem.end()
        await asyncio.sleep(0)
    assert len(caplog.messages) == 1
    await eventually(lambda: len(caplog.messages) == 2)


async def test_repeated_events_are_one_problem_until_they_stop(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem(log, "packets are refused", "no packet was refused lately", calm=0.1)
    for _ in range(30):
        problem.note("not authorized")
    assert caplog.messages == ["packets are refused: not authorized"]
    assert problem.text.endswith(": not authorized")
    await eventually(lambda: len(caplog.messages) == 2)
    assert "it happened 30 times" in caplog.messages[1]
    assert problem.text == ""


def test_a_problem_that_recurs_after_its_end_is_logged_again(
    problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        problem.start("one")
        problem.end()
    assert len(caplog.messages) == 4


def test_an_error_is_explained_with_its_file_and_a_limit_with_its_setting(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(OSError, match="missing") as caught:
        missing.open()
    assert explain(caught.value) == f"{missing}: No such file or directory"
    assert explain(ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")) == "Connection refused"
    assert "LimitNOFILE" in explain(OSError(errno.EMFILE, "Too many open files"))
    assert explain(TimeoutError()) == "TimeoutError()"
    assert explain(ValueError("why.")) == "why"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (50, "50 s"), (300, "5 min"), (9_000, "2.5 h")]
)
def test_durations_are_shown_in_readable_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
