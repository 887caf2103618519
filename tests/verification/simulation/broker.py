"""An MQTT broker in memory for the simulated world: Mosquitto with this project's configuration.

It does everything that the server's link and the SDK can observe: QoS 0 and 1, sessions and takeovers,
redelivery, wills, queues, wildcards, and loss and restore of its state. `test_broker.py` holds it and
Mosquitto to the same behaviour. Not implemented: passwords and ACLs, QoS 2, retained messages (the
configuration disables them), limits in bytes.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, SESSION_TAKEN_OVER, SUCCESS
from imqtt.broker.values import LinkSettings, Will
from imqtt.broker.values import Packet as Message
from tests.verification.simulation.loop import Loop, Process, current
from tests.verification.simulation.network import Batch, Connection, Packet
from tests.verification.simulation.release import DEBIAN, Release

# Packets from clients; the first item is the type.
CONNECT = 1  # settings, Receive Maximum (0: none)
PUBLISH = 2  # message, token or None at QoS 0
ACK = 3  # packet id
SUBSCRIBE = 4  # filters, token
DISCONNECT = 5  # reason code; also sent by the broker
# Packets from the broker. A token comes back unchanged: publishers' packet ids are not simulated.
CONNACK = 6  # code, session present, client id, keep alive
DELIVERY = 7  # packet id or None, message, dup
PUBACK = 8  # token, code
SUBACK = 9  # token, codes

# deploy/mosquitto/mosquitto.conf
MAX_QUEUED = 100_000
MAX_KEEP_ALIVE = 300
MAX_PACKET = 1_048_576
LONGEST_EXPIRY = 14 * 86_400

WATCH_SECONDS = 6.0  # interval of Mosquitto's check for silent clients
DEAD_AFTER = 1.5  # keep-alive intervals
RESET = 0.5  # probability that an end with unread or unsent packets loses some of them
NEVER = float("inf")

Entry = tuple[int, Message]
"""A packet id and its message."""


class Saved(NamedTuple):
    """A session as in mosquitto.db."""

    client_id: str
    expiry: int
    last_id: int
    filters: tuple[str, ...]
    inflight: tuple[Entry, ...]
    queued: tuple[Entry, ...]


State = tuple[Saved, ...]


class Session:
    """The broker's data of a client id."""

    __slots__ = (
        "clean_start",
        "client_id",
        "connection",
        "expires",
        "expiry",
        "filters",
        "inflight",
        "last_id",
        "maximum",
        "queued",
        "quota",
    )

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.connection: Connection | None = None
        self.clean_start = False  # of the latest connection; such sessions are not saved
        self.expiry = 0  # seconds, as the client requested
        self.expires = NEVER
        self.filters: dict[str, None] = {}
        self.last_id = 0
        self.inflight: deque[Entry] = deque()  # sent and not acked
        self.queued: deque[Entry] = deque()
        self.maximum = 0  # of messages in flight; 0: no limit
        self.quota = 0  # how many more may be in flight

    def next_id(self) -> int:
        """As Mosquitto assigns it: without a check for ids in flight."""
        self.last_id = self.last_id % 0xFFFF + 1
        return self.last_id


