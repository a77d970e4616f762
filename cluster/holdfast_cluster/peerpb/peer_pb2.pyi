from holdfast.v1 import admin_pb2 as _admin_pb2
from holdfast.v1 import objects_pb2 as _objects_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClockRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClockResponse(_message.Message):
    __slots__ = ("wall_ms", "cluster_ms", "started")
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    wall_ms: float
    cluster_ms: float
    started: bool
    def __init__(self, wall_ms: _Optional[float] = ..., cluster_ms: _Optional[float] = ..., started: bool = ...) -> None: ...

class KnownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KnownResponse(_message.Message):
    __slots__ = ("node", "incarnation", "cluster", "generation", "revision", "settings", "members", "drains", "pauses", "shards")
    class DrainsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DRAINS_FIELD_NUMBER: _ClassVar[int]
    PAUSES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: int
    cluster: str
    generation: int
    revision: int
    settings: bytes
    members: _containers.RepeatedScalarFieldContainer[bytes]
    drains: _containers.ScalarMap[str, bytes]
    pauses: _containers.RepeatedCompositeFieldContainer[KnownPause]
    shards: _containers.RepeatedCompositeFieldContainer[KnownShard]
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[int] = ..., cluster: _Optional[str] = ..., generation: _Optional[int] = ..., revision: _Optional[int] = ..., settings: _Optional[bytes] = ..., members: _Optional[_Iterable[bytes]] = ..., drains: _Optional[_Mapping[str, bytes]] = ..., pauses: _Optional[_Iterable[_Union[KnownPause, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[KnownShard, _Mapping]]] = ...) -> None: ...

class KnownPause(_message.Message):
    __slots__ = ("kind", "key", "pause")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    pause: bytes
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., pause: _Optional[bytes] = ...) -> None: ...

class KnownShard(_message.Message):
    __slots__ = ("shard", "generation", "assignment", "epoch")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    shard: int
    generation: int
    assignment: bytes
    epoch: int
    def __init__(self, shard: _Optional[int] = ..., generation: _Optional[int] = ..., assignment: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PipeRequest(_message.Message):
    __slots__ = ("calls", "cancel")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Call]
    cancel: _containers.RepeatedCompositeFieldContainer[Cancel]
    def __init__(self, calls: _Optional[_Iterable[_Union[_objects_pb2.Call, _Mapping]]] = ..., cancel: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("id", "request_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    request_id: bytes
    def __init__(self, id: _Optional[int] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class PipeResponse(_message.Message):
    __slots__ = ("replies", "routes_revision")
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_REVISION_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Reply]
    routes_revision: int
    def __init__(self, replies: _Optional[_Iterable[_Union[_objects_pb2.Reply, _Mapping]]] = ..., routes_revision: _Optional[int] = ...) -> None: ...
