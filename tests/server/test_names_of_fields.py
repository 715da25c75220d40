"""Tests that errors name the fields of the request, and not the arguments of the library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.servers import RunningServer, serving

pytestmark = pytest.mark.extra("serve")
QUESTION: Any = [{"role": "user", "content": "Who?"}]
LONG = "x" * 100_000
SCHEMA: Any = {"type": "strin"}
RESULT: Any = {"type": "function_call_output", "call_id": "x", "output": "y"}
BLOCK: Any = {"type": "tool_result", "tool_use_id": "x", "content": "y"}
ANTHROPIC: Any = {"model": "demo", "max_tokens": 5}
OLLAMA: Any = {"model": "demo"}
NAMED = [
    ("/v1/responses", {"input": LONG}, "input:"),
    ("/v1/responses", {"input": [RESULT]}, "input: a part is the result of a tool"),
    ("/v1/responses", {"input": "a", "reasoning": {"effort": "high"}}, "reasoning.effort:"),
    ("/v1/chat/completions", {"messages": QUESTION, "reasoning_effort": "high"}, "reasoning_effort:"),
    ("/v1/chat/completions", {"messages": QUESTION, "thinking_token_budget": 3}, "thinking_token_budget:"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG[:9000]}]}, "messages:"),
    ("/v1/messages", {**ANTHROPIC, "messages": [{"role": "user", "content": [BLOCK]}]}, "messages: a part"),
    ("/api/generate", {**OLLAMA, "prompt": LONG}, "prompt:"),
    ("/api/generate", {**OLLAMA, "prompt": "a", "think": True}, "think:"),
]
FORMAT: Any = {"type": "json_schema", "name": "a", "schema": SCHEMA}
OF_FORMS = [
    (
        "/v1/chat/completions",
        {
            "messages": QUESTION,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        },
        "response_format.json_schema.schema:",
    ),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"regex": "("}}, "structured_outputs.regex:"),
    ("/v1/completions", {"prompt": "a", "json_schema": SCHEMA}, "json_schema:"),
    ("/v1/responses", {"input": "a", "text": {"format": FORMAT}}, "text.format.schema:"),
    (
        "/v1/messages",
        {
            **ANTHROPIC,
            "messages": QUESTION,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
        "output_config.format.schema:",
    ),
    ("/api/chat", {**OLLAMA, "messages": QUESTION, "format": SCHEMA}, "format:"),
]


def check(server: RunningServer, path: str, body: Any, begins: str) -> None:
    error = server.post(path, body)
    assert error.status == 400
    said = error.error if isinstance(error.error, str) else error.error["message"]
    assert said.startswith(begins)
    if path.startswith("/v1/") and path != "/v1/messages" and error.error["code"] is None:
        assert error.error["param"] == begins.partition(":")[0]


@pytest.mark.parametrize(("path", "body", "begins"), NAMED)
def test_errors_name_the_fields_of_prompts(server: RunningServer, path: str, body: Any, begins: str) -> None:
    check(server, path, body, begins)


@pytest.mark.extra("grammar")
@pytest.mark.parametrize(("path", "body", "begins"), OF_FORMS)
def test_errors_name_the_fields_of_forms(server: RunningServer, path: str, body: Any, begins: str) -> None:
    check(server, path, body, begins)


@pytest.fixture(scope="module")
def embedder() -> Iterator[RunningServer]:
    from gemlet.server.settings import ModelSpec

    with serving(specs=[ModelSpec("e", "tests/golden/embeddinggemma")]) as running:
        yield running


@pytest.mark.parametrize(
    ("given", "begins"),
    [([5, 99_999_999], "input: "), ([[5], [99_999_999]], "input[1]: "), ([[5, 99_999_999]], "input[0]: ")],
)
def test_errors_name_the_fields_of_embeddings(embedder: RunningServer, given: Any, begins: str) -> None:
    for path in ("/v1/embeddings", "/api/embed"):
        error = embedder.post(path, {"model": "e", "input": given}).error
        said = error if isinstance(error, str) else error["message"]
        assert said.startswith(begins)
