"""OpenTelemetry traces. Each request has a span with lengths, ids and times, but no text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gemlet import _core
from gemlet.errors import missing_extra
from gemlet.server.call import Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Tracing"]

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/v1/decisions": "decide",
}


class Tracing:
    """Sends spans to the address in the variables ``OTEL_EXPORTER_OTLP_*``, in a thread of OpenTelemetry.

    Args:
        exporter: sends the spans instead, each at once.

    Raises:
        UnsupportedError: the extra is not installed.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise missing_extra("--otel", "otel") from None
        if exporter is None:
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                raise missing_extra("--otel", "otel") from None
        resource = Resource({"service.name": "gemlet"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
        )
        self._tracer = self._provider.get_tracer("gemlet.server", _core.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def record(self, call: Call) -> None:
        """Sends the span of a request that has ended. Its parent is the span that the client names."""
        trace, end = self._trace, time.time_ns()
        start = end - round(call.seconds() * 1e9)
        operation = _OPERATIONS.get(call.route)
        name = (
            f"{operation} {call.model}" if operation and call.model else f"{call.method} {call.route}".strip()
        )
        parent = self._propagator.extract({"traceparent": call.traceparent}) if call.traceparent else None
        span = self._tracer.start_span(
            name,
            parent,
            kind=trace.SpanKind.SERVER,
            start_time=start,
            attributes=_attributes(call, operation),
        )
        if call.first_token is not None:
            first = start + round(call.first_token * 1e9)
            within = trace.set_span_in_context(span)
            for part, begun, ended in (("first_token", start, first), ("generate", first, end)):
                self._tracer.start_span(part, within, start_time=begun).end(ended)
        if call.status >= 500:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Sends the spans that are left."""
        self._provider.shutdown()


def _attributes(call: Call, operation: str | None) -> dict[str, Any]:
    """The attributes of a span. They have the names of the conventions, or our own if there is none."""
    found: dict[str, Any] = {
        "http.request.method": call.method,
        "http.route": call.route or None,
        "http.response.status_code": call.status,
        "error.type": call.problem or None,
        "gemlet.request.id": call.id,
        "gemlet.key.id": None if call.key is None else call.key.id,
        "gemlet.filter": call.verdicts or None,
    }
    if operation is not None and call.model:
        found |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "gemlet",
            "gen_ai.request.model": call.model,
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
            "gen_ai.response.finish_reasons": [call.finish] if call.finish else None,
            "gen_ai.response.time_to_first_chunk": call.first_token,
        }
    return {name: value for name, value in found.items() if value is not None}
