"""JSON of commands: numbers are numbers, whatever their width."""

from __future__ import annotations

from holdfast.cli.output import plain
from holdfast.v1 import admin_pb2


def test_64_bit_numbers_are_numbers_wherever_they_are() -> None:
    status = admin_pb2.StatusResponse()
    status.nodes.add(id="n1", stats=admin_pb2.StatsResponse(turns=1 << 60, kinds=["a"]))
    shown = plain(status)
    assert shown["nodes"][0]["stats"]["turns"] == 1 << 60
    counts = plain(admin_pb2.CountObjectsResponse(objects={"Cart": 5}))
    assert counts["objects"] == {"Cart": 5}
    assert (
        plain(admin_pb2.ExplainResponse(expires_ms=7, idle_s=0.5, running_request_id=b"\x00"))[
            "expires_ms"
        ]
        == 7
    )
