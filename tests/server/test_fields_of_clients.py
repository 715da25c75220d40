"""Tests that the server's tables of fields contain every field that the official clients can send. The tables
mark each field as supported, ignored or refused. The guide names all supported fields."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from support.extras import optional
from support.servers import RunningServer

optional("openai"), optional("anthropic"), optional("ollama")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
GUIDE = Path("python/gemlet/server/README.md")
HALF: Any = "half \ud83d a pair"
TOLD: Any = {"role": "user", "content": HALF}
QUESTION: Any = {"role": "user", "content": "Who?"}
CALL: Any = {"type": "tool_use", "id": "x", "name": "f", "input": {"a": HALF}}
TOOL: Any = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"description": HALF}}}}
JSON: Any = {"type": "function", "id": "x", "function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}


def names_of(kind: Any) -> set[str]:
    """The names of the fields of a typed dictionary, or of all typed dictionaries in a union."""
    members = get_args(kind)
    return set().union(*map(names_of, members)) if members else set(kind.__annotations__)


def fields_of_openai(endpoint: str) -> set[str]:
    import openai.types as types
    from openai.types import chat, responses

    found = {
        "/v1/chat/completions": chat.completion_create_params.CompletionCreateParams,
        "/v1/completions": types.completion_create_params.CompletionCreateParams,
        "/v1/embeddings": types.embedding_create_params.EmbeddingCreateParams,
        "/v1/responses": responses.response_create_params.ResponseCreateParams,
        "/v1/batches": types.batch_create_params.BatchCreateParams,
    }
    return names_of(found[endpoint])


def fields_of_anthropic(endpoint: str) -> set[str]:
    from anthropic.types import beta, message_count_tokens_params, message_create_params

    if endpoint.endswith("count_tokens"):
        names = names_of(message_count_tokens_params.MessageCountTokensParams)
        return names | names_of(beta.message_count_tokens_params.MessageCountTokensParams) - {"betas"}
    names = names_of(message_create_params.MessageCreateParams)
    return names | names_of(beta.message_create_params.MessageCreateParams) - {"betas"}  # betas is a header


def fields_of_ollama(endpoint: str) -> set[str]:
    from ollama import _types as types

    name = {
        "/api/chat": "ChatRequest",
        "/api/generate": "GenerateRequest",
        "/api/embed": "EmbedRequest",
        "/api/embeddings": "EmbeddingsRequest",
        "/api/show": "ShowRequest",
        "options": "Options",
    }[endpoint]
    return set(getattr(types, name).model_fields)


def table_of(endpoint: str) -> Mapping[str, Any]:
    from gemlet.server.app import ROUTES

    if endpoint == "options":
        options: Any = table_of("/api/chat")["options"]
        fields: Mapping[str, Any] = options.fields
        return fields
    (table,) = [way.table for way in ROUTES if (way.method, way.path) == ("POST", endpoint)]
    assert table is not None
    return table


@pytest.mark.parametrize(
    ("fields", "endpoints"),
    [
        (
            fields_of_openai,
            [
                *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
                *("/v1/responses", "/v1/batches"),
            ],
        ),
        (fields_of_anthropic, ["/v1/messages", "/v1/messages/count_tokens"]),
        (
            fields_of_ollama,
            [
                *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
                *("/api/show", "options"),
            ],
        ),
    ],
)
def test_every_field_of_the_clients_is_in_a_table(
    fields: Callable[[str], set[str]], endpoints: Sequence[str]
) -> None:
    missing = {endpoint: sorted(fields(endpoint) - table_of(endpoint).keys()) for endpoint in endpoints}
    assert not any(missing.values()), missing


def test_the_guide_names_the_supported_fields() -> None:
    from gemlet.server.app import ROUTES
    from gemlet.server.fields import GENERATION
    from gemlet.server.schema import Ignored, Refused

    code = re.findall(r"```.*?```|`[^`\n]+`", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(code)))
    # The guide does not name these fields of /api/show: verbose changes nothing, and name is the older name
    # of model.
    silent = {"verbose", "name"}
    for way in ROUTES:
        table = way.table or {}
        supported = {name for name, kind in table.items() if not isinstance(kind, Ignored | Refused)}
        assert supported - GENERATION.keys() - silent <= words, way.path


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [TOLD]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [QUESTION], "stop": [HALF]}, "stop[0]"),
        (
            "/v1/chat/completions",
            {"messages": [QUESTION], "tools": [{"type": "function", "function": TOOL}]},
            "tools[0].function.parameters.properties.a.description",
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    QUESTION,
                    {"role": "assistant", "tool_calls": [JSON]},
                    {"role": "tool", "tool_call_id": "x", "content": "a"},
                ]
            },
            "messages",
        ),
        ("/v1/completions", {"prompt": ["a", HALF]}, "prompt[1]"),
        ("/v1/responses", {"input": [TOLD]}, "input[0].content"),
        ("/v1/responses", {"input": HALF}, "input"),
        ("/v1/embeddings", {"input": ["a", HALF]}, "input[1]"),
        (
            "/v1/decisions",
            {"input": "a", "questions": [{"type": "predicate", "instructions": HALF}]},
            "questions[0].instructions",
        ),
        ("/v1/messages", {"model": "demo", "max_tokens": 3, "messages": [TOLD]}, "messages[0].content"),
        (
            "/v1/messages",
            {
                "model": "demo",
                "max_tokens": 3,
                "messages": [
                    QUESTION,
                    {"role": "assistant", "content": [CALL]},
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "x", "content": "a"}],
                    },
                ],
            },
            "messages",
        ),
        ("/api/chat", {"model": "demo", "messages": [TOLD]}, "messages[0].content"),
        ("/api/generate", {"model": "demo", "prompt": HALF}, "prompt"),
        ("/api/embed", {"model": "demo", "input": [HALF]}, "input[0]"),
        ("/tokenize", {"messages": [TOLD]}, "messages[0].content"),
    ],
)
def test_the_error_for_an_incomplete_pair_of_fields_names_the_field(
    server: RunningServer, path: str, body: Any, param: str
) -> None:
    answer = server.post(path, body)
    assert answer.status == 400
    said = answer.error if isinstance(answer.error, str) else answer.error["message"]
    assert said.startswith(f"{param}:")
    assert "surrogate" in said
    if isinstance(answer.error, dict) and "param" in answer.error:
        assert answer.error["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_lines_have_log_probabilities(server: RunningServer, stream: bool) -> None:
    body = {"messages": [QUESTION], "options": {"num_predict": 4, "temperature": 0}, "stream": stream}
    answer = server.post("/api/chat", {**body, "model": "demo", "logprobs": True, "top_logprobs": 2})
    lines = answer.body.splitlines()
    found = [entry for line in lines for entry in json.loads(line).get("logprobs", [])]
    asked = {"messages": [QUESTION], "max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    assert found == server.post("/v1/chat/completions", asked).json["choices"][0]["logprobs"]["content"]
    assert len(found) == 4


def test_the_values_of_include_are_supported(server: RunningServer) -> None:
    asked: Any = {"input": "a", "max_output_tokens": 2, "include": ["reasoning.encrypted_content"]}
    assert server.post("/v1/responses", asked).status == 200
    asked["include"] = ["message.output_text.logprobs"]
    part = server.post("/v1/responses", asked).json["output"][0]["content"][0]
    assert len(part["logprobs"]) == 2


def test_encrypted_thoughts_are_ignored(server: RunningServer) -> None:
    hidden = {"type": "redacted_thinking", "data": "abc"}
    said = {"role": "assistant", "content": [hidden, {"type": "text", "text": "I."}]}
    counts = []
    for reply in (said, {"role": "assistant", "content": "I."}):
        body = {"model": "demo", "messages": [QUESTION, reply, QUESTION]}
        counts.append(server.post("/v1/messages/count_tokens", body).json)
    assert counts[0] == counts[1]
