"""Reports of the command line about the connection."""

from imqtt.cli.client import SILENT, StateNews
from imqtt.client import ConnectionState, Phase
from imqtt.errors import ImqttError, NotConnected, TakenOver, TlsFailed


def idle(error: ImqttError) -> ConnectionState:
    return ConnectionState(Phase.IDLE, reason=str(error), error=error)


ESTABLISHED = ConnectionState(Phase.ESTABLISHED)


def test_a_problem_is_reported_once_and_so_is_its_end() -> None:
    news = StateNews()
    states = [idle(NotConnected("refused")), idle(NotConnected("no route")), ESTABLISHED, ESTABLISHED]
    assert [news.of(state) for state in states] == [
        "no connection, trying again: refused", "", "connected again", "",
    ]  # fmt: skip


def test_a_problem_that_needs_action_is_reported_though_there_was_no_connection_before() -> None:
    for error in (TlsFailed("the certificate has expired"), TakenOver("another process")):
        news = StateNews()
        news.of(idle(NotConnected("the broker closed the connection")))
        assert news.of(idle(error)) == f"no connection, trying again: {error}"
        assert news.of(idle(NotConnected("no answer"))) == ""
        assert news.of(idle(error)) == ""


def test_a_takeover_is_reported_when_the_broker_has_accepted_the_next_connection() -> None:
    error = TakenOver("another process")
    connecting = ConnectionState(Phase.CONNECTING, reason=str(error), error=error)
    news = StateNews()
    reports = [
        news.of(state) for state in (idle(NotConnected("it ended")), connecting, connecting, ESTABLISHED)
    ]
    assert reports == [
        "no connection, trying again: it ended", "no connection, trying again: another process", "",
        "connected again",
    ]  # fmt: skip


def test_the_silence_and_the_return_of_the_server_are_reported() -> None:
    news = StateNews()
    silent = ConnectionState(Phase.ESTABLISHED, silent=True)
    reports = [news.of(state) for state in (ESTABLISHED, silent, silent, ESTABLISHED)]
    assert reports == ["", f"{SILENT}; trying again", "", "the imqtt server answers again"]
