"""Tests of sound over HTTP with OpenAI's client: in chats, transcriptions and translations."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.audio import wav, write_with_vocabulary
from support.extras import optional
from support.replies import gemma4_tokenizer
from support.servers import RunningServer, serving
from support.videos import clip

pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve"), pytest.mark.extra("audio")]
openai = optional("openai")
SOUND = wav((0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32))
TOKENS = 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server import openai_audio
    from gemlet.server.settings import ModelSpec

    folder = write_with_vocabulary(tmp_path_factory.mktemp("sounds"))
    with pytest.MonkeyPatch.context() as patch, serving(specs=[ModelSpec("hears", str(folder))]) as running:
        patch.setattr(openai_audio, "_MOST_TOKENS", 6)
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def question(part: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is said?"}]}]


def test_a_sound_in_a_chat(client: Any) -> None:
    data = base64.b64encode(SOUND).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    reply = client.chat.completions.create(model="hears", messages=question(part), max_tokens=4, n=2)
    details = reply.usage.prompt_tokens_details
    assert details.audio_tokens == TOKENS
    assert details.text_tokens == reply.usage.prompt_tokens - TOKENS


@pytest.mark.extra("video")
def test_the_sound_of_a_video(client: Any) -> None:
    """If a client sends a video file as a sound, the model gets the sound track of the video. This model has
    no image encoder, so the server refuses a video that is sent as ``video_url``."""
    data = base64.b64encode(clip(2, sound=True)).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "mp4"}}
    reply = client.chat.completions.create(model="hears", messages=question(part), max_tokens=1)
    assert reply.usage.prompt_tokens_details.audio_tokens in (TOKENS, TOKENS + 1, TOKENS + 2)
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    with pytest.raises(openai.BadRequestError, match="video_url"):
        client.chat.completions.create(
            model="hears",
            messages=question(video),
            max_tokens=1,
            extra_body={"load_audio_from_video": True},
        )


def test_a_thought_ends_at_its_budget(client: Any) -> None:
    """The server ends a thought at its budget, in whole and in streamed replies. After the result of a tool,
    the prompt begins a thought, and a model with random weights does not end the thought by itself."""
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    conversation: Any = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "3"},
    ]
    end = gemma4_tokenizer().token_id("<channel|>")
    options: Any = {"model": "hears", "messages": conversation, "max_tokens": 12, "seed": 1}
    own: Any = {"ignore_eos": True, "return_token_ids": True}
    own["chat_template_kwargs"] = {"enable_thinking": True}
    free = client.chat.completions.create(**options, extra_body=own)
    assert free.usage.completion_tokens_details.reasoning_tokens > 8
    for budget in (0, 1, 5):
        body = {**own, "thinking_token_budget": budget}
        whole = client.chat.completions.create(**options, extra_body=body).choices[0]
        assert whole.token_ids[: budget + 1] == [*free.choices[0].token_ids[:budget], end]
        assert len(whole.token_ids) == 12
        chunks = list(client.chat.completions.create(**options, extra_body=body, stream=True))
        assert [i for part in chunks for i in part.choices[0].token_ids] == whole.token_ids
        thought = "".join(getattr(part.choices[0].delta, "reasoning", None) or "" for part in chunks)
        assert thought == (getattr(whole.message, "reasoning", None) or "")


def test_a_sound_in_responses(client: Any) -> None:
    sound = {"data": base64.b64encode(SOUND).decode(), "format": "wav"}
    parts: Any = [{"type": "input_audio", "input_audio": sound}, {"type": "input_text", "text": "What?"}]
    asked: Any = [{"role": "user", "content": parts}]
    reply = client.responses.create(model="hears", input=asked, max_output_tokens=4)
    assert reply.usage.input_tokens > TOKENS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client says that translations are deprecated
@pytest.mark.parametrize("what", ["transcriptions", "translations"])
def test_a_file_is_transcribed_and_translated(client: Any, what: str) -> None:
    endpoint = getattr(client.audio, what)
    options = {"language": "en"} if what == "transcriptions" else {}
    found = endpoint.create(model="hears", file=("a.wav", io.BytesIO(SOUND)), prompt="names", **options)
    assert isinstance(found.text, str)
    if what == "transcriptions":  # a model with random weights does not end its reply
        assert found.truncated
        assert found.usage.output_tokens == 6
    plain = endpoint.create(model="hears", file=("a.wav", io.BytesIO(SOUND)), response_format="text")
    assert isinstance(plain, str)


def test_a_long_recording_is_split_into_pieces(client: Any) -> None:
    rate, seconds = 1000, 61
    found = client.audio.transcriptions.create(
        model="hears", file=("a.wav", io.BytesIO(wav(np.zeros(rate * seconds, np.float32), rate)))
    )
    # The server splits the recording into three pieces of 20.3 seconds.
    assert found.usage.input_token_details.audio_tokens == 3 * 509


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": b"no sound"}, "cannot be decoded"),
        ({"file": b""}, "empty"),
        ({"response_format": "srt"}, "response_format"),
        ({"temperature": 9}, "temperature"),
        ({"timestamp_granularities": ["word"], "response_format": "json"}, "timestamp_granularities"),
    ],
)
def test_wrong_requests_for_transcriptions_are_refused(
    client: Any, options: dict[str, Any], message: str
) -> None:
    data = options.pop("file", SOUND)
    with pytest.raises(openai.BadRequestError, match=message):
        client.audio.transcriptions.create(model="hears", file=("a.wav", io.BytesIO(data)), **options)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "audio": "/etc/passwd"},
        {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
        {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/a.wav"}},
        {"type": "input_audio", "input_audio": "/etc/passwd"},
    ],
)
def test_clients_cannot_read_files_of_the_server(server: RunningServer, part: dict[str, Any]) -> None:
    answer = server.post("/v1/chat/completions", {"messages": question(part), "max_tokens": 1})
    assert answer.status == 400
    assert re.search("data URL|input_audio", answer.error["message"])


def test_a_model_without_an_audio_encoder_refuses_sounds() -> None:
    with serving() as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.BadRequestError, match="cannot hear sound"):
            client.audio.transcriptions.create(model="demo", file=("a.wav", io.BytesIO(SOUND)))
        assert running.running() == 0
