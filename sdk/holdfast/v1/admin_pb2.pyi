from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListObjectsRequest(_message.Message):
    __slots__ = ("kind", "prefix", "after", "limit")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    prefix: str
    after: str
    limit: int
    def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("keys", "more", "silent", "unserved", "served")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    silent: _containers.RepeatedScalarFieldContainer[str]
    unserved: _containers.RepeatedScalarFieldContainer[int]
    served: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., more: bool = ..., silent: _Optional[_Iterable[str]] = ..., unserved: _Optional[_Iterable[int]] = ..., served: _Optional[_Iterable[int]] = ...) -> None: ...

class CountObjectsRequest(_message.Message):
    __slots__ = ("kind", "prefix")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    kind: str
    prefix: str
    def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class CountObjectsResponse(_message.Message):
    __slots__ = ("objects", "silent", "unserved", "served")
    class ObjectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.ScalarMap[str, int]
    silent: _containers.RepeatedScalarFieldContainer[str]
    unserved: _containers.RepeatedScalarFieldContainer[int]
    served: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, objects: _Optional[_Mapping[str, int]] = ..., silent: _Optional[_Iterable[str]] = ..., unserved: _Optional[_Iterable[int]] = ..., served: _Optional[_Iterable[int]] = ...) -> None: ...

class ShowObjectRequest(_message.Message):
    __slots__ = ("kind", "key", "prefix", "after", "limit")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    prefix: str
    after: str
    limit: int
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., prefix: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ShowObjectResponse(_message.Message):
    __slots__ = ("rows", "more")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[StoredRow]
    more: bool
    def __init__(self, rows: _Optional[_Iterable[_Union[StoredRow, _Mapping]]] = ..., more: bool = ...) -> None: ...

class StoredRow(_message.Message):
    __slots__ = ("key", "value", "expires_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    expires_ms: int
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ..., expires_ms: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("kind", "key")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("shard", "address", "unserved", "copies", "paused", "active", "idle_s", "cache_bytes", "waiting", "running", "running_s", "running_request_id", "committing", "last_error", "rows", "bytes", "rows_more", "alarms", "next_alarm_ms", "outbox", "outbox_oldest_ms", "outbox_error", "read_only", "reads", "expires_ms", "sent_by_clients")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_S_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTING_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_MORE_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_ALARM_MS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_OLDEST_MS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ERROR_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    SENT_BY_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    shard: ShardStatus
    address: str
    unserved: str
    copies: _containers.RepeatedCompositeFieldContainer[CopyStatus]
    paused: bool
    active: bool
    idle_s: float
    cache_bytes: int
    waiting: int
    running: str
    running_s: float
    running_request_id: bytes
    committing: bool
    last_error: LastError
    rows: int
    bytes: int
    rows_more: bool
    alarms: int
    next_alarm_ms: int
    outbox: int
    outbox_oldest_ms: int
    outbox_error: str
    read_only: str
    reads: int
    expires_ms: int
    sent_by_clients: int
    def __init__(self, shard: _Optional[_Union[ShardStatus, _Mapping]] = ..., address: _Optional[str] = ..., unserved: _Optional[str] = ..., copies: _Optional[_Iterable[_Union[CopyStatus, _Mapping]]] = ..., paused: bool = ..., active: bool = ..., idle_s: _Optional[float] = ..., cache_bytes: _Optional[int] = ..., waiting: _Optional[int] = ..., running: _Optional[str] = ..., running_s: _Optional[float] = ..., running_request_id: _Optional[bytes] = ..., committing: bool = ..., last_error: _Optional[_Union[LastError, _Mapping]] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ..., rows_more: bool = ..., alarms: _Optional[int] = ..., next_alarm_ms: _Optional[int] = ..., outbox: _Optional[int] = ..., outbox_oldest_ms: _Optional[int] = ..., outbox_error: _Optional[str] = ..., read_only: _Optional[str] = ..., reads: _Optional[int] = ..., expires_ms: _Optional[int] = ..., sent_by_clients: _Optional[int] = ...) -> None: ...

class CopyStatus(_message.Message):
    __slots__ = ("node", "in_sync", "owner", "present", "behind", "heard_s")
    NODE_FIELD_NUMBER: _ClassVar[int]
    IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    node: str
    in_sync: bool
    owner: bool
    present: bool
    behind: int
    heard_s: float
    def __init__(self, node: _Optional[str] = ..., in_sync: bool = ..., owner: bool = ..., present: bool = ..., behind: _Optional[int] = ..., heard_s: _Optional[float] = ...) -> None: ...

class LastError(_message.Message):
    __slots__ = ("code", "message", "method", "at_ms", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    method: str
    at_ms: int
    request_id: bytes
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., method: _Optional[str] = ..., at_ms: _Optional[int] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class TopRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class TopResponse(_message.Message):
    __slots__ = ("nodes", "objects", "shards")
    NODES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeTop]
    objects: _containers.RepeatedCompositeFieldContainer[TopObject]
    shards: _containers.RepeatedCompositeFieldContainer[TopShard]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeTop, _Mapping]]] = ..., objects: _Optional[_Iterable[_Union[TopObject, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[TopShard, _Mapping]]] = ...) -> None: ...

