"""The service `holdfast.v1.Admin`: its parts, behind the check of the operator's permission."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import message_factory
from holdfast.v1 import admin_pb2

from holdfast_gateway.admin.part import AdminPart, asked_by
from holdfast_gateway.admission.auth import Authenticator, permit

CHANGES = frozenset({"ResetShard", "ChangeDeadLetters", "EvictObject", "AbortTurn", "DeleteObject"})
"""Methods that change something, whatever the request says."""


def _is_change(method: str, request: Any) -> bool:
    match method:
        case "Drain":
            return not request.dry_run
        case "Pause":
            return bool(request.kind)
        case "DeleteObjects":
            return not request.dry_run
    return method in CHANGES


class AdminService:
    """The handlers of the Admin service. Each first checks the caller's permission."""

    def __init__(
        self,
        parts: Sequence[AdminPart],
        authenticator: Authenticator | None,
        refused: Counter[str],
    ) -> None:
        """Set up the service. `refused` counts the refused callers, by reason."""
        self._parts = parts
        self._authenticator = authenticator
        self._refused = refused

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers to register with the server. A method that no part has is a bug."""
        handlers = {}
        for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods:
            [behavior] = [
                found for part in self._parts if (found := getattr(part, method.name, None))
            ]
            request, response = (
                message_factory.GetMessageClass(kind)
                for kind in (method.input_type, method.output_type)
            )
            make, guard = (
                (grpc.unary_stream_rpc_method_handler, self._guarded_stream)
                if method.server_streaming
                else (grpc.unary_unary_rpc_method_handler, self._guarded)
            )
            handlers[method.name] = make(
                guard(method.name, behavior),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        return grpc.method_handlers_generic_handler("holdfast.v1.Admin", handlers)

    async def _permit(self, name: str, request: Any, context: Any) -> None:
        change = _is_change(name, request)
        asked_by.set(await permit(self._authenticator, context, change, self._refused))

    def _guarded(self, name: str, behavior: Any) -> Any:
        async def serve(request: Any, context: Any) -> Any:
            await self._permit(name, request, context)
            return await behavior(request, context)

        return serve

    def _guarded_stream(self, name: str, behavior: Any) -> Any:
        async def serve(request: Any, context: Any) -> Any:
            await self._permit(name, request, context)
            async for answer in behavior(request, context):
                yield answer

        return serve