class Broker:
    """`process` is its process, which may be paused; each start makes a new one."""

    def __init__(self, loop: Loop, *, release: Release = DEBIAN, max_queued: int = MAX_QUEUED) -> None:
        self.loop = loop
        self.release = release
        self.running = False
        self.unreachable: set[str] = set()  # names of processes whose new connections get no answer
        self.refusals: dict[str, int] = {}  # client id to the reason code of its CONNACK
        self.dropped = 0  # messages dropped at full queues
        self.max_queued = max_queued  # queued messages per session
        self._sessions: dict[str, Session] = {}
        self._connections: dict[Connection, None] = {}
        self._matches: dict[str, tuple[Session, ...]] = {}  # by topic; cleared when subscriptions change
        self._next_expiry = NEVER
        self._assigned = 0
        self._outside: Process | None = None
        self.process: Process
        self.start(None)

    # --- its process

    def start(self, state: State | None) -> None:
        """Starts with the result of `snapshot`, or with no state."""
        if self.running:
            raise RuntimeError("it is already running")
        self.running = True
        self.process = self.loop.new_process("broker")
        for saved in state or ():
            session = self._sessions[saved.client_id] = Session(saved.client_id)
            # 2.0.11 does not expire a restored session before its client has connected again.
            session.expiry = saved.expiry
            session.filters = dict.fromkeys(saved.filters)
            session.last_id = saved.last_id
            session.inflight.extend(saved.inflight)
            session.queued.extend(saved.queued)
        self.process.call_later(WATCH_SECONDS, self._watch)

    def kill(self) -> None:
        """SIGKILL: no will is published and its state is lost. The kernel closes its connections."""
        self.loop.kill(self.process)
        self.running = False
        self._sessions.clear()
        self._matches.clear()
        self._next_expiry = NEVER
        connections = list(self._connections)
        self._connections.clear()
        for connection in connections:
            connection.close_broker_end(RESET)

    def snapshot(self) -> State:
        """The state that it would write to mosquitto.db now.

        Sessions whose latest connection had clean_start are not saved, whatever their expiry. Older releases
        save sessions without clean_start and without an expiry, which end with their connection: after a
        restore, they queue messages for a client that will never get them.
        """
        self._expire()
        return tuple(
            Saved(
                session.client_id,
                session.expiry,
                session.last_id,
                tuple(session.filters),
                tuple(session.inflight),
                tuple(session.queued),
            )
            for session in self._sessions.values()
            if not session.clean_start and (session.expiry or self.release.saves_without_expiry)
        )

    @property
    def unfinished(self) -> int:
        """Messages at QoS 1 that are queued or in flight."""
        return sum(len(session.inflight) + len(session.queued) for session in self._sessions.values())

    # --- its network

    def accept(self, to_client: Callable[[Batch], None]) -> Connection:
        """A connection of the current process, in the broker's backlog. Raises `ConnectionRefusedError`."""
        if not self.running:
            raise ConnectionRefusedError("the broker is not running")
        client = current()
        if client is None:  # a test, outside all processes
            client = self._outside = self._outside or self.loop.new_process("outside")
        connection = Connection(self.loop, client, self.process, to_client, self._receive)
        self._connections[connection] = None
        return connection

    def connections(self, process: Process | None = None) -> list[Connection]:
        """The open connections of this process, or all. Those that the broker has closed are not included."""
        return [
            connection for connection in self._connections if process is None or connection.client is process
        ]

    def close_connections_of(self, process: Process) -> None:
        """Called when the process was killed: its kernel closes its connections."""
        for connection in self.connections(process):
            connection.close_client_end(RESET)

    def _watch(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            if not connection.mute:
                connection.heard = -1.0
            elif not connection.keep_alive:
                continue
            elif connection.heard < 0:
                # No pings are sent, so the time of the last one is drawn: before the client fell silent,
                # which was after the previous check.
                earlier = max(0.0, connection.keep_alive - WATCH_SECONDS)
                connection.heard = now - WATCH_SECONDS - self.loop.random.random() * earlier
            elif now - connection.heard > DEAD_AFTER * connection.keep_alive:
                self._lost(connection)
                connection.close_broker_end(RESET)
        self.process.call_later(WATCH_SECONDS, self._watch)

    # --- packets from clients

    def _receive(self, connection: Connection, batch: Batch) -> None:
        for packet in batch:
            if connection not in self._connections:
                return  # ended by an earlier packet; the rest is not read
            if packet is None:
                self._lost(connection)
                connection.close_broker_end(0.0)
                continue
            kind = packet[0]
            if kind == ACK:
                self._ack(connection.session, packet[1])
            elif kind == PUBLISH:
                self._publish(connection, packet[1], packet[2])
            elif kind == CONNECT:
                self._connect(connection, packet[1], packet[2])
            elif kind == SUBSCRIBE:
                self._subscribe(connection, packet[1], packet[2])
            else:
                connection.will = None
                self._lost(connection)
                connection.close_broker_end(0.0)

    def _connect(self, connection: Connection, settings: LinkSettings, receive_max: int) -> None:
        self._expire()
        client_id = settings.client_id
        if client_id in self.refusals:
            connection.down.send(((CONNACK, self.refusals[client_id], False, client_id, 0),))
            del self._connections[connection]
            connection.close_broker_end(0.0)
            return
        if not client_id:
            self._assigned += 1
            client_id = f"auto-{self._assigned}"
        found = self._sessions.get(client_id)
        present = found is not None and not settings.clean_start and found.expiry > 0
        if found is not None and not present:
            self._discard(found, settings.clean_start)
        if found is not None and present:
            session = found
            self._supersede(session)  # the session continues, so its old will is not published
        else:
            session = self._sessions[client_id] = Session(client_id)
        session.connection = connection
        session.clean_start = settings.clean_start
        session.expiry = settings.session_expiry
        session.expires = NEVER
        session.maximum = session.quota = receive_max
        connection.session = session
        connection.client_id = client_id
        connection.will = settings.will
        keep_alive = settings.keep_alive
        if not 0 < keep_alive <= MAX_KEEP_ALIVE:
            keep_alive = MAX_KEEP_ALIVE
        connection.keep_alive = keep_alive
        connection.down.send(((CONNACK, SUCCESS, present, client_id, keep_alive),))
        if session.inflight or session.queued:
            self._redeliver(session, connection)

    def _redeliver(self, session: Session, connection: Connection) -> None:
        packets: list[Packet] = [
            (DELIVERY, packet_id, message, True) for packet_id, message in session.inflight
        ]
        session.quota = max(0, session.maximum - len(packets))
        while session.queued and (session.quota > 0 or session.maximum == 0):
            packet_id, message = entry = session.queued.popleft()
            session.inflight.append(entry)
            session.quota = max(0, session.quota - 1)
            packets.append((DELIVERY, packet_id, message, False))
        connection.down.send(packets)

    def _subscribe(self, connection: Connection, filters: tuple[str, ...], token: object) -> None:
        for pattern in filters:
            if pattern not in connection.session.filters:
                connection.session.filters[pattern] = None
                self._matches.clear()
        connection.down.send(((SUBACK, token, bytes([1]) * len(filters)),))

    def _ack(self, session: Session, packet_id: int) -> None:
        inflight = session.inflight
        place = 0
        if inflight and inflight[0][0] == packet_id:
            inflight.popleft()
        else:
            for entry in inflight:
                if entry[0] == packet_id:
                    del inflight[place]
                    break
                place += 1
        if not session.maximum:
            return  # without a limit, nothing is queued for a connected client
        session.quota = min(session.quota + 1, session.maximum)
        # 2.0.11 counts from the position of the acked message, which is the first: each PUBACK releases
        # messages up to the Receive Maximum instead of one, so more are in flight than the client permits.
        queued, connection = session.queued, session.connection
        if self.release.keeps_receive_maximum:
            place = max(0, session.maximum - session.quota)
        while queued and place < session.maximum and connection is not None:
            packet_id, message = entry = queued.popleft()
            inflight.append(entry)
            session.quota = max(0, session.quota - 1)
            connection.down.send(((DELIVERY, packet_id, message, False),))
            place += 1

    # --- messages

    def _publish(self, connection: Connection, message: Message, token: object) -> None:
        heard = self._route(message)
        if token is not None:
            connection.down.send(((PUBACK, token, SUCCESS if heard else NO_MATCHING_SUBSCRIBERS),))

    def _route(self, message: Message) -> bool:
        """Whether there is a matching subscription, also of an offline client or with a full queue."""
        if self.loop.time() > self._next_expiry:
            self._expire()
        topic = message.topic
        sessions = self._matches.get(topic)
        if sessions is None:
            levels = topic.split("/")
            sessions = self._matches[topic] = tuple(
                session
                for session in self._sessions.values()
                for pattern in session.filters
                if _matches(pattern, levels)
            )
        # With MQTT 5, a client with two matching subscriptions gets the message twice.
        for session in sessions:
            self._deliver(session, message)
        return bool(sessions)

    def _deliver(self, session: Session, message: Message) -> None:
        connection = session.connection
        if message.qos == 0:
            if connection is not None:
                connection.down.send(((DELIVERY, None, message, False),))
            return
        packet_id = session.next_id()
        if connection is not None and (session.quota > 0 or session.maximum == 0):
            session.inflight.append((packet_id, message))
            session.quota -= session.quota > 0
            connection.down.send(((DELIVERY, packet_id, message, False),))
            return
        allowed = self.max_queued + (session.maximum if connection is not None else 0)
        waiting = len(session.queued) + (len(session.inflight) if self.release.counts_in_flight else 0)
        if waiting < allowed:
            session.queued.append((packet_id, message))
        else:
            self.dropped += 1  # the newest; its publisher is told "success"

    # --- the end of a connection, and of a session

    def _lost(self, connection: Connection) -> None:
        """The connection has ended: publish its will, if it still has one."""
        del self._connections[connection]
        session = connection.session
        if session is None:
            return
        connection.session = session.connection = None
        self._publish_will(connection)
        if session.expiry == 0:
            self._remove(session)
        else:
            session.expires = self.loop.time() + min(session.expiry, LONGEST_EXPIRY)
            self._next_expiry = min(self._next_expiry, session.expires)

    def _publish_will(self, connection: Connection) -> None:
        will: Will | None = connection.will
        if will is not None:
            connection.will = None
            self._route(Message(will.topic, will.payload, 1, ()))

    def _discard(self, session: Session, clean_start: bool) -> None:
        """Another connection starts a new session. The will is published, even for a persistent one."""
        connection = session.connection
        if clean_start:
            session.filters.clear()
            self._matches.clear()
        if connection is not None:
            self._publish_will(connection)
        self._supersede(session)
        self._remove(session)

    def _supersede(self, session: Session) -> None:
        connection = session.connection
        if connection is not None:
            session.connection = connection.session = connection.will = None
            del self._connections[connection]
            if self.release.tells_of_takeover:
                connection.down.send(((DISCONNECT, SESSION_TAKEN_OVER),))
            # Closing a socket with unread data sends a reset, which overtakes packets in flight.
            connection.close_broker_end(RESET if connection.up.in_flight else 0.0)

    def _remove(self, session: Session) -> None:
        del self._sessions[session.client_id]
        if session.filters:
            self._matches.clear()

    def _expire(self) -> None:
        now = self.loop.time()
        if now > self._next_expiry:
            for session in [session for session in self._sessions.values() if session.expires < now]:
                self._remove(session)
            self._next_expiry = min((session.expires for session in self._sessions.values()), default=NEVER)


def _matches(pattern: str, levels: list[str]) -> bool:
    """Whether a topic, split at its slashes, matches a filter (MQTT 5, section 4.7)."""
    expected = pattern.split("/")
    if levels[0][:1] == "$" and expected[0] in ("+", "#"):
        return False
    for place, level in enumerate(expected):
        if level == "#":
            return True
        if place == len(levels) or level not in ("+", levels[place]):
            return False
    return len(expected) == len(levels)
