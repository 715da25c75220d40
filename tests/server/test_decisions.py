"""Tests of ``/v1/decisions`` with OpenAI's client: questions of each kind, and requests that are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer, serving

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
PREDICATE: Any = {"type": "predicate", "name": "night", "instructions": "It is night."}
CHOICE: Any = {
    "type": "choice",
    "instructions": "Who is it?",
    "choices": [{"value": "a friend"}, {"value": True, "description": "it is so"}, {"value": "true"}],
}
SCORE: Any = {"type": "score", "instructions": "How dark?", "levels": [{"label": "light"}, {"label": "dark"}]}


@pytest.fixture
def client(server: RunningServer) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_each_kind(client: Any) -> None:
    found = client.decisions.create(
        model="demo", input="The moon rose.", questions=[PREDICATE, CHOICE, SCORE]
    )
    night, who, dark = found.answers
    assert (night.type, night.name) == ("predicate", "night")
    assert 0 < night.probability < 1
    assert [type(one.value) for one in who.probabilities] == [str, bool, str]
    assert sum(one.probability for one in who.probabilities) == pytest.approx(1)
    assert who.confidence == max(one.probability for one in who.probabilities)
    assert [(one.value, one.label) for one in dark.probabilities] == [(0, "light"), (1, "dark")]
    assert dark.score == pytest.approx(dark.probabilities[1].probability)
    assert found.usage.output_tokens == 0
    assert found.usage.input_tokens == found.usage.total_tokens > 20


def test_a_decision_equals_the_result_of_choose(client: Any) -> None:
    found = client.decisions.create(model="demo", input="The moon rose.", questions=[PREDICATE])
    question = "The moon rose.\n\nIt is night.\n\nIs this true of the above? Answer with Yes or No alone."
    with gemlet.load() as model:
        expected = model.choose([{"role": "user", "content": question}], ["Yes", "No"])
    assert found.answers[0].probability == pytest.approx(expected["Yes"], rel=1e-6)


def test_conversations(client: Any) -> None:
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": "Good evening."},
    ]
    last = {"role": "user", "content": [{"type": "input_json", "data": {"moon": ["full"]}}]}
    for given in (turns, [*turns, last]):
        found = client.decisions.create(model="demo", input=given, questions=[PREDICATE])
        assert found.answers[0].type == "predicate"


def test_many_choices(client: Any) -> None:
    choices = [{"value": f"door {i}"} for i in range(40)]
    many = {"type": "choice", "instructions": "Which?", "choices": choices}
    (found,) = client.decisions.create(model="demo", input="The door.", questions=[many]).answers
    assert len(found.probabilities) == 40
    assert sum(one.probability for one in found.probabilities) == pytest.approx(1)


def test_async(server: RunningServer) -> None:
    async def main() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await client.decisions.create(model="demo", input="x", questions=[SCORE])

    assert asyncio.run(main()).answers[0].type == "score"


def many(count: int) -> list[Any]:
    return [{"value": str(i)} for i in range(count)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", ""),
        ("input", []),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]),
        ("questions", []),
        ("questions", [PREDICATE] * 401),
        ("questions", ["x"]),
        ("questions", [{**PREDICATE, "type": "other"}]),
        ("questions", [{"type": "predicate"}]),
        ("questions", [{**PREDICATE, "choices": many(2)}]),
        ("questions", [{**CHOICE, "choices": many(1)}]),
        ("questions", [{**CHOICE, "choices": many(256)}]),
        ("questions", [{**CHOICE, "choices": many(2) * 2}]),
        ("questions", [{**CHOICE, "choices": [{"value": 1}, {"value": 2}]}]),
        ("questions", [{**SCORE, "levels": [{"label": str(i)} for i in range(11)]}]),
        ("questions", [{**SCORE, "levels": [{"label": "x"}]}]),
    ],
)
def test_wrong_fields_are_refused(server: RunningServer, field: str, value: object) -> None:
    body = {"model": "demo", "input": "x", "questions": [PREDICATE], field: value}
    answer = server.post("/v1/decisions", body)
    assert answer.status == 400
    assert str(answer.error["param"]).startswith(field), answer.error
    assert server.running() == 0


def test_too_long(server: RunningServer) -> None:
    answer = server.post("/v1/decisions", {"input": "word " * 100_000, "questions": [PREDICATE]})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def test_keys_do_not_share_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemlet.model.model import Model
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.settings import Settings

    salts: list[Any] = []

    def choose(self: object, ids: object, labels: Any, **more: Any) -> dict[str, float]:
        salts.append(more["cache_salt"])
        return dict.fromkeys(labels, 1 / len(labels))

    monkeypatch.setattr(Model, "choose", choose)
    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    keys = [store.create("a"), store.create("b"), store.create("c", Limits(max_prompt=9))]
    with serving(Settings(keys=str(tmp_path / "keys.db"))) as server:
        body = {"input": "x", "questions": [PREDICATE]}
        for key in keys[:2]:
            assert server.post("/v1/decisions", body, key=key).status == 200
        assert len(set(salts)) == 2
        assert None not in salts
        assert server.post("/v1/decisions", body, key=keys[2]).status == 400
        rows = {row["key"]: row for row in store.usage()}
        assert rows["a"]["prompt_tokens"] > 9
        assert rows["c"]["prompt_tokens"] == 0
    store.close()
