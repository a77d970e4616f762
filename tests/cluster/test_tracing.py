"""Spans of a call on its way through real processes, as an OTLP collector gets them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import holdfast
import pytest
from holdfast.channels import open_channel
from holdfast.v1 import objects_pb2 as pb
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.cluster.processes import Processes, run

APP = str(Path(__file__).parent / "monitoring_app.py")
PARENT = "00-{trace:032x}-00000000000000aa-{flags:02x}"


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["content-length"]))
                )
                for resource in request.resource_spans:
                    service = next(
                        a.value.string_value
                        for a in resource.resource.attributes
                        if a.key == "service.name"
                    )
                    collector.spans += [
                        (service, span) for scope in resource.scope_spans for span in scope.spans
                    ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace_id: int) -> list[tuple[str, Any]]:
        return [
            (service, span)
            for service, span in self.spans
            if span.trace_id == trace_id.to_bytes(16, "big")
        ]

    async def named(self, trace_id: int, *names: str) -> dict[str, Any]:
        """The spans of a trace by name, once these are there."""
        async with asyncio.timeout(30):
            while True:
                found = {span.name: span for _, span in self.of(trace_id)}
                if set(names) <= set(found):
                    return found
                await asyncio.sleep(0.1)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Processes]:
    """A cluster whose processes follow traces, and begin hardly any."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    monkeypatch.setenv("HOLDFAST_TRACE", "0.000001")
    cluster = Processes(tmp_path_factory.mktemp("traced"), replication=2)
    try:
        cluster.start_all(nodes=2, app=APP)
        cluster.wait_ready(cluster.gateway)
        yield cluster
    finally:
        cluster.stop()
        monkeypatch.undo()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_trace_goes_from_the_caller_through_gateway_turn_and_commit_to_the_notification(
    traced: Processes, collector: Collector
) -> None:
    parent = PARENT.format(trace=1, flags=1)
    async with traced.connect() as client:
        await client.get("Shop", "a", metadata={"traceparent": parent}).sell(2)
    spans = await collector.named(
        1, "gateway Shop.sell", "turn Shop.sell", "commit", "notification Ledger.booked"
    )
    gateway, turn, booked = (
        spans["gateway Shop.sell"],
        spans["turn Shop.sell"],
        spans["notification Ledger.booked"],
    )
    assert gateway.parent_span_id.hex() == "00000000000000aa"
    assert turn.parent_span_id == gateway.span_id
    assert booked.parent_span_id == turn.span_id
    commits = [span for _, span in collector.of(1) if span.name == "commit"]
    assert {span.parent_span_id for span in commits} <= {turn.span_id, booked.span_id}
    assert turn.span_id in {span.parent_span_id for span in commits}
    assert (
        gateway.start_time_unix_nano - 50_000_000
        <= turn.start_time_unix_nano
        <= turn.end_time_unix_nano
    )
    shown = attributes(turn)
    assert (shown["rpc.service"], shown["rpc.method"], shown["holdfast.key"]) == (
        "Shop",
        "sell",
        "a",
    )
    assert shown["holdfast.epoch"] >= 1
    assert {service for service, _ in collector.of(1)} == {"holdfast-gateway", "holdfast-node"}


async def test_calls_between_objects_are_children_of_the_turn_that_makes_them(
    traced: Processes, collector: Collector
) -> None:
    async with traced.connect() as client:
        await client.get(
            "Shop", "b", metadata={"traceparent": PARENT.format(trace=2, flags=1)}
        ).audit()
    spans = await collector.named(2, "turn Shop.audit", "turn Ledger.total")
    assert spans["turn Ledger.total"].parent_span_id == spans["turn Shop.audit"].span_id


