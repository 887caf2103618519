"""An MQTT 5 client for servers: it publishes and receives in batches, and the caller decides when to ack.

It needs `mqtt5` and the standard library, and nothing else of imqtt. `link` shows how to use it.
"""

from imqtt.broker.errors import Closed, ConnackRefused, LinkError, SubscriptionRefused
from imqtt.broker.link import Link, connect
from imqtt.broker.values import LinkSettings, Packet, Received, Will

__all__ = [
    "Closed", "ConnackRefused", "Link", "LinkError", "LinkSettings", "Packet", "Received",
    "SubscriptionRefused", "Will", "connect",
]  # fmt: skip
