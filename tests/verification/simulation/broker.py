"""An MQTT broker in memory, for the simulated world: Mosquitto with this project's configuration.

It does what clients of the server's link and of the SDK can see: QoS 0 and 1, sessions and their takeover,
redelivery, wills, queues, wildcards, the loss and the restoring of what it held. `test_broker.py` holds it
and Mosquitto to the same behaviour. Left out: passwords and ACLs, QoS 2, retained messages (there are none
by the configuration), will delays, bounds in bytes.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from imqtt.broker.errors import NO_MATCHING_SUBSCRIBERS, SESSION_TAKEN_OVER, SUCCESS
from imqtt.broker.values import LinkSettings, Will
from imqtt.broker.values import Packet as Message
from tests.verification.simulation.loop import Loop, Party, current
from tests.verification.simulation.network import Batch, Connection, Packet
from tests.verification.simulation.release import DEBIAN, Release

# What a client sends; the first item of each packet.
CONNECT = 1  # settings, Receive Maximum (0: none)
PUBLISH = 2  # message, token or None at QoS 0
ACK = 3  # packet id
SUBSCRIBE = 4  # filters, token
DISCONNECT = 5  # reason code; the broker sends it, too
# What the broker sends. A token comes back as it was given: packet ids of publishers matter to nobody.
CONNACK = 6  # code, session present, client id, keep alive
DELIVERY = 7  # packet id or None, message, dup
PUBACK = 8  # token, code
SUBACK = 9  # token, codes

# deploy/mosquitto/mosquitto.conf
MAX_QUEUED = 100_000
MAX_KEEP_ALIVE = 300
MAX_PACKET = 1_048_576
LONGEST_EXPIRY = 14 * 86_400

WATCH_SECONDS = 6.0  # how often Mosquitto looks for clients that have gone silent
DEAD_AFTER = 1.5  # keep-alive intervals
RESET = 0.5  # of those who end with something unread, or unsent, lose part of it
NEVER = float("inf")

Entry = tuple[int, Message]
"""A packet id, and the message under way with it."""


class Saved(NamedTuple):
    """A session as it is in mosquitto.db."""

    client_id: str
    expiry: int
    last_id: int
    filters: tuple[str, ...]
    inflight: tuple[Entry, ...]
    queued: tuple[Entry, ...]


State = tuple[Saved, ...]


class Session:
    """What the broker keeps for a client id."""

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
        self.clean_start = False  # of the latest connection: those that had it are not saved
        self.expiry = 0  # seconds, as the client asked for it
        self.expires = NEVER
        self.filters: dict[str, None] = {}
        self.last_id = 0
        self.inflight: deque[Entry] = deque()  # sent at least once, and not acked
        self.queued: deque[Entry] = deque()
        self.maximum = 0  # of messages in flight; 0: no limit
        self.quota = 0  # how many more of them

    def next_id(self) -> int:
        """As Mosquitto draws it: whatever is still in flight."""
        self.last_id = self.last_id % 0xFFFF + 1
        return self.last_id


class Broker:
    """`party` is its process, which may be paused; another one after each start."""

    def __init__(self, loop: Loop, *, release: Release = DEBIAN, max_queued: int = MAX_QUEUED) -> None:
        self.loop = loop
        self.release = release
        self.running = False
        self.unreachable: set[str] = set()  # names of parties whose new connections find no way to it
        self.refusals: dict[str, int] = {}  # client id to the reason code that its CONNECT gets
        self.dropped = 0  # messages, at full queues
        self.max_queued = max_queued  # messages of one session
        self._sessions: dict[str, Session] = {}
        self._connections: dict[Connection, None] = {}
        self._matches: dict[str, tuple[Session, ...]] = {}  # by topic, until somebody subscribes or goes
        self._next_expiry = NEVER
        self._assigned = 0
        self._outside: Party | None = None
        self.party: Party
        self.start(None)

    # --- its process

    def start(self, state: State | None) -> None:
        """With what `snapshot` returned, or with nothing."""
        if self.running:
            raise RuntimeError("it runs already")
        self.running = True
        self.party = self.loop.party("broker")
        for saved in state or ():
            session = self._sessions[saved.client_id] = Session(saved.client_id)
            # 2.0.11 does not expire what it has read back, until its client has been there again.
            session.expiry = saved.expiry
            session.filters = dict.fromkeys(saved.filters)
            session.last_id = saved.last_id
            session.inflight.extend(saved.inflight)
            session.queued.extend(saved.queued)
        self.party.call_later(WATCH_SECONDS, self._watch)

    def crash(self) -> None:
        """SIGKILL: no will is published, and what it held is gone. Its kernel closes the connections."""
        self.loop.crash(self.party)
        self.running = False
        self._sessions.clear()
        self._matches.clear()
        self._next_expiry = NEVER
        connections = list(self._connections)
        self._connections.clear()
        for connection in connections:
            connection.hang_up(RESET)

    def snapshot(self) -> State:
        """What it would write to mosquitto.db at this moment.

        Sessions whose latest connection had clean_start are not in it, whatever their expiry. In older
        releases, one without clean_start is, though it has no expiry and would end with its connection:
        read back, it queues for a client that will never get it.
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
        """Messages at QoS 1 that it holds for somebody."""
        return sum(len(session.inflight) + len(session.queued) for session in self._sessions.values())

    # --- its network

    def accept(self, to_client: Callable[[Batch], None]) -> Connection:
        """A connection of the current party, in the broker's backlog. Raises `ConnectionRefusedError`."""
        if not self.running:
            raise ConnectionRefusedError("nobody listens there")
        client = current()
        if client is None:  # a test, outside of all parties
            client = self._outside = self._outside or self.loop.party("outside")
        connection = Connection(self.loop, client, self.party, to_client, self._take)
        self._connections[connection] = None
        return connection

    def connections(self, party: Party | None = None) -> list[Connection]:
        """Of this party, or all of them. Those that the broker has given up are not among them."""
        return [connection for connection in self._connections if party is None or connection.client is party]

    def lose(self, party: Party) -> None:
        """The party was killed, and its kernel closes its connections."""
        for connection in self.connections(party):
            connection.leave(RESET)

    def _watch(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            if not connection.mute:
                connection.heard = -1.0
            elif not connection.keep_alive:
                continue
            elif connection.heard < 0:
                # Nobody sends pings here, so it is drawn when the last one would have come: before it fell
                # silent, which was after the last watch.
                earlier = max(0.0, connection.keep_alive - WATCH_SECONDS)
                connection.heard = now - WATCH_SECONDS - self.loop.random.random() * earlier
            elif now - connection.heard > DEAD_AFTER * connection.keep_alive:
                self._lost(connection)
                connection.hang_up(RESET)
        self.party.call_later(WATCH_SECONDS, self._watch)

    # --- what clients send

    def _take(self, connection: Connection, batch: Batch) -> None:
        for packet in batch:
            if connection not in self._connections:
                return  # it was ended meanwhile, and the rest is not read
            if packet is None:
                self._lost(connection)
                connection.hang_up(0.0)
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
                connection.hang_up(0.0)

    def _connect(self, connection: Connection, settings: LinkSettings, receive_max: int) -> None:
        self._expire()
        client_id = settings.client_id
        if client_id in self.refusals:
            connection.down.send(((CONNACK, self.refusals[client_id], False, client_id, 0),))
            del self._connections[connection]
            connection.hang_up(0.0)
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
            self._supersede(session)  # the session lives on, so its old will is not published
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
        if settings.will is not None and settings.will.delay:
            raise NotImplementedError("a will with a delay")
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
            return  # nothing is ever queued for who is here
        session.quota = min(session.quota + 1, session.maximum)
        # 2.0.11 counts from the place of what was acked, which is the first: so each PUBACK releases up to
        # the Receive Maximum, instead of one, and more is in flight than the client asked for.
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
        if message.retain:
            raise NotImplementedError("a retained message, for which Mosquitto ends the connection")
        heard = self._route(message)
        if token is not None:
            connection.down.send(((PUBACK, token, SUCCESS if heard else NO_MATCHING_SUBSCRIBERS),))

    def _route(self, message: Message) -> bool:
        """Whether there is a subscription for it: also of one who is away, or whose queue is full."""
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
        # A client that has two subscriptions to a topic is given the message twice, with MQTT 5.
        for session in sessions:
            self._give(session, message)
        return bool(sessions)

    def _give(self, session: Session, message: Message) -> None:
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
            self.dropped += 1  # the newest; whoever published it is told "success"

    # --- the end of a connection, and of a session

    def _lost(self, connection: Connection) -> None:
        """The connection has ended. Its will is published, if it still has one."""
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
            self._route(Message(will.topic, will.payload, will.qos, will.properties))

    def _discard(self, session: Session, clean_start: bool) -> None:
        """Another connection begins its client id anew. The will is published, though it be persistent."""
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
            # What is unread when a socket is closed makes it a reset, and that overtakes what it was to say.
            connection.hang_up(RESET if connection.up.in_flight else 0.0)

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
    wanted = pattern.split("/")
    if levels[0][:1] == "$" and wanted[0] in ("+", "#"):
        return False
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place == len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)