class NodeTop(_message.Message):
    __slots__ = ("id", "stats", "shards_owned", "kinds")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_OWNED_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    stats: StatsResponse
    shards_owned: int
    kinds: _containers.RepeatedCompositeFieldContainer[TopKind]
    def __init__(self, id: _Optional[str] = ..., stats: _Optional[_Union[StatsResponse, _Mapping]] = ..., shards_owned: _Optional[int] = ..., kinds: _Optional[_Iterable[_Union[TopKind, _Mapping]]] = ...) -> None: ...

class TopKind(_message.Message):
    __slots__ = ("kind", "calls", "failed", "call_s", "turn_s", "active")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CALL_S_FIELD_NUMBER: _ClassVar[int]
    TURN_S_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    calls: int
    failed: int
    call_s: float
    turn_s: float
    active: int
    def __init__(self, kind: _Optional[str] = ..., calls: _Optional[int] = ..., failed: _Optional[int] = ..., call_s: _Optional[float] = ..., turn_s: _Optional[float] = ..., active: _Optional[int] = ...) -> None: ...

class TopObject(_message.Message):
    __slots__ = ("kind", "key", "turns_per_s", "node")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TURNS_PER_S_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    turns_per_s: float
    node: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., turns_per_s: _Optional[float] = ..., node: _Optional[str] = ...) -> None: ...

class TopShard(_message.Message):
    __slots__ = ("shard", "turns_per_s", "owner")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TURNS_PER_S_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    shard: int
    turns_per_s: float
    owner: str
    def __init__(self, shard: _Optional[int] = ..., turns_per_s: _Optional[float] = ..., owner: _Optional[str] = ...) -> None: ...

class NodeTopResponse(_message.Message):
    __slots__ = ("node", "objects")
    NODE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    node: NodeTop
    objects: _containers.RepeatedCompositeFieldContainer[TopObject]
    def __init__(self, node: _Optional[_Union[NodeTop, _Mapping]] = ..., objects: _Optional[_Iterable[_Union[TopObject, _Mapping]]] = ...) -> None: ...

class EvictObjectRequest(_message.Message):
    __slots__ = ("kind", "key")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class EvictObjectResponse(_message.Message):
    __slots__ = ("was_active",)
    WAS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    was_active: bool
    def __init__(self, was_active: bool = ...) -> None: ...

class AbortTurnRequest(_message.Message):
    __slots__ = ("kind", "key")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class AbortTurnResponse(_message.Message):
    __slots__ = ("method", "ran_s", "waiting")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RAN_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    method: str
    ran_s: float
    waiting: int
    def __init__(self, method: _Optional[str] = ..., ran_s: _Optional[float] = ..., waiting: _Optional[int] = ...) -> None: ...

class DeleteObjectRequest(_message.Message):
    __slots__ = ("kind", "key")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class DeleteObjectResponse(_message.Message):
    __slots__ = ("existed",)
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    existed: bool
    def __init__(self, existed: bool = ...) -> None: ...

class DeleteObjectsRequest(_message.Message):
    __slots__ = ("kind", "prefix", "all", "dry_run")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    kind: str
    prefix: str
    all: bool
    dry_run: bool
    def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ..., all: bool = ..., dry_run: bool = ...) -> None: ...

class DeleteObjectsProgress(_message.Message):
    __slots__ = ("matched", "deleted", "failed", "failures", "done", "silent", "unserved")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    matched: int
    deleted: int
    failed: _containers.ScalarMap[str, str]
    failures: int
    done: bool
    silent: _containers.RepeatedScalarFieldContainer[str]
    unserved: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, matched: _Optional[int] = ..., deleted: _Optional[int] = ..., failed: _Optional[_Mapping[str, str]] = ..., failures: _Optional[int] = ..., done: bool = ..., silent: _Optional[_Iterable[str]] = ..., unserved: _Optional[_Iterable[int]] = ...) -> None: ...

