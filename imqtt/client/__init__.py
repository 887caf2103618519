"""The SDK: one device of a user, with an outbox, a local log, and a connection that repairs itself."""

from imqtt.client.client import Client
from imqtt.client.settings import Timing
from imqtt.client.values import ConnectionState, Notice, Refused, Summary
from imqtt.core.changes import Restarted, Skipped
from imqtt.core.connection import Phase
from imqtt.core.conversation_view import ConversationView, Hole, Message
from imqtt.core.outbox import Entry
from imqtt.protocol import Format

__all__ = [
    "Client", "ConnectionState", "ConversationView", "Entry", "Format", "Hole", "Message", "Notice", "Phase",
    "Refused", "Restarted", "Skipped", "Summary", "Timing",
]  # fmt: skip
