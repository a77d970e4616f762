from holdfast.v1 import admin_pb2 as _admin_pb2
from holdfast.v1 import objects_pb2 as _objects_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PipeRequest(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Call]
    def __init__(self, calls: _Optional[_Iterable[_Union[_objects_pb2.Call, _Mapping]]] = ...) -> None: ...

class PipeResponse(_message.Message):
    __slots__ = ("replies", "routes_revision")
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_REVISION_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Reply]
    routes_revision: int
    def __init__(self, replies: _Optional[_Iterable[_Union[_objects_pb2.Reply, _Mapping]]] = ..., routes_revision: _Optional[int] = ...) -> None: ...