class DeleteTheseRequest(_message.Message):
    __slots__ = ("kind", "keys")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteTheseResponse(_message.Message):
    __slots__ = ("deleted", "failed")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DELETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    failed: _containers.ScalarMap[str, str]
    def __init__(self, deleted: _Optional[int] = ..., failed: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DeadLettersRequest(_message.Message):
    __slots__ = ("kind", "key", "sender_kind", "sender_key", "limit", "after")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SENDER_KIND_FIELD_NUMBER: _ClassVar[int]
    SENDER_KEY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    sender_kind: str
    sender_key: str
    limit: int
    after: bytes
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., sender_kind: _Optional[str] = ..., sender_key: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[bytes] = ...) -> None: ...

class DeadLettersResponse(_message.Message):
    __slots__ = ("letters", "more", "silent", "unserved", "served")
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    more: bool
    silent: _containers.RepeatedScalarFieldContainer[str]
    unserved: _containers.RepeatedScalarFieldContainer[int]
    served: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., more: bool = ..., silent: _Optional[_Iterable[str]] = ..., unserved: _Optional[_Iterable[int]] = ..., served: _Optional[_Iterable[int]] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("id", "place", "sender_kind", "sender_key", "kind", "key", "method", "arguments", "alarm", "attempts", "code", "error", "created_ms", "died_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SENDER_KIND_FIELD_NUMBER: _ClassVar[int]
    SENDER_KEY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    DIED_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    place: bytes
    sender_kind: str
    sender_key: str
    kind: str
    key: str
    method: str
    arguments: bytes
    alarm: str
    attempts: int
    code: str
    error: str
    created_ms: int
    died_ms: int
    def __init__(self, id: _Optional[str] = ..., place: _Optional[bytes] = ..., sender_kind: _Optional[str] = ..., sender_key: _Optional[str] = ..., kind: _Optional[str] = ..., key: _Optional[str] = ..., method: _Optional[str] = ..., arguments: _Optional[bytes] = ..., alarm: _Optional[str] = ..., attempts: _Optional[int] = ..., code: _Optional[str] = ..., error: _Optional[str] = ..., created_ms: _Optional[int] = ..., died_ms: _Optional[int] = ...) -> None: ...

class ChangeDeadLettersRequest(_message.Message):
    __slots__ = ("ids", "all", "kind", "key", "sender_kind", "sender_key", "replay")
    IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SENDER_KIND_FIELD_NUMBER: _ClassVar[int]
    SENDER_KEY_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    kind: str
    key: str
    sender_kind: str
    sender_key: str
    replay: bool
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., all: bool = ..., kind: _Optional[str] = ..., key: _Optional[str] = ..., sender_kind: _Optional[str] = ..., sender_key: _Optional[str] = ..., replay: bool = ...) -> None: ...

class ChangeDeadLettersResponse(_message.Message):
    __slots__ = ("changed", "refused")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    changed: int
    refused: _containers.ScalarMap[str, str]
    def __init__(self, changed: _Optional[int] = ..., refused: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AlarmsRequest(_message.Message):
    __slots__ = ("kind", "prefix", "limit", "after")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    prefix: str
    limit: int
    after: bytes
    def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[bytes] = ...) -> None: ...

class AlarmsResponse(_message.Message):
    __slots__ = ("alarms", "more", "silent", "unserved", "served")
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    alarms: _containers.RepeatedCompositeFieldContainer[PendingAlarm]
    more: bool
    silent: _containers.RepeatedScalarFieldContainer[str]
    unserved: _containers.RepeatedScalarFieldContainer[int]
    served: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, alarms: _Optional[_Iterable[_Union[PendingAlarm, _Mapping]]] = ..., more: bool = ..., silent: _Optional[_Iterable[str]] = ..., unserved: _Optional[_Iterable[int]] = ..., served: _Optional[_Iterable[int]] = ...) -> None: ...

class PendingAlarm(_message.Message):
    __slots__ = ("kind", "key", "name", "due_ms", "scheduled_ms", "every", "attempt", "payload", "place")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DUE_MS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULED_MS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    name: str
    due_ms: int
    scheduled_ms: int
    every: str
    attempt: int
    payload: bytes
    place: bytes
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., name: _Optional[str] = ..., due_ms: _Optional[int] = ..., scheduled_ms: _Optional[int] = ..., every: _Optional[str] = ..., attempt: _Optional[int] = ..., payload: _Optional[bytes] = ..., place: _Optional[bytes] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("kind", "key", "resume")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    resume: bool
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., resume: bool = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: _containers.RepeatedCompositeFieldContainer[Paused]
    def __init__(self, paused: _Optional[_Iterable[_Union[Paused, _Mapping]]] = ...) -> None: ...

