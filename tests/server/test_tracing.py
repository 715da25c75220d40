"""Tests of tracing with OpenTelemetry: each request has a span in the client's trace, and spans contain no
prompts or replies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gemlet.chat import Content
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("otel")]
CHAT = "/v1/chat/completions"
SECRET = "pomegranate"
BODY: Any = {
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 4,
    "ignore_eos": True,
    "user": SECRET,
}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunningServer, Any]]:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from gemlet.server import app
    from gemlet.server.settings import Settings
    from gemlet.server.tracing import Tracing

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(app, "Tracing", lambda: Tracing(exporter))
    with serving(Settings(otel=True)) as server:
        exporter.clear()
        yield server, exporter


def spans(exporter: Any, count: int) -> list[Any]:
    """Waits until ``count`` spans have ended, and returns all ended spans. Spans of ``GET /ready`` do not
    count."""

    def ended() -> list[Any]:
        found = [span for span in exporter.get_finished_spans() if span.name != "GET /ready"]
        return found if len(found) >= count else []

    return until(ended)


def test_a_reply(traced: tuple[RunningServer, Any]) -> None:
    server, exporter = traced
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = server.post(CHAT, BODY, headers={"traceparent": parent})
    first, second, whole = spans(exporter, 3)
    assert (first.name, second.name, whole.name) == ("first_token", "generate", "chat demo")
    assert f"{whole.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{whole.parent.span_id:016x}" == parent.split("-")[2]
    assert first.parent.span_id == second.parent.span_id == whole.context.span_id
    assert whole.start_time == first.start_time <= first.end_time == second.start_time <= whole.end_time
    found, usage = whole.attributes, answer.json["usage"]
    assert found["gen_ai.provider.name"] == "gemlet"
    assert found["gen_ai.request.model"] == "demo"
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["gemlet.request.id"] == answer.headers["x-request-id"]
    assert whole.resource.attributes["service.name"] == "gemlet"


def test_traces_have_no_text(traced: tuple[RunningServer, Any]) -> None:
    server, exporter = traced
    text = server.post(CHAT, BODY).json["choices"][0]["message"]["content"]
    server.post(CHAT, {**BODY, SECRET: SECRET})
    server.post(CHAT, {**BODY, "temperature": SECRET})
    server.ask(
        "GET", f"/{SECRET}?{SECRET}", headers={"X": SECRET, "traceparent": SECRET, "User-Agent": SECRET}
    )
    for span in spans(exporter, 6):
        assert SECRET not in span.to_json()
        assert text not in span.to_json() or len(text) < 4


def test_errors(traced: tuple[RunningServer, Any]) -> None:
    server, exporter = traced
    server.post(CHAT, {**BODY, "n": -1})
    with saying(chunk(Content("x")), ZeroDivisionError("x")):
        server.post(CHAT, BODY)
    found = {s.attributes["http.response.status_code"]: s for s in spans(exporter, 4) if s.attributes}
    assert found[400].status.status_code.name == "UNSET"
    assert found[500].status.status_code.name == "ERROR"
    assert found[500].attributes["error.type"] == "server_error"


def test_no_span_if_the_client_switches_tracing_off(traced: tuple[RunningServer, Any]) -> None:
    server, exporter = traced
    off = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    server.post(CHAT, BODY, headers={"traceparent": off})
    server.ask("GET", "/version")
    assert [span.name for span in spans(exporter, 1)] == ["GET /version"]


def test_a_collector_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the collector does not answer, replies and the end of the server are not delayed."""
    from gemlet.server.settings import Settings

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with serving(Settings(otel=True)) as server:
        assert server.post(CHAT, BODY).status == 200
    assert time.monotonic() - begun < PATIENCE
