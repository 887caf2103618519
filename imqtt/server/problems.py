"""Current problems of a worker, one for each part that it depends on."""

import logging

from imqtt.problems import Problem

log = logging.getLogger(__name__)

STORE = "imqtt.server.store"  # the logger for problems of the store
CALM_SECONDS = 60.0  # for problems that are noted now and then

PROBE = "a look at it"  # the part of the store's problem that `store_probe` finds


class Problems:
    """One `Problem` for each part, for the log, health pages and `imqtt workers`.

    `broker`: its address, for the log.
    """

    def __init__(self, broker: str = "") -> None:
        at = f" at {broker}" if broker else ""
        store = logging.getLogger(STORE)
        self.broker = Problem(
            log, f"no connection to the broker{at}", f"every connection to the broker{at} works again"
        )
        self.store = Problem(store, "the store does not answer", "the store answers again")
        # The store answers but refuses writes, for example because its disk is full. Any successful write
        # ends the problem, since a device that was refused may never come back.
        self.storing = Problem(
            store, "nothing can be stored", "the store takes everything again", level=logging.ERROR
        )
        self.access = Problem(
            log,
            f"the access rules of the broker{at} keep this server from its work",
            f"the access rules of the broker{at} let this server do its work",
        )
        self.cluster = Problem(
            log, "another imqtt is on this broker", "no other imqtt is on this broker any more"
        )
        self.stranger = Problem(
            log, "two workers do not see each other in Redis", "this worker sees all others in Redis again"
        )
        self.contested = Problem(
            log, "sessions are being taken from this worker", "no session is being taken from here any more"
        )
        self.refused_packets = Problem(
            log,
            "the broker refuses packets to devices, which will sync",
            "the broker has refused no packets for a minute",
            calm=CALM_SECONDS,
        )
        # Events show that this clock is wrong, or that the clock that dated them was.
        self.clock = Problem(
            log, "the clock may be wrong", "the clock and the ids of events agree again",
            calm=CALM_SECONDS,
        )  # fmt: skip
        self.files = Problem(log, "file descriptors are running out", "there are file descriptors again")
