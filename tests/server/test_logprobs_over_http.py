"""Tests that log probabilities over HTTP equal those of the library, in whole and in streamed replies."""

from __future__ import annotations

from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture
def client(server: RunningServer) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: Any) -> None:
    with gemlet.load() as model:
        expected = model.chat(QUESTION, max_tokens=6, temperature=0, logprobs=3)
        assert expected.logprobs is not None
        assert model.tokenizer is not None
        texts = [model.tokenizer.decode([one.token_id], skip_control=False) for one in expected.logprobs]
    options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 6, "temperature": 0}
    options |= {"logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options).choices[0].logprobs.content
    streamed = [
        token
        for part in client.chat.completions.create(**options, stream=True)
        if part.choices[0].logprobs is not None
        for token in part.choices[0].logprobs.content
    ]
    for found in (whole, streamed):
        assert [token.token for token in found] == texts
        assert [token.logprob for token in found] == [one.logprob for one in expected.logprobs]
        assert [len(token.top_logprobs) for token in found] == [3] * len(texts)
        assert found[0].top_logprobs[0].logprob == expected.logprobs[0].top[0][1]
        assert bytes(found[0].bytes).decode() == texts[0]
    plain = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=2, logprobs=True)
    assert plain.choices[0].logprobs.content[0].top_logprobs == []
    none = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=2)
    assert none.choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="send logprobs: true with it"):
        client.chat.completions.create(model="demo", messages=QUESTION, top_logprobs=2)


def test_completions(client: Any) -> None:
    with gemlet.load() as model:
        expected = model.generate("The door", max_tokens=6, temperature=0, logprobs=2)
        assert expected.logprobs is not None
    options: Any = {"model": "demo", "prompt": "The door", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**options).choices[0].logprobs
    assert whole.token_logprobs == [one.logprob for one in expected.logprobs]
    assert "".join(whole.tokens) == expected.text
    assert whole.text_offset[0] == 0
    assert whole.text_offset[-1] == len(expected.text) - len(whole.tokens[-1])
    assert [len(top) for top in whole.top_logprobs] == [2] * 6
    parts = [part.choices[0].logprobs for part in client.completions.create(**options, stream=True)]
    assert [value for part in parts if part for value in part.token_logprobs] == whole.token_logprobs
    assert [value for part in parts if part for value in part.text_offset] == whole.text_offset


@pytest.mark.parametrize("prompt", ["The door", [2, 4018, 4021]])
def test_an_echoed_prompt(client: Any, prompt: Any) -> None:
    """With ``echo``, the reply has a log probability for each token of the prompt except the first. Programs
    that evaluate models need this."""
    with gemlet.load() as model:
        expected = model.generate(prompt, max_tokens=2, seed=1, n=2, logprobs=1, prompt_logprobs=1, echo=True)
    asked: Any = {"model": "demo", "prompt": prompt, "max_tokens": 2, "seed": 1, "echo": True}
    found = client.completions.create(**asked, n=2, logprobs=1).choices
    for choice, whole in zip(found, expected, strict=True):
        assert choice.text == whole.text
        of_all = [*(whole.prompt_logprobs or ()), *(whole.logprobs or ())]
        shown = choice.logprobs
        assert shown.token_logprobs == [None if one is None else one.logprob for one in of_all]
        assert [None if top is None else [*top.values()] for top in shown.top_logprobs] == [
            None if one is None else [one.top[0][1]] for one in of_all
        ]
        assert shown.tokens[0] == "<bos>"
        for token, begin in zip(shown.tokens[1:], shown.text_offset[1:], strict=True):
            assert choice.text[begin:].startswith(token)
    parts = client.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].text for part in parts) == expected[0].text
    for more in ({"stream": True}, {"extra_body": {"prompt_logprobs": 1}}):
        with pytest.raises(openai.BadRequestError, match="echo"):
            client.completions.create(**asked, logprobs=1, **more)


def test_bias(client: Any, server: RunningServer) -> None:
    (token,) = server.post("/tokenize", {"prompt": " door", "add_special_tokens": False}).json["tokens"]
    reply = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=3, temperature=0, logit_bias={str(token): 100}
    )
    assert reply.choices[0].message.content.split() == ["door"] * 3


def test_penalties_and_other_sampling_fields(client: Any) -> None:
    for more in (
        {"presence_penalty": 1.5},
        {"frequency_penalty": -2},
        {
            "extra_body": {
                "min_tokens": 4,
                "typical_p": 0.9,
                "repetition_penalty": 1.2,
                "no_repeat_ngram_size": 2,
            }
        },
    ):
        assert client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=5, **more).choices
