"""Tests of responses with OpenAI's official client: whole and streamed responses, and conversations of
several turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.chat import Content, Reasoning, ToolCall
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
GREEDY: Any = {"model": "demo", "temperature": 0, "max_output_tokens": 12}
CALL = ToolCall("weather", {"city": "Oslo"})
STEPS = [chunk(Reasoning("Hm.")), chunk(Content("I ask.")), chunk(CALL, reason="stop")]
TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}]


@pytest.fixture
def client(server: RunningServer) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> list[gemlet.Generation]:
    """The replies that the library gives in the two turns of the conversation."""
    messages: list[Any] = [{"role": "user", "content": "Who is there?"}]
    with gemlet.load() as model:
        first = model.chat(messages, max_tokens=12, temperature=0)
        messages += [first.message, {"role": "user", "content": "Speak!"}]
        return [first, model.chat(messages, max_tokens=12, temperature=0)]


def test_a_conversation(client: Any, expected: list[gemlet.Generation]) -> None:
    first = client.responses.create(input="Who is there?", **GREEDY)
    assert first.output_text == expected[0].text
    assert first.status == ("incomplete" if expected[0].finish_reason == "length" else "completed")
    assert first.usage.input_tokens == expected[0].prompt_tokens
    assert first.usage.output_tokens == expected[0].completion_tokens
    second = client.responses.create(input="Speak!", previous_response_id=first.id, **GREEDY)
    assert second.output_text == expected[1].text
    whole = client.responses.create(
        input=[
            {"role": "user", "content": "Who is there?"},
            *[item.model_dump() for item in first.output],
            {"role": "user", "content": [{"type": "input_text", "text": "Speak!"}]},
        ],
        **GREEDY,
    )
    assert whole.output_text == second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_response_that_is_not_stored_cannot_be_continued(client: Any) -> None:
    reply = client.responses.create(input="Who is there?", store=False, **GREEDY)
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(input="Speak!", previous_response_id=reply.id, **GREEDY)
    assert error.value.code == "previous_response_not_found"


def test_a_stream(client: Any, expected: list[gemlet.Generation]) -> None:
    with client.responses.stream(input="Who is there?", **GREEDY) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == f"response.{final.status}"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == expected[0].text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_thoughts_and_calls(client: Any) -> None:
    with saying(*STEPS):
        whole = client.responses.create(model="demo", input="?", tools=TOOLS, reasoning={"effort": "high"})
        with client.responses.stream(model="demo", input="?", tools=TOOLS) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
    for found in (whole, streamed):
        assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
        assert found.output[0].content[0].text == "Hm."
        assert found.output_text == "I ask."
        assert json.loads(found.output[2].arguments) == {"city": "Oslo"}
        assert found.output[2].call_id == CALL.id
        assert found.usage.output_tokens_details.reasoning_tokens == 1
    for kind in ("reasoning_text.delta", "function_call_arguments.delta", "function_call_arguments.done"):
        assert f"response.{kind}" in kinds


def test_items_become_messages() -> None:
    from gemlet.server.response_items import conversation_of

    call = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"}
    found = conversation_of(
        [
            {"role": "user", "content": "?"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask."}]},
            call,
            {"type": "function_call_output", "call_id": "1", "output": "Rain"},
        ]
    )
    assert [message["role"] for message in found] == ["user", "assistant", "tool"]
    assert found[1]["reasoning"] == "Hm."
    assert found[1]["content"] == "I ask."
    assert found[1]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", {"format": {"type": "xml"}}),
        ("background", True),
        ("truncation", "auto"),
        ("tools", [{"type": "web_search"}]),
        ("input", [{"type": "computer_call"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]),
        ("max_output_tokens", 0),
    ],
)
def test_wrong_fields_are_refused(server: RunningServer, field: str, value: object) -> None:
    answer = server.post("/v1/responses", {"model": "demo", "input": "?", field: value})
    assert answer.status == 400
    assert answer.error["param"].startswith(field)


def test_another_key_cannot_see_a_response(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    alice, bob = store.create("alice"), store.create("bob")
    store.close()
    with serving(Settings(keys=str(tmp_path / "keys.db"), max_kept=2000)) as server:
        body = {"input": "Who is there?", "max_output_tokens": 2}
        name = server.post("/v1/responses", body, key=alice).json["id"]
        path = f"/v1/responses/{name}"
        assert server.ask("GET", path, key=bob).status == 404
        assert server.ask("DELETE", path, key=bob).status == 404
        assert server.post("/v1/responses", {**body, "previous_response_id": name}, key=bob).status == 404
        assert server.ask("GET", path, key=alice).status == 200
        # When the memory for stored responses is full, the server forgets the oldest responses.
        for _ in range(3):
            last = server.post("/v1/responses", body, key=alice).json["id"]
        assert server.ask("GET", path, key=alice).status == 404
        assert server.ask("GET", f"/v1/responses/{last}", key=alice).status == 200
