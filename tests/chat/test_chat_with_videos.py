"""Videos in prompts and conversations of Gemma 4: frames with their times, as the official processor writes
them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.media.videos import read_video
from support.commands import run
from support.videos import clip
from support.vision import write_gemma4_with_vocabulary

pytestmark = pytest.mark.extra("video")
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 2}
SIZE = (96, 96)  # an image of this size becomes 8 x 8 soft tokens
TOKENS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma4_with_vocabulary(tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[gemlet.Model]:
    with gemlet.load(folder, weights="f32", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def video() -> bytes:
    return clip(3, rate=1, size=SIZE)


def places(*times: str) -> str:
    return " ".join(f"{time} <|image>{'<|video|>' * TOKENS}<image|>" for time in times)


def prompt(*texts: str) -> str:
    return f"<bos><|turn>user\n{''.join(texts)}<turn|>\n<|turn>model\n"


@pytest.mark.parametrize("form", ["bytes", "path", "video_url", "plain URL", "frames"])
def test_a_message_with_a_video(model: gemlet.Model, video: bytes, form: str, tmp_path: Path) -> None:
    frames, _ = read_video(video, "video", np.copy, np.copy)
    url = "data:video/mp4;base64," + base64.b64encode(video).decode()
    part: dict[str, Any] = {"type": "video_url", "video_url": {"url": url}}
    if form == "plain URL":
        part = {"type": "video_url", "video_url": url}
    if form == "path":
        (tmp_path / "clip.mp4").write_bytes(video)
        part = {"type": "video", "path": tmp_path / "clip.mp4"}
    if form in ("bytes", "frames"):
        part = {"type": "video", "video": {"bytes": video, "frames": (frames, 1)}[form]}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}]
    reply = model.chat(messages, **OPTIONS)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(prompt(places("00:00", "00:01", "00:02"), "What happens?"), add_bos=False)
    assert (reply.prompt_tokens, reply.image_tokens) == (len(ids), 3 * TOKENS)
    assert model.count_tokens(messages) == len(ids)
    expected = model.generate(ids, videos=[(frames, 1)], **OPTIONS)
    assert (reply.token_ids, expected.image_tokens) == (expected.token_ids, 3 * TOKENS)


def test_a_text_with_the_place_of_a_video(model: gemlet.Model, video: bytes) -> None:
    found = model.generate("See <|video|>: a man", videos=[video], **OPTIONS)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(f"See {places('00:00', '00:01', '00:02')}: a man")
    assert found.prompt_tokens == len(ids)
    assert found.token_ids == model.generate(ids, videos=[video], **OPTIONS).token_ids
    np.testing.assert_array_equal(
        model.logits(ids, videos=[video])[-1],
        model.logits(ids, videos=[(read_video(video, "video", np.copy, np.copy)[0], 1)])[-1],
    )


def test_times_of_frames_are_written_in_minutes(model: gemlet.Model) -> None:
    frames = [np.zeros((*SIZE, 3), np.uint8)] * 2
    found = model.generate("<|video|>", videos=[(frames, 1 / 75)], **OPTIONS)
    assert model.tokenizer is not None
    assert found.prompt_tokens == len(model.tokenizer.encode(places("00:00", "01:15")))


def test_a_video_in_an_event_loop(model: gemlet.Model, video: bytes) -> None:
    messages = [{"role": "user", "content": [{"type": "video", "video": video}]}]
    reply = asyncio.run(model.achat(messages, **OPTIONS))
    assert reply.token_ids == model.chat(messages, **OPTIONS).token_ids


def test_the_command_takes_videos(folder: Path, video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    options = ("--model", str(folder), "--max-tokens", "2", "--temperature", "0", "--json")
    lines = f"What happens?\n/reset\n/video {path}\nAnd here?\n".encode()
    asked = run("chat", "--video", str(path), *options, stdin=lines)
    assert asked.returncode == 0, asked.stderr
    replies = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [reply["image_tokens"] for reply in replies] == [3 * TOKENS, 3 * TOKENS]
