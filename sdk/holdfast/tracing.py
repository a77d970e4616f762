"""OpenTelemetry spans: client, gateway, turn, commit, notification. Tracing is off by default, and
then nothing of OpenTelemetry is imported.

The trace's context is W3C's `traceparent`, in a call's metadata. Every process that passes a call
on puts its own span there. The process in which a trace begins decides whether the trace is
sampled; all later processes follow. A trace begins in a client, in the gateway if the caller brings
no trace, or with an alarm.

Tracing needs the extra `otel` (docs/tracing.md). Spans go to an OTLP collector by
HTTP. OpenTelemetry's own variables name the collector (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_HEADERS).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast.errors import code_name
from holdfast.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, TracerProvider

TRACEPARENT = "traceparent"


class TracingMissing(Exception):
    """The extra `otel` is not installed."""


class Tracing:
    """Makes spans. A process has one."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._context = context
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("holdfast")
        self._wall_ns = time.time_ns() - time.perf_counter_ns()

    def began(
        self, call: pb.Call, kind: SpanKind, what: str, at: float | None = None, root: bool = False
    ) -> Span | None:
        """Return a span for a call. The span continues the trace in the call's metadata, and its
        context replaces that trace's context there.

        `at`: the begin, in seconds of perf_counter. `root`: a new trace may begin here. Returns
        None if the trace is not sampled, or if the call brings no trace and `root` is false.
        """
        header = call.metadata.get(TRACEPARENT)
        if not header and not root:
            return None
        parent = (
            self._propagator.extract({TRACEPARENT: header}) if header else self._context.Context()
        )
        span = self._tracer.start_span(
            f"{what} {call.kind}.{call.method}",
            parent,
            kind,
            {
                "rpc.system": "holdfast",
                "rpc.service": call.kind,
                "rpc.method": call.method,
                "holdfast.key": call.key,
                "holdfast.request_id": call.request_id.hex(),
                "holdfast.attempt": call.attempt,
            },
            start_time=self.ns(at),
        )
        if not span.is_recording():
            if not header:
                # tell later processes that it is not sampled, so that they begin no trace
                call.metadata[TRACEPARENT] = self.header(span)
            return None
        call.metadata[TRACEPARENT] = self.header(span)
        return span

    def header(self, span: Span) -> str:
        """Return the `traceparent` that makes later spans children of this span."""
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def part(self, parent: Span, name: str, began: float, ended: float) -> None:
        """Add a part of a span, between two times of perf_counter in seconds."""
        part = self._tracer.start_span(
            name, self._trace.set_span_in_context(parent), start_time=self.ns(began)
        )
        part.end(self.ns(ended))

    def ended(self, span: Span, error: pb.Error | None, at: float | None = None) -> None:
        """End the span of a call that is answered, at the perf_counter time `at`, in seconds."""
        if error is not None:
            span.set_attribute("holdfast.code", code_name(error.code))
            span.set_status(self._trace.StatusCode.ERROR, error.message[:500])
        span.end(self.ns(at))

    def enter(self, span: Span) -> None:
        """Make a span the current one of the calling context, for the spans that a handler makes
        itself.
        """
        self._context.attach(self._trace.set_span_in_context(span))

    def ns(self, at: float | None) -> int | None:
        return None if at is None else self._wall_ns + int(at * 1e9)

    def close(self) -> None:
        """Send the spans that have not been sent yet. This may take seconds: do not call it on an
        event loop's thread.
        """
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def start(service: str, instance: str, ratio: float) -> Tracing:
    """Trace this process as `service`. `ratio`: the share of the traces that begin here to sample,
    0 to 1.

    Raises TracingMissing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise TracingMissing(
            f"--trace needs the extra `otel` (pip install 'path/to/holdfast[otel]'): {error}"
        ) from None
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def of_application() -> Tracing:
    """Return the tracing of a client in a program that has set up OpenTelemetry itself. It uses the
    program's provider, with the program's current spans as parents.

    Raises TracingMissing.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise TracingMissing(
            f"tracing=True needs the extra `otel` (pip install 'path/to/holdfast[otel]'): {error}"
        ) from None
    return Tracing(trace.get_tracer_provider())


class ClientTracing:
    """The spans of a client's calls."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def began(self, kind: str, key: str, method: str, metadata: Any) -> Span:
        """Return a span for a call, a child of the program's current span, and put it into the
        call's `metadata`.
        """
        tracing = self._tracing
        attributes: Mapping[str, str] = {
            "rpc.system": "holdfast",
            "rpc.service": kind,
            "rpc.method": method,
            "holdfast.key": key,
        }
        span = tracing._tracer.start_span(
            f"call {kind}.{method}", kind=tracing._trace.SpanKind.CLIENT, attributes=attributes
        )
        metadata[TRACEPARENT] = tracing.header(span)
        return span

    def ended(self, span: Span, error: BaseException | None) -> None:
        """End the span of a call that is answered, or that the caller gave up."""
        if error is not None:
            span.set_attribute("holdfast.code", getattr(error, "code", type(error).__name__))
            span.set_status(self._tracing._trace.StatusCode.ERROR, str(error)[:500])
        span.end()
