"""Images, videos and sounds in prompts and conversations of Gemma 3n: the tokens that stand for them are
those of the official processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from support.vision import write_gemma3n_with_vocabulary

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8)
SOUND = (0.1 * np.random.default_rng(2).standard_normal(4000)).astype(np.float32)
TOKENS, SOUND_TOKENS = 9, 8
BLOCK = "\n\n<start_of_image>" + "<image_soft_token>" * TOKENS + "<end_of_image>\n\n"
SOUND_BLOCK = "\n\n<start_of_audio>" + "<audio_soft_token>" * SOUND_TOKENS + "<end_of_audio>\n\n"
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_gemma3n_with_vocabulary(tmp_path_factory.mktemp("gemma3n"))
    with gemlet.load(folder, weights="f32", threads=2) as loaded:
        yield loaded


def ids_of(model: gemlet.Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, add_bos=False)


def prompt(*texts: str) -> str:
    return f"<bos><start_of_turn>user\n{''.join(texts)}<end_of_turn>\n<start_of_turn>model\n"


def test_an_image_and_a_sound_in_a_message(model: gemlet.Model) -> None:
    content = [
        {"type": "image", "image": IMAGE},
        {"type": "text", "text": "what is it?"},
        {"type": "audio", "audio": SOUND},
        {"type": "text", "text": "say it"},
    ]
    reply = model.chat([{"role": "user", "content": content}], **OPTIONS)
    ids = ids_of(model, prompt(BLOCK, "what is it?", SOUND_BLOCK, "say it"))
    assert (reply.prompt_tokens, reply.image_tokens, reply.audio_tokens) == (len(ids), TOKENS, SOUND_TOKENS)
    expected = model.generate(ids, images=[IMAGE], audio=[SOUND], **OPTIONS)
    assert reply.token_ids == expected.token_ids
    rows = model.logits(ids, images=[IMAGE], audio=[SOUND])
    rows[-1, model.config.text_ids :] = -np.inf  # the model never generates these tokens
    assert rows[-1].argmax() == reply.token_ids[0]
    other = model.logits(ids, images=[OTHER], audio=[SOUND])[-1]
    assert np.abs(other - model.logits(ids, images=[IMAGE], audio=[SOUND])[-1]).max() > 1e-3


def test_frames_of_a_video_are_images(model: gemlet.Model) -> None:
    content = [{"type": "video", "video": ([IMAGE, OTHER], 1)}, {"type": "text", "text": "say it"}]
    reply = model.chat([{"role": "user", "content": content}], **OPTIONS)
    ids = ids_of(model, prompt(BLOCK, BLOCK, "say it"))
    assert (reply.prompt_tokens, reply.image_tokens) == (len(ids), 2 * TOKENS)
    assert reply.token_ids == model.generate(ids, images=[IMAGE, OTHER], **OPTIONS).token_ids


def test_a_text_can_have_placeholders(model: gemlet.Model) -> None:
    text = "see <image_soft_token> and <image_soft_token>"
    found = model.generate(text, images=[IMAGE, OTHER], **OPTIONS)
    ids = ids_of(model, f"<bos>see {BLOCK} and {BLOCK}")
    assert (found.prompt_tokens, found.image_tokens) == (len(ids), 2 * TOKENS)
    assert found.token_ids == model.generate(ids, images=[IMAGE, OTHER], **OPTIONS).token_ids
    with pytest.raises(gemlet.InvalidRequestError, match="<image_soft_token> 1 times, but there are 2"):
        model.generate("<image_soft_token>", images=[IMAGE, OTHER], max_tokens=1)


def test_a_later_turn_goes_on_from_the_cache(model: gemlet.Model) -> None:
    messages: list[Any] = [{"role": "user", "content": [{"type": "image", "image": IMAGE}]}]
    messages.append(model.chat(messages, **OPTIONS).message)
    messages.append({"role": "user", "content": "the old man said " * 10})
    later = model.chat(messages, **OPTIONS)
    assert later.cached_tokens > TOKENS
    assert later.image_tokens == TOKENS
