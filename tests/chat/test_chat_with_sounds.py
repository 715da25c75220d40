"""Sounds in prompts and conversations: the tokens that stand for them are those of the official processor."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat.media_places import take_media, with_places
from gemlet.errors import InvalidRequestError
from support.audio import BEGIN, END, PLACE, wav, write_with_vocabulary

needs_soundfile = pytest.mark.extra("audio")
SOUND = (0.1 * np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
TOKENS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_with_vocabulary(tmp_path_factory.mktemp("sounds"))
    with gemlet.load(folder, weights="bf16", threads=2) as loaded:
        yield loaded


def test_a_text_can_have_placeholders(model: gemlet.Model) -> None:
    options = {"temperature": 0, "max_tokens": 4}
    found = model.generate("Say <|audio|> twice <|audio|>", audio=[SOUND, SOUND], **options)
    run = [BEGIN, *[PLACE] * TOKENS, END]
    encode = model.tokenizer.encode
    ids = [*encode("Say "), *run, *encode(" twice ", add_bos=False), *run]
    expected = model.generate(ids, audio=[SOUND, SOUND], **options)
    assert found.prompt_tokens == len(ids)
    assert found.audio_tokens == 2 * TOKENS
    assert found.token_ids == expected.token_ids


def test_the_number_of_placeholders_must_match_the_sounds(model: gemlet.Model) -> None:
    with pytest.raises(InvalidRequestError, match=r"<\|audio\|> 1 times, but there are 2 sounds"):
        model.generate("<|audio|>", audio=[SOUND, SOUND], max_tokens=1)
    with pytest.raises(InvalidRequestError, match="for each of 2 prompts"):
        model.generate(["<|audio|>", "b"], audio=[SOUND], max_tokens=1)
    several = model.generate(["<|audio|>", "b"], audio=[[SOUND], []], max_tokens=1)
    assert [one.audio_tokens for one in several] == [TOKENS, 0]


@pytest.mark.parametrize(
    "form",
    [
        "array",
        "pair",
        *(pytest.param(form, marks=needs_soundfile) for form in ("bytes", "path", "base64", "data URL")),
    ],
)
def test_a_message_with_a_sound(model: gemlet.Model, form: str, tmp_path: Path) -> None:
    data = wav(SOUND)
    (tmp_path / "sound.wav").write_bytes(data)
    text = base64.b64encode(data).decode()
    part = {
        "array": {"type": "audio", "audio": SOUND},
        "pair": {"type": "audio", "audio": (SOUND, 16000)},
        "bytes": {"type": "audio", "audio": data},
        "path": {"type": "audio", "audio": tmp_path / "sound.wav"},
        "base64": {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        "data URL": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{text}"}},
    }[form]
    content = [{"type": "text", "text": "What is it? "}, part, {"type": "text", "text": "Say it."}]
    reply = model.chat([{"role": "user", "content": content}], temperature=0, max_tokens=3)
    assert reply.audio_tokens == TOKENS
    written = model.chat_format.render([{"role": "user", "content": "What is it?!Say it."}])
    before, after = written.split("!")
    encode = model.tokenizer.encode
    ids = [*encode(before, add_bos=False), BEGIN, *([PLACE] * TOKENS), END, *encode(after, add_bos=False)]
    assert reply.prompt_tokens == len(ids)
    heard = [np.frombuffer(wav(SOUND)[44:], np.int16)] if form not in ("array", "pair") else [SOUND]
    expected = model.generate(ids, audio=heard, temperature=0, max_tokens=3)
    assert reply.token_ids == expected.token_ids


def test_audio_markers_in_a_users_text_are_not_placeholders(model: gemlet.Model) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "<|audio|>"}]}
    assert model.chat([message], max_tokens=1).audio_tokens == 0
    sound = {"type": "audio", "audio": SOUND}
    both = {"role": "user", "content": [{"type": "text", "text": "<|audio|>"}, sound]}
    assert model.chat([both], max_tokens=1).audio_tokens == TOKENS


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio"}, r"messages\[0\].content\[0\] has no audio"),
        ({"type": "audio", "audio": 7}, r"messages\[0\].content\[0\]: got 7, expected a path"),
        pytest.param({"type": "audio", "audio": b"RIFF"}, "cannot be decoded", marks=needs_soundfile),
        ({"type": "input_audio", "input_audio": "/etc/passwd"}, "expected .*base64"),
        ({"type": "input_audio", "input_audio": {"data": "!"}}, "base64 is damaged"),
        ({"type": "audio_url", "audio_url": "http://localhost/a.wav"}, "expected a data URL"),
    ],
)
def test_wrong_sounds_are_refused(model: gemlet.Model, part: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        model.chat([{"role": "user", "content": [part]}], max_tokens=1)


def test_a_model_that_does_not_hear_takes_text_only() -> None:
    with (
        gemlet.load(threads=1) as model,
        pytest.raises(InvalidRequestError, match="of type audio, which this model does not take"),
    ):
        model.chat([{"role": "user", "content": [{"type": "audio", "audio": SOUND}]}])


def test_each_sentinel_is_different() -> None:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": SOUND}] * 2}]
    first, second = (take_media(messages, ["audio"])[1] for _ in range(2))
    assert len({part.sentinel for part in (*first, *second)}) == 4
    written = [("a" + first[1].sentinel + first[0].sentinel, False)]
    places = {part.sentinel: [(str(i), True)] for i, part in enumerate(first)}
    assert "".join(text for text, _ in with_places(written, places)) == "a10"
