from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Position(_message.Message):
    __slots__ = ("seq", "id")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    seq: int
    id: int
    def __init__(self, seq: _Optional[int] = ..., id: _Optional[int] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("text", "data", "json", "content_type", "reply_to", "mentions")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    MENTIONS_FIELD_NUMBER: _ClassVar[int]
    text: str
    data: bytes
    json: str
    content_type: str
    reply_to: Position
    mentions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., data: _Optional[bytes] = ..., json: _Optional[str] = ..., content_type: _Optional[str] = ..., reply_to: _Optional[_Union[Position, _Mapping]] = ..., mentions: _Optional[_Iterable[str]] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("conversation", "seq", "id")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    seq: int
    id: int
    def __init__(self, conversation: _Optional[str] = ..., seq: _Optional[int] = ..., id: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("send", "mark", "typing", "sync", "history", "status", "hello", "recall")
    SEND_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    TYPING_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    send: Send
    mark: Mark
    typing: Typing
    sync: Sync
    history: History
    status: Status
    hello: Hello
    recall: Recall
    def __init__(self, send: _Optional[_Union[Send, _Mapping]] = ..., mark: _Optional[_Union[Mark, _Mapping]] = ..., typing: _Optional[_Union[Typing, _Mapping]] = ..., sync: _Optional[_Union[Sync, _Mapping]] = ..., history: _Optional[_Union[History, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("nonce", "platform", "max_packet", "cursors", "ref")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    MAX_PACKET_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    platform: str
    max_packet: int
    cursors: _containers.RepeatedCompositeFieldContainer[Cursor]
    ref: str
    def __init__(self, nonce: _Optional[str] = ..., platform: _Optional[str] = ..., max_packet: _Optional[int] = ..., cursors: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ..., ref: _Optional[str] = ...) -> None: ...

class Send(_message.Message):
    __slots__ = ("conversation", "client_msg_id", "content", "client_time")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TIME_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    client_msg_id: str
    content: Content
    client_time: int
    def __init__(self, conversation: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., content: _Optional[_Union[Content, _Mapping]] = ..., client_time: _Optional[int] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("conversation", "client_msg_id", "target", "client_time")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TIME_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    client_msg_id: str
    target: Position
    client_time: int
    def __init__(self, conversation: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., target: _Optional[_Union[Position, _Mapping]] = ..., client_time: _Optional[int] = ...) -> None: ...

class RecallBody(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Position
    def __init__(self, target: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("conversation", "delivered", "read")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    delivered: int
    read: int
    def __init__(self, conversation: _Optional[str] = ..., delivered: _Optional[int] = ..., read: _Optional[int] = ...) -> None: ...

class Typing(_message.Message):
    __slots__ = ("conversation", "stopped")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    stopped: bool
    def __init__(self, conversation: _Optional[str] = ..., stopped: _Optional[bool] = ...) -> None: ...

class Sync(_message.Message):
    __slots__ = ("cursors", "heads", "heads_before", "ref")
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    HEADS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    cursors: _containers.RepeatedCompositeFieldContainer[Cursor]
    heads: bool
    heads_before: int
    ref: str
    def __init__(self, cursors: _Optional[_Iterable[_Union[Cursor, _Mapping]]] = ..., heads: _Optional[bool] = ..., heads_before: _Optional[int] = ..., ref: _Optional[str] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("conversation", "before", "limit", "ref")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    before: int
    limit: int
    ref: str
    def __init__(self, conversation: _Optional[str] = ..., before: _Optional[int] = ..., limit: _Optional[int] = ..., ref: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("state", "nonce", "network", "battery")
    STATE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    state: str
    nonce: str
    network: str
    battery: int
    def __init__(self, state: _Optional[str] = ..., nonce: _Optional[str] = ..., network: _Optional[str] = ..., battery: _Optional[int] = ...) -> None: ...

class Frames(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("accepted", "event", "marks", "rejected", "page", "presence", "typing", "welcome")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    TYPING_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    event: Event
    marks: Marks
    rejected: Rejected
    page: Page
    presence: Presence
    typing: PeerTyping
    welcome: Welcome
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., marks: _Optional[_Union[Marks, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., page: _Optional[_Union[Page, _Mapping]] = ..., presence: _Optional[_Union[Presence, _Mapping]] = ..., typing: _Optional[_Union[PeerTyping, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("content", "command", "page", "cursors", "rate", "presence")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    CURSORS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    content: int
    command: int
    page: int
    cursors: int
    rate: int
    presence: int
    def __init__(self, content: _Optional[int] = ..., command: _Optional[int] = ..., page: _Optional[int] = ..., cursors: _Optional[int] = ..., rate: _Optional[int] = ..., presence: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("nonce", "user", "device", "time", "partitions", "limits", "ref")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    user: str
    device: str
    time: int
    partitions: int
    limits: Limits
    ref: str
    def __init__(self, nonce: _Optional[str] = ..., user: _Optional[str] = ..., device: _Optional[str] = ..., time: _Optional[int] = ..., partitions: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., ref: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("conversation", "client_msg_id", "seq", "id", "time", "previous")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    client_msg_id: str
    seq: int
    id: int
    time: int
    previous: int
    def __init__(self, conversation: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., seq: _Optional[int] = ..., id: _Optional[int] = ..., time: _Optional[int] = ..., previous: _Optional[int] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("code", "reason", "retryable", "command", "conversation", "client_msg_id", "ref", "retry_after", "omitted")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    retryable: bool
    command: str
    conversation: str
    client_msg_id: str
    ref: str
    retry_after: int
    omitted: int
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ..., retryable: _Optional[bool] = ..., command: _Optional[str] = ..., conversation: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., ref: _Optional[str] = ..., retry_after: _Optional[int] = ..., omitted: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("conversation", "seq", "id", "time", "sender", "device", "client_msg_id", "content", "recall", "kind", "client_time", "withheld", "previous")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TIME_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    seq: int
    id: int
    time: int
    sender: str
    device: str
    client_msg_id: str
    content: Content
    recall: RecallBody
    kind: str
    client_time: int
    withheld: int
    previous: int
    def __init__(self, conversation: _Optional[str] = ..., seq: _Optional[int] = ..., id: _Optional[int] = ..., time: _Optional[int] = ..., sender: _Optional[str] = ..., device: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., content: _Optional[_Union[Content, _Mapping]] = ..., recall: _Optional[_Union[RecallBody, _Mapping]] = ..., kind: _Optional[str] = ..., client_time: _Optional[int] = ..., withheld: _Optional[int] = ..., previous: _Optional[int] = ...) -> None: ...

class Marks(_message.Message):
    __slots__ = ("conversation", "user", "delivered", "read")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    user: str
    delivered: int
    read: int
    def __init__(self, conversation: _Optional[str] = ..., user: _Optional[str] = ..., delivered: _Optional[int] = ..., read: _Optional[int] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("conversation", "seq", "id", "latest", "marks")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    seq: int
    id: int
    latest: Event
    marks: _containers.RepeatedCompositeFieldContainer[Marks]
    def __init__(self, conversation: _Optional[str] = ..., seq: _Optional[int] = ..., id: _Optional[int] = ..., latest: _Optional[_Union[Event, _Mapping]] = ..., marks: _Optional[_Iterable[_Union[Marks, _Mapping]]] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("conversation", "events", "more", "restart", "missing", "history", "registers")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    REGISTERS_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    events: _containers.RepeatedCompositeFieldContainer[Event]
    more: bool
    restart: bool
    missing: str
    history: bool
    registers: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, conversation: _Optional[str] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., more: _Optional[bool] = ..., restart: _Optional[bool] = ..., missing: _Optional[str] = ..., history: _Optional[bool] = ..., registers: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("ref", "heads", "more_heads", "slices", "more")
    REF_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    MORE_HEADS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    ref: str
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    more_heads: int
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    more: bool
    def __init__(self, ref: _Optional[str] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., more_heads: _Optional[int] = ..., slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class Presence(_message.Message):
    __slots__ = ("user", "state", "last_seen")
    USER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    user: str
    state: str
    last_seen: int
    def __init__(self, user: _Optional[str] = ..., state: _Optional[str] = ..., last_seen: _Optional[int] = ...) -> None: ...

class PeerTyping(_message.Message):
    __slots__ = ("conversation", "user", "stopped")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    conversation: str
    user: str
    stopped: bool
    def __init__(self, conversation: _Optional[str] = ..., user: _Optional[str] = ..., stopped: _Optional[bool] = ...) -> None: ...
