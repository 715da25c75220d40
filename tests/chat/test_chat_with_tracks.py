"""The sound of videos in conversations: if it is asked for, it follows the frames, as in transformers."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.media.sounds import read_sound
from gemlet.media.videos import read_video
from support.commands import run
from support.videos import clip
from support.vision import write_gemma3n_with_vocabulary, write_gemma4_with_vocabulary

pytestmark = [pytest.mark.extra("video"), pytest.mark.extra("audio")]
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "load_audio_from_video": True}
TEXT = {"type": "text", "text": "What happens?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma3n_with_vocabulary(tmp_path_factory.mktemp("gemma3n"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[gemlet.Model]:
    with gemlet.load(folder, weights="f32", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def video() -> bytes:
    return clip(2, rate=4, sound=True, seconds=0.25)


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, TEXT]}]


def test_the_sound_follows_the_frames(model: gemlet.Model, video: bytes, tmp_path: Path) -> None:
    frames, _ = read_video(video, "video", np.copy, np.copy)
    seen, heard = (
        {"type": "video", "video": (frames, 4)},
        {"type": "audio", "audio": read_sound(video).samples},
    )
    expected = model.chat(asked(seen, heard), temperature=0, max_tokens=2)
    assert expected.audio_tokens > 0
    (tmp_path / "clip.mp4").write_bytes(video)
    url = "data:video/mp4;base64," + base64.b64encode(video).decode()
    for part in (
        {"type": "video", "video": video},
        {"type": "video", "path": tmp_path / "clip.mp4"},
        {"type": "video_url", "video_url": {"url": url}},
    ):
        for messages in (asked(part), asked(part, {"type": "audio"})):
            found = model.chat(messages, **OPTIONS)
            assert found.token_ids == expected.token_ids
            assert (found.prompt_tokens, found.audio_tokens) == (
                expected.prompt_tokens,
                expected.audio_tokens,
            )
            assert model.count_tokens(messages, load_audio_from_video=True) == expected.prompt_tokens
        assert model.chat(asked(part), temperature=0, max_tokens=2).audio_tokens == 0


def test_two_videos_and_a_sound(model: gemlet.Model, video: bytes) -> None:
    one = {"type": "video", "video": video}
    sound = {"type": "audio", "audio": np.full(1600, 0.1, np.float32)}
    single = model.count_tokens(asked(one), load_audio_from_video=True) - model.count_tokens(asked())
    both = model.chat(asked(one, one, sound), **OPTIONS)
    alone = model.count_tokens(asked(sound)) - model.count_tokens(asked())
    assert both.audio_tokens % 3 == 0
    # Line breaks between the parts may be merged into one token.
    assert abs(both.prompt_tokens - model.count_tokens(asked()) - 2 * single - alone) <= 4


def test_a_video_without_sound(model: gemlet.Model, caplog: pytest.LogCaptureFixture) -> None:
    frames = [np.zeros((8, 8, 3), np.uint8)] * 2
    for silent in (clip(2, rate=4), (frames, 4)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gemlet"):
            found = model.chat(asked({"type": "video", "video": silent}), **OPTIONS)
        assert found.audio_tokens == 0
        assert found.prompt_tokens == model.count_tokens(asked({"type": "video", "video": silent}))
        assert "messages[0].content[0]: the video has no sound" in caplog.text


def test_a_model_that_does_not_hear(video: bytes, tmp_path: Path) -> None:
    with gemlet.load(write_gemma4_with_vocabulary(tmp_path), threads=2) as model:
        with pytest.raises(gemlet.UnsupportedError, match="hears no sound"):
            model.chat(asked({"type": "video", "video": video}), **OPTIONS)
        with pytest.raises(gemlet.InvalidRequestError, match="load_audio_from_video"):
            model.chat(asked(), load_audio_from_video=1)


def test_the_command(folder: Path, video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    options = ("--model", str(folder), "--max-tokens", "1", "--json", "--video", str(path), "Well?")
    heard = run("chat", "--load-audio-from-video", *options)
    assert heard.returncode == 0, heard.stderr
    assert json.loads(heard.stdout)["audio_tokens"] > 0
    assert json.loads(run("chat", *options).stdout)["audio_tokens"] == 0
    path.write_bytes(clip(2, rate=4))
    silent = run("chat", "--load-audio-from-video", *options)
    assert silent.stderr.count(b"the video has no sound") == 1  # the file is read once
