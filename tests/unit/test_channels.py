"""Addresses as people and Kubernetes write them."""

from __future__ import annotations

import pytest
from holdfast.channels import canonical, is_wildcard, split_address


@pytest.mark.parametrize(
    ("address", "host", "port", "written"),
    [
        ("127.0.0.1:7400", "127.0.0.1", 7400, "127.0.0.1:7400"),
        ("gateway.example:0", "gateway.example", 0, "gateway.example:0"),
        ("[::1]:7400", "::1", 7400, "[::1]:7400"),
        ("fd00::17:7401", "fd00::17", 7401, "[fd00::17]:7401"),  # $(POD_IP):7401
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, host: str, port: int, written: str) -> None:
    assert split_address(address) == (host, port)
    assert canonical(address) == written


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        ":7400",
        "host:",
        "host:x",
        "host:65536",
        "a:b:7400",
        "[::1:7400",
        "http://host:7400",
        "[]:1",
        "[x]y:1",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address: write host:port"):
        split_address(address)


def test_a_wildcard_is_no_address_to_be_reached_at() -> None:
    assert [
        is_wildcard(address)
        for address in ("0.0.0.0:1", "[::]:1", ":::1", "127.0.0.1:1", "host:1", "[::1]:1")
    ] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
