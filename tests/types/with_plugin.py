"""What mypy sees with Holdfast's plugin. It is checked and not run; an ignored error that is none
fails the check."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from holdfast import BlockingClient, Client, DurableObject

from tests.types.shop import Cart, Named


async def asyncio_client(client: Client) -> None:
    cart = client.get(Cart, "c", timeout=2)
    assert_type(await cart.add("tea", count=2), int)
    assert_type(await cart.plain(1), list[str])
    assert_type(await cart.total(), float)
    assert_type(await client.get(Named, "n").more(), dict[str, int])
    assert_type(await client.get(Named, "n").plain(1), list[str])
    await client.notify(Cart, "c", delay=timedelta(1)).add("tea")
    await cart.add(5)  # type: ignore[arg-type]
    await cart.remove("tea")  # type: ignore[attr-defined]
    await cart._private()  # type: ignore[attr-defined]
    await client.notify(Cart, "c").add()  # type: ignore[call-arg]
    await client.notify(Cart, "c").remove()  # type: ignore[attr-defined]
    cart.add("tea")  # type: ignore[unused-coroutine]


def blocking_client(client: BlockingClient) -> None:
    assert_type(client.get(Cart, "c").add("tea"), int)
    assert_type(client.get(Cart, "c").plain(1), list[str])
    assert_type(client.get(Cart, "c").total(), float)
    client.notify(Cart, "c").add("tea")
    client.get(Cart, "c").add(5)  # type: ignore[arg-type]
    client.get(Cart, "c").remove()  # type: ignore[attr-defined]


class Inside(DurableObject):
    async def look(self) -> None:
        assert_type(await self.objects.get(Cart, "c").plain(1), list[str])
        self.notify(Cart, "c").add("tea", count=2)
        self.notify(Cart, "c", delay=timedelta(1)).plain(1)
        self.notify(Cart, "c").add()  # type: ignore[call-arg]
        self.notify(Cart, "c").ad("tea")  # type: ignore[attr-defined]
        self.notify("Cart", "c").anything(5)
