"""Tests of vLLM's fields ``return_token_ids`` and ``prompt_logprobs``, in whole and in streamed replies."""

from __future__ import annotations

from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OPTIONS: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def expected() -> dict[str, gemlet.Generation]:
    with gemlet.load() as model:
        return {
            CHAT: model.chat(QUESTION, prompt_logprobs=2, **OPTIONS),
            TEXT: model.generate("The door", prompt_logprobs=2, **OPTIONS),
        }


def body(path: str, **more: Any) -> dict[str, Any]:
    asked = {"messages": QUESTION} if path == CHAT else {"prompt": "The door"}
    return {**asked, **OPTIONS, **more}


def prompt_of(server: RunningServer, path: str) -> list[int]:
    asked = {"messages": QUESTION} if path == CHAT else {"prompt": "The door"}
    found: list[int] = server.post("/tokenize", asked).json["tokens"]
    return found


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_token_ids(server: RunningServer, expected: dict[str, gemlet.Generation], path: str) -> None:
    found = server.post(path, body(path, return_token_ids=True, n=2)).json
    holder = found if path == CHAT else found["choices"][1]
    assert [choice["token_ids"] for choice in found["choices"]] == [expected[path].token_ids] * 2
    assert holder["prompt_token_ids"] == prompt_of(server, path)
    plain = server.post(path, body(path)).json
    assert "token_ids" not in plain["choices"][0]
    assert not {"prompt_token_ids", "prompt_logprobs"} & {*plain, *plain["choices"][0]}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_streamed_token_ids(server: RunningServer, expected: dict[str, gemlet.Generation], path: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create if path == CHAT else client.completions.create
        asked = body(path)
        own = {name: asked.pop(name) for name in ("ignore_eos",)} | {"return_token_ids": True}
        # With a stop string, the server holds back text that may be the string, but it sends the tokens at
        # once.
        for stop in (None, expected[path].text[-3:]):
            chunks = list(create(model="demo", stream=True, stop=stop, extra_body=own, **asked))
            ids = [i for part in chunks for i in part.choices[0].token_ids]
            assert ids == expected[path].token_ids[: len(ids)]
            assert len(ids) >= 5
            first = chunks[0] if path == CHAT else chunks[0].choices[0]
            assert first.prompt_token_ids == prompt_of(server, path)
            for part in chunks[1:]:
                rest = part if path == CHAT else part.choices[0]
                assert getattr(rest, "prompt_token_ids", None) is None


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_prompt_logprobs(server: RunningServer, expected: dict[str, gemlet.Generation], path: str) -> None:
    answer = server.post(path, body(path, prompt_logprobs=2)).json
    found = answer["prompt_logprobs"] if path == CHAT else answer["choices"][0]["prompt_logprobs"]
    known = expected[path].prompt_logprobs
    assert known is not None
    ids = prompt_of(server, path)
    assert len(found) == len(known) == len(ids)
    assert found[0] is None
    for token_id, entries, one in zip(ids[1:], found[1:], known[1:], strict=True):
        assert one is not None
        assert next(iter(entries)) == str(token_id)
        own = entries[str(token_id)]
        assert own["logprob"] == one.logprob
        assert {i: entry["logprob"] for i, entry in entries.items()} == {
            str(token_id): one.logprob,
            **{str(i): logprob for i, logprob in one.top},
        }
        places = [i for i, _ in one.top]
        assert own["rank"] == (places.index(token_id) + 1 if token_id in places else None)
        assert [entries[str(i)]["rank"] for i in places] == [1, 2]
        assert isinstance(own["decoded_token"], str)


def test_wrong_fields_are_refused(server: RunningServer) -> None:
    def refused(path: str, **fields: Any) -> tuple[Any, ...]:
        asked = {"input": "The door"} if path == "/v1/responses" else body(path)
        answer = server.post(path, {**asked, **fields})
        assert answer.status == 400
        return answer.error["param"], answer.error["code"]

    stream = {"prompt_logprobs": 1, "stream": True}
    for path in (CHAT, TEXT):
        assert refused(path, **stream)[0] == "prompt_logprobs"
        assert refused(path, prompt_logprobs=21)[0] == "prompt_logprobs"
        assert refused(path, prompt_logprobs=-1)[0] == "prompt_logprobs"
        assert refused(path, return_token_ids=1)[0] == "return_token_ids"
    assert refused(TEXT, prompt=list(range(5, 900)), n=16, prompt_logprobs=20)[0] == "prompt_logprobs"
    assert refused(TEXT, thinking_token_budget=5) == ("thinking_token_budget", "unsupported")
    assert refused(CHAT, thinking_token_budget=5)[1] == "unsupported"  # the demo model has no thoughts
    assert refused(CHAT, thinking_token_budget=-2)[0] == "thinking_token_budget"
    for name in ("return_token_ids", "prompt_logprobs", "thinking_token_budget"):
        assert refused("/v1/responses", **{name: 5}) == (name, "unsupported")
    assert server.post(CHAT, body(CHAT, thinking_token_budget=-1)).status == 200
    server.wait_idle()
