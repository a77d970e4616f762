"""The bare gRPC echo that `holdfast bench` compares with, as a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import uvloop

from holdfast.channels import SERVER_OPTIONS, bind

ECHO = "/holdfast.bench/Echo"


async def _serve_echo(port: int) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "holdfast.bench", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
            ),
        )
    )
    bind(server, f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve_echo(int(sys.argv[1])))
