"""`holdfast call`: calls a method of an object."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from holdfast import codec
from holdfast.cli.gateway import gateway_options, json_option, reach, shown
from holdfast.client.client import connect
from holdfast.errors import ApplicationError, HoldfastError
from holdfast.options import local_option
from holdfast.v1 import objects_pb2 as pb


@click.command(short_help="Call a method of an object.")
@click.argument("kind")
@click.argument("key")
@click.argument("method")
@click.argument("arguments", default="")
@local_option("--timeout", default=30.0, help="Deadline of the call, in seconds.")
@gateway_options
@json_option
def call(
    kind: str, key: str, method: str, arguments: str, timeout: float, gateway: str, as_json: bool
) -> None:
    """Call METHOD of the object KIND KEY, and print the result as JSON.

    ARGUMENTS are JSON: an object with named arguments, or an array.

    \b
    Examples:
      holdfast call Counter a increment '{"by": 2}'
      holdfast call Counter a value
    """

    tls, token = shown()

    async def run() -> bytes:
        await reach(gateway, tls)
        async with connect(gateway, tls=tls, token=token) as client:
            return await client.call(
                kind, key, method, arguments.encode(), timeout=timeout, codec=pb.CODEC_JSON
            )

    try:
        result = asyncio.run(run())
    except HoldfastError as error:
        if as_json:
            facts: dict[str, Any] = {"code": error.code, "message": error.message}
            facts |= {
                "definite": error.definite,
                "retryable": error.retryable,
                "request_id": error.request_id.hex(),
            }
            if isinstance(error, ApplicationError):
                facts |= {"type": error.type, "data": error.data}
            click.echo(codec.encode_json({"error": facts}).decode())
            raise SystemExit(1) from None
        what = error.code
        if isinstance(error, ApplicationError):
            what += f" {error.type}"
        text = f"{what}: {error.message}"
        if isinstance(error, ApplicationError) and error.data:
            text += f" {codec.encode_json(error.data).decode()}"
        raise click.ClickException(f"{text} (request {error.request_id.hex()})") from None
    click.echo((result if as_json else msgspec.json.format(result, indent=2)).decode())
