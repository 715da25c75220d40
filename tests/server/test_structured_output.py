"""Tests of structured output in every dialect: replies match a schema or grammar."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from support.extras import optional
from support.servers import RunningServer

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve"), pytest.mark.extra("grammar")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"who": {"enum": ["a man", "a ghost"]}, "old": {"type": "boolean"}},
    "required": ["who", "old"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": 0}}
BODY: Any = {"messages": QUESTION, "max_tokens": 60, "seed": 1}


def has_form(text: str) -> bool:
    found = json.loads(text)
    return found.keys() == {"who", "old"} and found["who"] in ("a man", "a ghost")


def test_openai(server: RunningServer) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "guest", "schema": SCHEMA, "strict": True}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 60, "response_format": format}
        assert has_form(client.chat.completions.create(**options).choices[0].message.content)
        parts = client.chat.completions.create(**options, stream=True)
        assert has_form("".join(part.choices[0].delta.content or "" for part in parts))
        text = {"format": {"type": "json_schema", "name": "guest", "schema": SCHEMA}}
        assert has_form(client.responses.create(model="demo", input="Who?", text=text).output_text)


def test_structured_outputs(server: RunningServer) -> None:
    def answer(**asked: Any) -> str:
        reply = server.post("/v1/chat/completions", {**BODY, "structured_outputs": asked})
        assert reply.status == 200, reply.body
        return str(reply.json["choices"][0]["message"]["content"])

    assert has_form(answer(json=SCHEMA))
    assert has_form(answer(json=json.dumps(SCHEMA)))
    assert answer(choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch(r"[0-9]{3}-[a-z]{2}", answer(regex="[0-9]{3}-[a-z]{2}"))
    assert answer(grammar='start: "x" "y"') == "xy"
    text = server.post("/v1/completions", {"prompt": "Who?", "structured_outputs": {"choice": ["me", "you"]}})
    assert text.json["choices"][0]["text"] in ("me", "you")
    text = server.post("/v1/completions", {"prompt": "Who?", "max_tokens": 60, "json_schema": SCHEMA})
    assert has_form(text.json["choices"][0]["text"])


def test_other_dialects(server: RunningServer) -> None:
    chat = {"model": "demo", "messages": QUESTION, "stream": False, "format": SCHEMA}
    assert has_form(server.post("/api/chat", chat).json["message"]["content"])
    message = {
        "model": "demo",
        "messages": QUESTION,
        "max_tokens": 60,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    assert has_form(server.post("/v1/messages", message).json["content"][0]["text"])


@pytest.mark.parametrize(
    "more",
    [
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"surprise": 1}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"json_schema": SCHEMA, "response_format": {"type": "json_object"}},
        {"json_schema": SCHEMA, "structured_outputs": {"json": SCHEMA}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "surprise"}}}},
        {"structured_outputs": {"regex": "x" * 300_000}},
    ],
    ids=range(13),
)
def test_a_bad_grammar_is_an_error_of_its_own_request_only(server: RunningServer, more: Any) -> None:
    answer = server.post("/v1/chat/completions", {**BODY, **more})
    assert answer.status == 400, answer.body
    assert server.running() == 0
    assert server.post("/v1/chat/completions", {**BODY, "max_tokens": 1}).status == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (
            "/v1/chat/completions",
            {"tools": [TOOL]},
        ),
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": 0}}},
        ),
        ("/v1/chat/completions", {"structured_outputs": {"json": 0}}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f", "parameters": 0}]}),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "s", "schema": 0}}}),
        ("/v1/messages", {"tools": [{"name": "f", "input_schema": 0}]}),
        ("/api/chat", {"tools": [TOOL]}),
        ("/api/chat", {"format": 0}),
        ("/tokenize", {"tools": [TOOL]}),
    ],
)
def test_a_schema_that_is_too_long(server: RunningServer, path: str, fields: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(12_000)}}
    own = {"/v1/responses": {"input": "Hi"}, "/v1/messages": {"max_tokens": 2}}.get(path, {})
    body = {"model": "demo", "messages": QUESTION, **own, **fields}
    if path == "/v1/responses":
        del body["messages"]
    answer = server.post(path, json.dumps(body).replace(": 0", f": {json.dumps(schema)}").encode())
    assert answer.status == 400
    assert re.search("262144|256 KB", answer.body.decode()), answer.body
