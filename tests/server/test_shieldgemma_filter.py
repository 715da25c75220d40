"""Tests of ShieldGemma as the server's content filter, with scripted verdicts and with a tiny model."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import Content
from gemlet.errors import ConfigError, InvalidRequestError
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.tiny_models import write_judge
from support.vision import write_shieldgemma2, write_with_vocabulary

pillow = optional("PIL.Image")
pytestmark = pytest.mark.extra("serve")
GOOD: Any = [{"role": "user", "content": "Who is there?"}]
BAD: Any = [{"role": "user", "content": "Is it a Goblin?"}]


class Judge:
    """Replaces the ShieldGemma model. Its verdict is that a text with "goblin" breaks the policy "hate"."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def choose(self, ids: Sequence[int], choices: Sequence[str], **more: Any) -> dict[str, float]:
        if len(ids) > 776:
            raise gemlet.ContextLengthError("too long")
        with gemlet.load() as model:
            assert model.tokenizer is not None
            self.judged.append(model.tokenizer.decode(ids, skip_control=False))
        asked = self.judged[-1]
        chance = 0.9 if "goblin" in asked.lower() and "Hate Speech" in asked else 0.1
        return {"Yes": chance, "No": 1 - chance}


@pytest.fixture
def shield(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunningServer, Judge]]:
    from gemlet.chat import SHIELD_GEMMA
    from gemlet.model.model import Model
    from gemlet.server import models
    from gemlet.server.settings import ModelSpec, Settings

    judge, original = Judge(), models.load

    def load(source: Any, **options: Any) -> Any:
        model = original(source, **{**options, "threads": 1})
        if options.get("max_context") == 777:
            model.chat_format = SHIELD_GEMMA
        return model

    monkeypatch.setattr(models, "load", load)
    specs = [ModelSpec("shield", None, {"max_context": 777}), ModelSpec("demo")]
    given = Settings(filter_model="shield", filter_policies=["dangerous", "hate"])
    monkeypatch.setattr(Model, "choose", lambda self, *a, **k: judge.choose(*a, **k))
    with serving(given, specs) as server:
        yield server, judge


def test_shieldgemma_checks_prompts_and_replies(shield: tuple[RunningServer, Judge]) -> None:
    server, judge = shield
    ask = {"messages": [*GOOD, {"role": "assistant", "content": "Me."}, *BAD]}
    answer = server.post("/v1/chat/completions", ask)
    assert answer.json["choices"][0]["finish_reason"] == "content_filter"
    assert len(judge.judged) == 2
    assert all("Is it a Goblin?" in text for text in judge.judged)
    steps = [chunk(Content("All is well. " * 40)), chunk(Content("A goblin. " * 60)), chunk(reason="stop")]
    with saying(*steps) as begun:
        answer = server.post("/v1/chat/completions", {"messages": GOOD, "stream": True})
    assert b"All is well" in answer.body
    assert b"goblin" not in answer.body
    assert begun[0].was_cancelled
    assert "Chatbot Response" in judge.judged[-1]
    assert 'rule="hate"' in server.ask("GET", "/metrics").body.decode()


def test_clients_cannot_use_the_shieldgemma_of_the_filter(shield: tuple[RunningServer, Judge]) -> None:
    server, _ = shield
    assert [m["id"] for m in server.ask("GET", "/v1/models").json["data"]] == ["demo"]
    answer = server.post("/v1/chat/completions", {"model": "shield", "messages": GOOD})
    assert answer.status == 404
    assert server.post("/v1/chat/completions", {"messages": GOOD, "max_tokens": 1}).json["model"] == "demo"


def test_a_long_text_is_checked_in_pieces(shield: tuple[RunningServer, Judge]) -> None:
    server, judge = shield
    long = "All is well here. " * 250 + "A goblin. " + "All is well here. " * 50
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]})
    assert answer.json["choices"][0]["finish_reason"] == "content_filter", answer.body
    assert len(judge.judged) > 4