async def test_unary_calls_bring_their_context_in_grpc_metadata_and_failures_show(
    traced: Processes, collector: Collector
) -> None:
    channel = open_channel(traced.gateway)
    call: grpc.aio.UnaryUnaryMultiCallable[pb.CallRequest, bytes] = channel.unary_unary(
        "/holdfast.v1.Objects/Call", request_serializer=pb.CallRequest.SerializeToString
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await call(
            pb.CallRequest(kind="Shop", key="c", method="fail"),
            metadata=(("traceparent", PARENT.format(trace=3, flags=1)),),
        )
    await channel.close()
    spans = await collector.named(3, "gateway Shop.fail", "turn Shop.fail")
    for span in spans.values():
        assert attributes(span)["holdfast.code"] == "APPLICATION"
        assert span.status.code == 2


async def test_a_call_that_waits_for_its_turn_shows_it(
    traced: Processes, collector: Collector
) -> None:
    async with traced.connect() as client:
        first = asyncio.ensure_future(client.get("Shop", "d").think(0.5))
        await asyncio.sleep(0.1)
        await client.get(
            "Shop", "d", metadata={"traceparent": PARENT.format(trace=4, flags=1)}
        ).sold()
        await first
    spans = await collector.named(4, "turn Shop.sold", "queue")
    assert spans["queue"].parent_span_id == spans["turn Shop.sold"].span_id
    assert spans["queue"].end_time_unix_nano - spans["queue"].start_time_unix_nano > 200_000_000


async def test_what_is_not_sampled_makes_no_spans_anywhere(
    traced: Processes, collector: Collector
) -> None:
    async with traced.connect() as client:
        await client.get(
            "Shop", "e", metadata={"traceparent": PARENT.format(trace=5, flags=0)}
        ).sell(1)
        for _ in range(20):
            await client.get("Shop", "e").sell(1)  # one in a million of these begins a trace
        await client.get("Shop", "e", metadata={"traceparent": "nonsense"}).sell(1)
        await asyncio.sleep(1.0)
    assert collector.of(5) == []
    assert [
        span.name for _, span in collector.spans if attributes(span).get("holdfast.key") == "e"
    ] == []


async def test_a_client_s_spans_are_the_application_s_own(
    traced: Processes, collector: Collector
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    async with holdfast.connect(traced.gateway, tracing=True) as client:
        with provider.get_tracer("app").start_as_current_span("checkout") as checkout:
            await client.get("Shop", "f").sell(1)
            with pytest.raises(holdfast.ApplicationError):
                await client.get("Shop", "f").fail()

    def blocking() -> None:
        with holdfast.connect_blocking(traced.gateway, tracing=True) as other:
            other.get("Shop", "f").sold()

    await asyncio.to_thread(blocking)
    mine = {span.name: span for span in exporter.get_finished_spans()}
    sell = mine["call Shop.sell"]
    assert sell.parent is not None
    assert sell.parent.span_id == checkout.get_span_context().span_id
    attributes = mine["call Shop.fail"].attributes
    assert attributes is not None
    assert attributes["holdfast.code"] == "APPLICATION"
    theirs = await collector.named(sell.context.trace_id, "gateway Shop.sell", "turn Shop.sell")
    assert int.from_bytes(theirs["gateway Shop.sell"].parent_span_id, "big") == sell.context.span_id
    sold = mine["call Shop.sold"]
    theirs = await collector.named(sold.context.trace_id, "gateway Shop.sold")
    assert int.from_bytes(theirs["gateway Shop.sold"].parent_span_id, "big") == sold.context.span_id


async def test_an_alarm_begins_a_trace_and_what_a_stopping_process_has_is_sent(
    processes: Processes, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("HOLDFAST_TRACE", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # so that only its end sends them
    processes.start_all(app=APP)
    before = len(collector.spans)
    async with processes.connect() as client:
        await client.get("Shop", "g").remind(0.1)
        await asyncio.sleep(1.5)
    processes.kill("n1", 15)
    names = {span.name: span for _, span in collector.spans[before:]}
    assert not names["alarm Shop.on_alarm"].parent_span_id
    assert "turn Shop.remind" in names


def test_a_share_that_is_none_is_refused() -> None:
    refused = run("gateway", "--trace", "2")
    assert refused.returncode == 2
    assert "2.0 is not in the range 0.0<=x<=1.0" in refused.stderr
