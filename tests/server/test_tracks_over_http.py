"""Tests of videos with sound over HTTP, with the clients of every dialect."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.audio import wav
from support.extras import optional
from support.servers import RunningServer, serving
from support.videos import clip
from support.vision import write_gemma3n_with_vocabulary

pytestmark = [pytest.mark.extra(name) for name in ("serve", "test-serve", "audio", "video")]
anthropic, ollama, openai = map(optional, ("anthropic", "ollama", "openai"))
VIDEO = clip(2, rate=4, sound=True, seconds=0.25) if optional("av") else b""
DATA = base64.b64encode(VIDEO).decode()
URL = f"data:video/mp4;base64,{DATA}"
SOUND = base64.b64encode(wav(np.zeros(4000, np.float32))).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server.settings import ModelSpec

    folder = write_gemma3n_with_vocabulary(tmp_path_factory.mktemp("gemma3n"))
    with serving(specs=[ModelSpec("m", str(folder))]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def usage(client: Any, *parts: dict[str, Any], **body: Any) -> Any:
    messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is said?"}]}]
    reply = client.chat.completions.create(model="m", messages=messages, max_tokens=1, extra_body=body)
    return reply.usage


def test_the_sound_of_a_video_is_an_option(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemlet.server import sent_media

    part: dict[str, Any] = {"type": "video_url", "video_url": {"url": URL}}

    def heard(**body: Any) -> int:
        return int(usage(client, part, **body).prompt_tokens_details.audio_tokens)

    assert heard() == heard(load_audio_from_video=False) == 0
    assert heard(load_audio_from_video=True) > 0
    with pytest.raises(openai.BadRequestError, match="load_audio_from_video"):
        heard(load_audio_from_video="yes")
    # The limit leaves room for the decoded images of the video, but not for its decoded sound.
    monkeypatch.setattr(sent_media, "MOST_DECODED", sent_media.video_bytes(VIDEO))
    assert heard() == 0
    with pytest.raises(openai.BadRequestError, match="when they are decoded"):
        heard(load_audio_from_video=True)


@pytest.fixture(scope="module")
def expected(client: Any) -> dict[str, int]:
    """The numbers of prompt tokens with OpenAI's client. The other dialects must have the same numbers."""
    video = {"type": "video_url", "video_url": {"url": URL}}
    sound = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
    return {
        "seen": usage(client, video).prompt_tokens,
        "heard": usage(client, video, load_audio_from_video=True).prompt_tokens,
        "sound": usage(client, sound).prompt_tokens,
    }


def test_videos_in_responses(client: Any, expected: dict[str, int]) -> None:
    def tokens(**more: Any) -> int:
        video = {"type": "input_video", "video_url": URL}
        asked: Any = [{"role": "user", "content": [video, {"type": "input_text", "text": "What is said?"}]}]
        reply = client.responses.create(model="m", input=asked, max_output_tokens=1, **more)
        return int(reply.usage.input_tokens)

    assert tokens() == expected["seen"]
    assert tokens(extra_body={"load_audio_from_video": True}) == expected["heard"]
    with pytest.raises(openai.BadRequestError, match="load_audio_from_video"):
        tokens(extra_body={"load_audio_from_video": 1})
    path: Any = [{"role": "user", "content": [{"type": "input_video", "video_url": "/etc/passwd"}]}]
    with pytest.raises(openai.BadRequestError, match="expected a data URL"):
        client.responses.create(model="m", input=path, max_output_tokens=1)


def test_videos_and_sounds_with_anthropics_client(server: RunningServer, expected: dict[str, int]) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:

        def tokens(kind: str, media_type: str, data: str, **body: Any) -> int:
            source = {"type": "base64", "media_type": media_type, "data": data}
            blocks = [{"type": kind, "source": source}, {"type": "text", "text": "What is said?"}]
            asked: Any = {"model": "m", "messages": [{"role": "user", "content": blocks}], "extra_body": body}
            counted = made.messages.count_tokens(**asked)
            found = made.messages.create(max_tokens=1, **asked).usage
            assert counted.input_tokens == found.input_tokens + found.cache_read_input_tokens
            return int(counted.input_tokens)

        assert tokens("video", "video/mp4", DATA) == expected["seen"]
        assert tokens("video", "video/mp4", DATA, load_audio_from_video=True) == expected["heard"]
        assert tokens("audio", "audio/wav", SOUND) == expected["sound"]
        for kind, media_type in (("video", "image/png"), ("image", "video/mp4")):
            with pytest.raises(anthropic.BadRequestError, match="media_type"):
                tokens(kind, media_type, DATA)


def test_videos_and_sounds_with_ollamas_client(server: RunningServer, expected: dict[str, int]) -> None:
    made = ollama.Client(host=server.url)
    try:

        def tokens(data: str, **options: Any) -> int:
            asked: Any = {"role": "user", "content": "What is said?", "images": [base64.b64decode(data)]}
            options["num_predict"] = 1
            found = made.chat(model="m", messages=[asked], options=options).prompt_eval_count
            written = made.generate(model="m", prompt="What is said?", images=[data], options=options)
            assert written.prompt_eval_count == found
            return int(found or 0)

        assert tokens(DATA) == expected["seen"]
        assert tokens(DATA, load_audio_from_video=True) == expected["heard"]
        assert tokens(SOUND) == expected["sound"]
        with pytest.raises(ollama.ResponseError, match="load_audio_from_video"):
            tokens(DATA, load_audio_from_video="yes")
    finally:
        made.close()