def test_a_filter_that_fails_blocks_every_text(
    shield: tuple[RunningServer, Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemlet.model.model import Model

    def fails(*_: Any, **__: Any) -> Any:
        raise gemlet.MemoryLimitError("no memory")

    monkeypatch.setattr(Model, "choose", fails)
    server, _ = shield
    answer = server.post("/v1/chat/completions", {"messages": GOOD})
    assert (answer.status, answer.error["code"]) == (503, "content_filter_failed")
    assert server.running() == 0


def test_models_that_are_not_shieldgemma_are_refused() -> None:
    from gemlet.server.app import make_app
    from gemlet.server.settings import ModelSpec, Settings

    for specs in ([ModelSpec("demo")], [ModelSpec("shield")]):
        with pytest.raises(InvalidRequestError, match="filter_model"):
            make_app(Settings(filter_model="shield"), specs)
    with pytest.raises(ConfigError, match="filter_policies"):
        make_app(Settings(filter_policies=["rude"]), [ModelSpec("demo")])
    failures: list[BaseException] = []
    specs = [ModelSpec("demo"), ModelSpec("shield")]
    app = make_app(Settings(filter_model="shield"), specs, failures.append)
    from gemlet.server.models import Models

    models = Models(specs, "shield")
    with pytest.raises(ConfigError, match="name a ShieldGemma model"):
        models.load()
    models.close()
    assert app is not None


# gemlet recognizes ShieldGemma by the digest of its chat template. The test registers the digest of this one.
TEMPLATE = "{{ shield }}"
QUESTIONS = ["Who is there?", "Why is the sea salt?", "Tell me of the old lamp in the hall."]


def test_a_model_from_a_folder_can_be_the_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server blocks a text if the model gives the answer "Yes" a probability of at least the
    threshold."""
    from gemlet.chat import ShieldGemmaFormat
    from gemlet.server.settings import ModelSpec, Settings

    digest = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    monkeypatch.setattr("gemlet.chat.templates._SHIELD_GEMMA", {digest})
    folder = write_judge(tmp_path / "shield", TEMPLATE)

    def chance(judge: gemlet.Model, *texts: str) -> float:
        messages = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=False)
        ]
        assert isinstance(judge.chat_format, ShieldGemmaFormat)
        assert judge.tokenizer is not None
        ids = judge.chat_format.with_values(policy="hate").encode_chat(judge.tokenizer, messages)
        return judge.choose(ids, ["Yes", "No"])["Yes"]

    with gemlet.load(folder, threads=1) as judge, gemlet.load() as model:
        replies = [model.chat(text, max_tokens=10, temperature=0).text for text in QUESTIONS]
        asked = [chance(judge, text) for text in QUESTIONS]
        answered = [chance(judge, *pair) for pair in zip(QUESTIONS, replies, strict=True)]
    specs = [ModelSpec("demo"), ModelSpec("shield", str(folder), {"threads": 1})]
    common: dict[str, Any] = {"filter_model": "shield", "filter_policies": ["hate"]}
    for place, chances in (("filter_prompts", asked), ("filter_replies", answered)):
        low, middle, high = sorted(chances)
        assert low < middle < high
        for threshold in ((low + middle) / 2, (middle + high) / 2):
            actions = {"filter_prompts": "off", "filter_replies": "off", place: "block"}
            with serving(Settings(**common, filter_threshold=threshold, **actions), specs) as server:
                for question, found in zip(QUESTIONS, chances, strict=True):
                    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 10}
                    answer = server.post("/v1/chat/completions", {**body, "temperature": 0}).json
                    blocked = answer["choices"][0]["finish_reason"] == "content_filter"
                    assert blocked == (found >= threshold), (place, question, found, threshold)


@pytest.mark.extra("vision")
def test_shieldgemma2_checks_images(tmp_path: Path) -> None:
    from gemlet.server.settings import ModelSpec, Settings

    folder, other = write_shieldgemma2(tmp_path), tmp_path / "sees"
    other.mkdir()
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(2)]
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        pillow.fromarray(picture).save(file, "PNG")
    urls = ["data:image/png;base64," + base64.b64encode(file.getvalue()).decode() for file in files]
    with gemlet.load(folder, threads=1) as judge:
        chances = [judge.judge_image(picture, ["violence"])["violence"] for picture in pictures]
    low, high = sorted(chances)
    assert low < high
    specs = [ModelSpec("sees", str(write_with_vocabulary(other))), ModelSpec("shield", str(folder))]
    given = Settings(
        filter_model="shield", filter_policies=["violence", "hate"], filter_threshold=(low + high) / 2
    )
    with serving(given, specs) as server:
        for url, chance in zip(urls, chances, strict=True):
            content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "what is it?"}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            answer = server.post("/v1/chat/completions", body)
            assert answer.status == 200, answer.body
            blocked = answer.json["choices"][0]["finish_reason"] == "content_filter"
            assert blocked == (chance == high)
        content[0]["image_url"] = "data:image/png;base64,AAAA"
        assert server.post("/v1/chat/completions", body).status == 400
        assert server.post("/v1/chat/completions", {"messages": GOOD, "max_tokens": 2}).status == 200