class Paused(_message.Message):
    __slots__ = ("kind", "key", "at", "by")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    at: float
    by: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., at: _Optional[float] = ..., by: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("cluster", "shards", "replication", "controller", "nodes", "problems", "gateway", "assignments", "min_in_sync", "moves", "paused")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    shards: int
    replication: int
    controller: str
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    gateway: GatewayStatus
    assignments: _containers.RepeatedCompositeFieldContainer[ShardStatus]
    min_in_sync: int
    moves: MovesStatus
    paused: _containers.RepeatedCompositeFieldContainer[Paused]
    def __init__(self, cluster: _Optional[str] = ..., shards: _Optional[int] = ..., replication: _Optional[int] = ..., controller: _Optional[str] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., gateway: _Optional[_Union[GatewayStatus, _Mapping]] = ..., assignments: _Optional[_Iterable[_Union[ShardStatus, _Mapping]]] = ..., min_in_sync: _Optional[int] = ..., moves: _Optional[_Union[MovesStatus, _Mapping]] = ..., paused: _Optional[_Iterable[_Union[Paused, _Mapping]]] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("id", "address", "host", "zone", "weight", "state", "incarnation", "shards_owned", "epoch_max", "stats", "shards_in_sync", "shards_joining")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SHARDS_OWNED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_MAX_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    SHARDS_JOINING_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    host: str
    zone: str
    weight: int
    state: str
    incarnation: int
    shards_owned: int
    epoch_max: int
    stats: StatsResponse
    shards_in_sync: int
    shards_joining: int
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., host: _Optional[str] = ..., zone: _Optional[str] = ..., weight: _Optional[int] = ..., state: _Optional[str] = ..., incarnation: _Optional[int] = ..., shards_owned: _Optional[int] = ..., epoch_max: _Optional[int] = ..., stats: _Optional[_Union[StatsResponse, _Mapping]] = ..., shards_in_sync: _Optional[int] = ..., shards_joining: _Optional[int] = ...) -> None: ...

