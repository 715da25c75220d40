"""ShieldGemma 2: its prompts, its answers, and its probabilities compared with transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import SHIELD_GEMMA_2, ShieldGemma2Format
from gemlet.chat.media_places import take_media
from gemlet.chat.shieldgemma2 import IMAGE_POLICIES
from gemlet.errors import ConfigError, InvalidRequestError, UnsupportedError
from golden.folders import read_tensors
from support.paths import TESTS
from support.vision import write_shieldgemma2

FOLDER = TESTS / "golden" / "shieldgemma2"
PROMPTS = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_shieldgemma2(tmp_path_factory.mktemp("shieldgemma2"))
    with gemlet.load(folder, weights="f32", threads=2) as loaded:
        yield loaded


def test_probabilities_are_those_of_the_reference() -> None:
    golden = read_tensors(FOLDER / "golden.safetensors")
    with gemlet.load(FOLDER, weights="f32") as model:
        assert model.config.verdict_ids == (17, 23)
        for index in range(3):
            row = model.logits(golden[f"ids.{index}"], images=[golden["levels"]])[-1, [17, 23]]
            found = np.exp(row - row.max())
            np.testing.assert_allclose(found / found.sum(), golden[f"probabilities.{index}"], atol=2e-5)


@pytest.mark.parametrize("case", PROMPTS["cases"], ids=range(len(PROMPTS["cases"])))
def test_prompts_are_those_of_the_published_template(case: Any) -> None:
    content = [{"type": "image", "image": IMAGE}, {"type": "text", "text": case["policy"]}]
    messages, parts = take_media([{"role": "user", "content": content}], ["image"])
    found = SHIELD_GEMMA_2.render(messages).replace(parts[0].sentinel, "<start_of_image>")
    assert found == case["text"]
    chosen = SHIELD_GEMMA_2.with_values(guideline=case["policy"])
    alone, parts = take_media([{"role": "user", "content": content[:1]}], ["image"])
    assert chosen.render(alone).replace(parts[0].sentinel, "<start_of_image>") == case["text"]


def test_an_image_is_judged(model: gemlet.Model) -> None:
    assert isinstance(model.chat_format, ShieldGemma2Format)
    found = model.judge_image(IMAGE)
    assert list(found) == ["dangerous", "sexual", "violence"]
    for policy, chance in found.items():
        content = [{"type": "image", "image": IMAGE}, {"type": "text", "text": IMAGE_POLICIES[policy]}]
        reply = model.chat([{"role": "user", "content": content}], max_tokens=1, temperature=0)
        assert reply.image_tokens == 16
        # An image has 16 placeholder tokens here, and two line breaks around them.
        block = "\n\n<start_of_image>" + "<image_soft_token>" * 16 + "<end_of_image>\n\n"
        text = PROMPTS["cases"][0]["text"].replace("No cats.", IMAGE_POLICIES[policy])
        assert model.tokenizer is not None
        ids = model.tokenizer.encode(text.replace("<start_of_image>", block, 1), add_bos=False)
        assert reply.prompt_tokens == len(ids)
        row = model.logits(ids, images=[IMAGE])[-1]
        assert chance == pytest.approx(1 / (1 + np.exp(row[9] - row[7])), abs=1e-5)
    own = model.judge_image(IMAGE, {"mine": IMAGE_POLICIES["sexual"]})
    assert own == {"mine": pytest.approx(found["sexual"])}
    assert model.judge_image(IMAGE, ["violence"]) == {"violence": pytest.approx(found["violence"])}
    other = np.ascontiguousarray(255 - IMAGE)
    assert model.judge_image(other, ["sexual"])["sexual"] != pytest.approx(found["sexual"], abs=1e-4)


def test_choices_about_an_image(model: gemlet.Model) -> None:
    """The answer depends on the image."""
    content: list[Any] = [{"type": "image", "image": IMAGE}, {"type": "text", "text": "No cats."}]
    messages = [{"role": "user", "content": content}]
    first = model.choose(messages, ["door", "lamp"])
    content[0] = {"type": "image", "image": np.ascontiguousarray(255 - IMAGE)}
    other = model.choose(messages, ["door", "lamp"])
    assert abs(first["door"] - other["door"]) > 1e-4


def test_wrong_use(model: gemlet.Model) -> None:
    for policies in ("sexual", ["hate"], {"a": 3}, 7):
        with pytest.raises(InvalidRequestError, match="policies: got"):
            model.judge_image(IMAGE, policies)  # type: ignore[arg-type]
    image = {"type": "image", "image": IMAGE}
    policy = {"type": "text", "text": "No."}
    for content in (
        "Hi",
        [policy],
        [policy, policy],
        [image, policy, policy],
        [image, image],
        [policy, image],
    ):
        with pytest.raises(InvalidRequestError, match=r"messages\[0\]"):
            model.chat([{"role": "user", "content": content}], max_tokens=1)
    with pytest.raises(InvalidRequestError, match="with_values"):
        model.chat([{"role": "user", "content": [image]}], max_tokens=1)
    for values in ({"guideline": "a", "policy": "sexual"}, {"policy": "hate"}, {"guideline": 3}):
        with pytest.raises(InvalidRequestError, match="expected"):
            SHIELD_GEMMA_2.with_values(**values)  # type: ignore[arg-type]
    with gemlet.load() as demo, pytest.raises(UnsupportedError, match="is not a ShieldGemma 2"):
        demo.judge_image(IMAGE)


def test_verdicts_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "model")
    config = json.loads((FOLDER / "config.json").read_text())
    del config["yes_token_index"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="yes_token_index"):
        gemlet.load(tmp_path / "model")
