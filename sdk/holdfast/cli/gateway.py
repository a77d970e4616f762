"""How a command asks a gateway: the options that name the gateway, and what to show to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import click
import grpc

from holdfast.channels import open_client_channel
from holdfast.options import local_option, option
from holdfast.tls import TLS, authorization

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_SHOWN = "holdfast.shown"  # where a command's context keeps what it shows to gateways


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None
    context.meta.setdefault(_SHOWN, {})[parameter.name] = value


def gateway_options(command: Any) -> Any:
    """Add the options of every command that asks a gateway: the gateway, and what to show to it.
    The command gets `gateway`.
    """
    for add in (
        option(
            "--token-file",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="File with the bearer token to show to the gateway.",
        ),
        option(
            "--client-key",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="Key of --client-cert, PEM.",
        ),
        option(
            "--client-cert",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="Certificate to show to the gateway, PEM.",
        ),
        option(
            "--server-name",
            callback=_keep,
            expose_value=False,
            help="Name in the gateway's certificate, if it is not its address.",
        ),
        option(
            "--gateway-ca",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="CA of the gateway's certificate, PEM; connect with TLS.",
        ),
        option("--gateway", default="127.0.0.1:7400", help="A gateway of the cluster, host:port."),
    ):
        command = add(command)
    return command


def shown() -> tuple[TLS | None, str | None]:
    """Return the TLS and the token that the running command's options name, for `holdfast.connect`.
    Raise ClickException.
    """
    options: dict[str, Any] = click.get_current_context().meta.get(_SHOWN, {})
    ca, cert, key = (options.get(name) for name in ("gateway_ca", "client_cert", "client_key"))
    file: Path | None = options.get("token_file")
    try:
        token = None if file is None else file.read_text().strip()
        authorization(token)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--token-file {file}: {error}") from None
    if ca is None:
        if cert is not None or key is not None:
            raise click.ClickException("--client-cert and --client-key need --gateway-ca")
        return None, token
    tls = TLS(ca, cert, key, options.get("server_name"))
    try:
        tls.credentials()
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    return tls, token


json_option = local_option("--json", "as_json", is_flag=True, default=False, help="Print JSON.")
_TIMEOUT_S = 5.0
_REACH_S = 3.0


def ask(
    gateway: str, method: str, request: Any, reply_type: Any, timeout_s: float = _TIMEOUT_S
) -> Any:
    tls, token = shown()

    async def run() -> Any:
        await reach(gateway, tls)
        channel = open_client_channel(gateway, tls)
        try:
            method_of = channel.unary_unary(
                f"/holdfast.v1.Admin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            return await method_of(request, timeout=timeout_s, metadata=authorization(token))
        finally:
            await channel.close()

    try:
        return asyncio.run(run())
    except grpc.aio.AioRpcError as error:
        raise _refused(gateway, error, token) from None


def _refused(gateway: str, error: grpc.aio.AioRpcError, token: str | None) -> click.ClickException:
    hint = ""
    if token is None and error.code() in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    ):
        hint = " (show a token with --token-file, or a certificate with --client-cert)"
    return click.ClickException(f"gateway {gateway}: {error.code().name}: {error.details()}{hint}")


def ask_stream(gateway: str, method: str, request: Any, reply_type: Any) -> Iterator[Any]:
    """Yield the replies of a gateway to one request, as they come."""
    replies: Queue[Any] = Queue()
    tls, token = shown()

    async def run() -> None:
        await reach(gateway, tls)
        channel = open_client_channel(gateway, tls)
        try:
            method_of = channel.unary_stream(
                f"/holdfast.v1.Admin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            async for reply in method_of(request, metadata=authorization(token)):
                replies.put(reply)
        finally:
            await channel.close()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            replies.put(error)
        else:
            replies.put(None)

    Thread(target=work, daemon=True).start()
    while (reply := replies.get()) is not None:
        if isinstance(reply, grpc.aio.AioRpcError):
            raise _refused(gateway, reply, token) from None
        if isinstance(reply, BaseException):
            raise reply
        yield reply


async def reach(gateway: str, tls: TLS | None) -> None:
    """Raise ClickException soon if there is no gateway."""
    try:
        channel = open_client_channel(gateway, tls)
    except ValueError as error:
        raise click.ClickException(f"--gateway: {error}") from None
    try:
        await asyncio.wait_for(channel.channel_ready(), _REACH_S)
    except TimeoutError:
        hint = "start one with `holdfast dev APP`, or name another with --gateway"
        if tls is None:
            hint += "; if it speaks TLS, name the CA of its certificate with --gateway-ca"
        else:
            hint += (
                "; or --gateway-ca has not signed its certificate for this address, or it asks for"
                " a client certificate"
            )
        raise click.ClickException(f"no gateway at {gateway}: {hint}") from None
    finally:
        await channel.close()