class MovesStatus(_message.Message):
    __slots__ = ("joining", "handovers", "leaving", "bytes_sent")
    JOINING_FIELD_NUMBER: _ClassVar[int]
    HANDOVERS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    joining: int
    handovers: int
    leaving: int
    bytes_sent: int
    def __init__(self, joining: _Optional[int] = ..., handovers: _Optional[int] = ..., leaving: _Optional[int] = ..., bytes_sent: _Optional[int] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("what", "why", "minor")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    what: str
    why: str
    minor: bool
    def __init__(self, what: _Optional[str] = ..., why: _Optional[str] = ..., minor: bool = ...) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("routes_revision", "etcd_connected", "calls_in_flight", "calls_held", "process")
    ROUTES_REVISION_FIELD_NUMBER: _ClassVar[int]
    ETCD_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CALLS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    CALLS_HELD_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    routes_revision: int
    etcd_connected: bool
    calls_in_flight: int
    calls_held: int
    process: ProcessStats
    def __init__(self, routes_revision: _Optional[int] = ..., etcd_connected: bool = ..., calls_in_flight: _Optional[int] = ..., calls_held: _Optional[int] = ..., process: _Optional[_Union[ProcessStats, _Mapping]] = ...) -> None: ...

class ShardStatus(_message.Message):
    __slots__ = ("shard", "epoch", "owner", "in_sync", "joining", "handover", "leaving", "forked")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    JOINING_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    owner: str
    in_sync: _containers.RepeatedScalarFieldContainer[str]
    joining: _containers.RepeatedScalarFieldContainer[str]
    handover: str
    leaving: _containers.RepeatedScalarFieldContainer[str]
    forked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., owner: _Optional[str] = ..., in_sync: _Optional[_Iterable[str]] = ..., joining: _Optional[_Iterable[str]] = ..., handover: _Optional[str] = ..., leaving: _Optional[_Iterable[str]] = ..., forked: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("node", "cancel", "dry_run")
    NODE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    node: str
    cancel: bool
    dry_run: bool
    def __init__(self, node: _Optional[str] = ..., cancel: bool = ..., dry_run: bool = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("owned", "copies", "copies_that_stay", "bytes", "seconds")
    OWNED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    COPIES_THAT_STAY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    owned: int
    copies: int
    copies_that_stay: int
    bytes: int
    seconds: float
    def __init__(self, owned: _Optional[int] = ..., copies: _Optional[int] = ..., copies_that_stay: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ResetShardRequest(_message.Message):
    __slots__ = ("shard", "confirmation", "keep")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    shard: int
    confirmation: str
    keep: str
    def __init__(self, shard: _Optional[int] = ..., confirmation: _Optional[str] = ..., keep: _Optional[str] = ...) -> None: ...

class ResetShardResponse(_message.Message):
    __slots__ = ("shard",)
    SHARD_FIELD_NUMBER: _ClassVar[int]
    shard: ShardStatus
    def __init__(self, shard: _Optional[_Union[ShardStatus, _Mapping]] = ...) -> None: ...

class WhereRequest(_message.Message):
    __slots__ = ("kind", "key")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class WhereResponse(_message.Message):
    __slots__ = ("shard", "address", "preference")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    shard: ShardStatus
    address: str
    preference: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, shard: _Optional[_Union[ShardStatus, _Mapping]] = ..., address: _Optional[str] = ..., preference: _Optional[_Iterable[str]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("process", "turns", "turns_failed", "entries", "fsyncs", "activations", "evictions", "calls_in_flight", "shards_serving", "cache_bytes", "kinds", "notice", "copies", "entries_uncommitted", "replica_lag", "snapshots_sent", "snapshots_waiting", "snapshot_bytes_sent", "handovers", "data_bytes", "move_rate", "outbox", "outbox_oldest_ms", "notifications_delivered", "notification_retries", "notifications_delayed", "dead_letters", "alarms_fired", "alarms_failed", "expired", "clock_ahead_s", "slow_nodes")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FAILED_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    FSYNCS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    CALLS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_SERVING_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_UNCOMMITTED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_LAG_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_SENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    HANDOVERS_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVE_RATE_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_OLDEST_MS_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATIONS_DELIVERED_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_RETRIES_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATIONS_DELAYED_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIRED_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FAILED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_AHEAD_S_FIELD_NUMBER: _ClassVar[int]
    SLOW_NODES_FIELD_NUMBER: _ClassVar[int]
    process: ProcessStats
    turns: int
    turns_failed: int
    entries: int
    fsyncs: int
    activations: int
    evictions: int
    calls_in_flight: int
    shards_serving: int
    cache_bytes: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    notice: str
    copies: int
    entries_uncommitted: int
    replica_lag: int
    snapshots_sent: int
    snapshots_waiting: int
    snapshot_bytes_sent: int
    handovers: int
    data_bytes: int
    move_rate: float
    outbox: int
    outbox_oldest_ms: int
    notifications_delivered: int
    notification_retries: int
    notifications_delayed: int
    dead_letters: int
    alarms_fired: int
    alarms_failed: int
    expired: int
    clock_ahead_s: float
    slow_nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, process: _Optional[_Union[ProcessStats, _Mapping]] = ..., turns: _Optional[int] = ..., turns_failed: _Optional[int] = ..., entries: _Optional[int] = ..., fsyncs: _Optional[int] = ..., activations: _Optional[int] = ..., evictions: _Optional[int] = ..., calls_in_flight: _Optional[int] = ..., shards_serving: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ..., notice: _Optional[str] = ..., copies: _Optional[int] = ..., entries_uncommitted: _Optional[int] = ..., replica_lag: _Optional[int] = ..., snapshots_sent: _Optional[int] = ..., snapshots_waiting: _Optional[int] = ..., snapshot_bytes_sent: _Optional[int] = ..., handovers: _Optional[int] = ..., data_bytes: _Optional[int] = ..., move_rate: _Optional[float] = ..., outbox: _Optional[int] = ..., outbox_oldest_ms: _Optional[int] = ..., notifications_delivered: _Optional[int] = ..., notification_retries: _Optional[int] = ..., notifications_delayed: _Optional[int] = ..., dead_letters: _Optional[int] = ..., alarms_fired: _Optional[int] = ..., alarms_failed: _Optional[int] = ..., expired: _Optional[int] = ..., clock_ahead_s: _Optional[float] = ..., slow_nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class ProcessStats(_message.Message):
    __slots__ = ("pid", "cpu_s", "rss_bytes", "uptime_s")
    PID_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    pid: int
    cpu_s: float
    rss_bytes: int
    uptime_s: float
    def __init__(self, pid: _Optional[int] = ..., cpu_s: _Optional[float] = ..., rss_bytes: _Optional[int] = ..., uptime_s: _Optional[float] = ...) -> None: ...
