"""An MQTT 5 client for servers: publishes and receives by the thousand, and acks when told to.

It needs `mqtt5` and the standard library, and nothing else of imqtt. `link` says how to use it.
"""

from imqtt.broker.errors import Closed, ConnackRefused, LinkError, SubscriptionRefused
from imqtt.broker.link import Link, connect
from imqtt.broker.values import LinkSettings, Message, Received, Will

__all__ = [
    "Closed",
    "ConnackRefused",
    "Link",
    "LinkError",
    "LinkSettings",
    "Message",
    "Received",
    "SubscriptionRefused",
    "Will",
    "connect",
]  # fmt: skip
