from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_MSGPACK: _ClassVar[Codec]
    CODEC_JSON: _ClassVar[Codec]

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_UNSPECIFIED: _ClassVar[Code]
    CODE_NOT_FOUND: _ClassVar[Code]
    CODE_INVALID_ARGUMENT: _ClassVar[Code]
    CODE_APPLICATION: _ClassVar[Code]
    CODE_WRONG_OWNER: _ClassVar[Code]
    CODE_UNAVAILABLE: _ClassVar[Code]
    CODE_OVERLOADED: _ClassVar[Code]
    CODE_DEADLINE_EXCEEDED: _ClassVar[Code]
    CODE_DEADLOCK: _ClassVar[Code]
    CODE_TOO_LARGE: _ClassVar[Code]
    CODE_INTERNAL: _ClassVar[Code]
    CODE_UNAUTHENTICATED: _ClassVar[Code]
    CODE_PERMISSION_DENIED: _ClassVar[Code]
    CODE_ABORTED: _ClassVar[Code]
CODEC_MSGPACK: Codec
CODEC_JSON: Codec
CODE_UNSPECIFIED: Code
CODE_NOT_FOUND: Code
CODE_INVALID_ARGUMENT: Code
CODE_APPLICATION: Code
CODE_WRONG_OWNER: Code
CODE_UNAVAILABLE: Code
CODE_OVERLOADED: Code
CODE_DEADLINE_EXCEEDED: Code
CODE_DEADLOCK: Code
CODE_TOO_LARGE: Code
CODE_INTERNAL: Code
CODE_UNAUTHENTICATED: Code
CODE_PERMISSION_DENIED: Code
CODE_ABORTED: Code

class CallRequest(_message.Message):
    __slots__ = ("kind", "key", "method", "json", "msgpack", "request_id", "metadata", "idempotency_key", "timeout_ms", "drawn", "send", "delay_ms", "wide_integers_as_text")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    MSGPACK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    WIDE_INTEGERS_AS_TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    key: str
    method: str
    json: str
    msgpack: bytes
    request_id: bytes
    metadata: _containers.ScalarMap[str, str]
    idempotency_key: str
    timeout_ms: int
    drawn: bool
    send: bool
    delay_ms: int
    wide_integers_as_text: bool
    def __init__(self, kind: _Optional[str] = ..., key: _Optional[str] = ..., method: _Optional[str] = ..., json: _Optional[str] = ..., msgpack: _Optional[bytes] = ..., request_id: _Optional[bytes] = ..., metadata: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., drawn: bool = ..., send: bool = ..., delay_ms: _Optional[int] = ..., wide_integers_as_text: bool = ...) -> None: ...

class CallResponse(_message.Message):
    __slots__ = ("json", "msgpack", "request_id", "epoch")
    JSON_FIELD_NUMBER: _ClassVar[int]
    MSGPACK_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    json: str
    msgpack: bytes
    request_id: bytes
    epoch: int
    def __init__(self, json: _Optional[str] = ..., msgpack: _Optional[bytes] = ..., request_id: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "kind", "key", "method", "arguments", "codec", "request_id", "attempt", "timeout_ms", "metadata", "chain", "caller", "keep_reply", "idempotency_key", "send", "delay_ms", "notification")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    KEEP_REPLY_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: str
    key: str
    method: str
    arguments: bytes
    codec: Codec
    request_id: bytes
    attempt: int
    timeout_ms: int
    metadata: _containers.ScalarMap[str, str]
    chain: _containers.RepeatedScalarFieldContainer[str]
    caller: str
    keep_reply: bool
    idempotency_key: str
    send: bool
    delay_ms: int
    notification: bytes
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[str] = ..., key: _Optional[str] = ..., method: _Optional[str] = ..., arguments: _Optional[bytes] = ..., codec: _Optional[_Union[Codec, str]] = ..., request_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., chain: _Optional[_Iterable[str]] = ..., caller: _Optional[str] = ..., keep_reply: bool = ..., idempotency_key: _Optional[str] = ..., send: bool = ..., delay_ms: _Optional[int] = ..., notification: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("id", "result", "error", "epoch")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    id: int
    result: bytes
    error: Error
    epoch: int
    def __init__(self, id: _Optional[int] = ..., result: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("calls", "cancel")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    cancel: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., cancel: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    def __init__(self, replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "definite", "retryable", "retry_after_ms", "type", "data", "path", "cycle", "request_id", "rejected", "lacks_kind")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEFINITE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    LACKS_KIND_FIELD_NUMBER: _ClassVar[int]
    code: Code
    message: str
    definite: bool
    retryable: bool
    retry_after_ms: int
    type: str
    data: bytes
    path: str
    cycle: _containers.RepeatedScalarFieldContainer[str]
    request_id: bytes
    rejected: bool
    lacks_kind: bool
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., message: _Optional[str] = ..., definite: bool = ..., retryable: bool = ..., retry_after_ms: _Optional[int] = ..., type: _Optional[str] = ..., data: _Optional[bytes] = ..., path: _Optional[str] = ..., cycle: _Optional[_Iterable[str]] = ..., request_id: _Optional[bytes] = ..., rejected: bool = ..., lacks_kind: bool = ...) -> None: ...
