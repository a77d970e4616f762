"""What every type checker sees, without a plugin. It is checked and not run."""

from __future__ import annotations

from typing import Any, assert_type

import holdfast
from holdfast import BlockingClient, Client, DurableObject

from tests.types.shop import Cart, Named


async def asyncio_client(client: Client) -> None:
    assert_type(await client.get(Cart, "c").add("tea", count=2), int)
    assert_type(await client.get(Named, "n").more(), dict[str, int])
    assert_type(client.get("Cart", "c"), Any)
    assert_type(await holdfast.connect("gw:7400").open(), Client)
    async with holdfast.connect("gw:7400", timeout=3) as opened:
        assert_type(opened, Client)


def blocking_client() -> None:
    with holdfast.connect_blocking("gw:7400") as client:
        assert_type(client, BlockingClient)


class Inside(DurableObject):
    async def look(self) -> None:
        assert_type(await self.objects.get(Cart, "c").add("tea"), int)
        assert_type(self.objects.get("Cart", "c"), Any)
        assert_type(self.storage.get("n", int), int | None)
        assert_type(self.storage.get("n", int, 0), int)
        assert_type(self.storage.get_many(["a"], int), dict[str, int])
        assert_type(self.storage.list("a", type=int), dict[str, int])
        assert_type(self.storage.list("a", type=list[str]), dict[str, list[str]])
        assert_type(self.storage.list("a"), dict[str, Any])


def facts() -> None:
    assert_type(holdfast.__version__, str)
    assert_type(holdfast.new_key(), str)
    assert_type(holdfast.new_request_id(), bytes)
