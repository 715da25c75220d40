"""Tests of images over HTTP with the clients of every dialect. A request cannot make the server open a file
of the server's machine."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from support.extras import optional
from support.servers import RunningServer, serving
from support.videos import clip
from support.vision import write_with_vocabulary

pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve"), pytest.mark.extra("vision")]
openai, anthropic, ollama, pillow = map(optional, ("openai", "anthropic", "ollama", "PIL.Image"))
TOKENS = 16


def data_url(seed: int = 0) -> str:
    levels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    out = io.BytesIO()
    pillow.fromarray(levels).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server.settings import ModelSpec

    folder = write_with_vocabulary(tmp_path_factory.mktemp("images"))
    with serving(specs=[ModelSpec("sees", str(folder))]) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def question(*parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}]


def test_images_in_a_chat(client: Any) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url(seed), "detail": "auto"}} for seed in (0, 1)]
    reply = client.chat.completions.create(model="sees", messages=question(*parts), max_tokens=4, n=2)
    details = reply.usage.prompt_tokens_details
    assert details.image_tokens == 2 * TOKENS
    assert details.text_tokens == reply.usage.prompt_tokens - 2 * TOKENS
    plain = client.chat.completions.create(model="sees", messages=question(), max_tokens=4)
    assert plain.usage.prompt_tokens_details.image_tokens == 0


def video_part(frames: int = 3) -> dict[str, Any]:
    url = "data:video/mp4;base64," + base64.b64encode(clip(frames)).decode()
    return {"type": "video_url", "video_url": {"url": url}}


@pytest.mark.extra("video")
def test_a_video_in_a_chat(client: Any) -> None:
    reply = client.chat.completions.create(model="sees", messages=question(video_part()), max_tokens=4)
    details = reply.usage.prompt_tokens_details
    assert details.image_tokens == 3 * TOKENS
    assert details.text_tokens == reply.usage.prompt_tokens - 3 * TOKENS
    with pytest.raises(openai.BadRequestError, match="at most 4 videos"):
        client.chat.completions.create(model="sees", messages=question(*[video_part(1)] * 5), max_tokens=1)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
        {"type": "video", "video": [["/etc/passwd"], 1]},
        {"type": "video", "video": "/etc/passwd"},
        {"type": "video_url", "video_url": {"url": "/etc/passwd"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ],
)
def test_other_addresses_are_not_opened(client: Any, part: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sees", messages=question(part), max_tokens=1)
    assert "root:" not in str(caught.value)


def test_tokenize_accepts_only_text(server: RunningServer) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    answer = server.post("/tokenize", {"model": "sees", "messages": question(part)})
    assert answer.status == 400
    assert "count_tokens" in answer.error["message"]


def base64_of(seed: int = 0) -> str:
    return data_url(seed).partition(",")[2]


def test_images_with_anthropics_client(server: RunningServer, client: Any) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of()}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    messages: Any = [{"role": "user", "content": blocks}]
    expected = client.chat.completions.create(
        model="sees",
        messages=question({"type": "image_url", "image_url": {"url": data_url()}}),
        max_tokens=4,
        temperature=0,
    )
    greedy: Any = {"extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        reply = made.messages.create(model="sees", max_tokens=4, messages=messages, **greedy)
        assert "".join(b.text for b in reply.content) == expected.choices[0].message.content
        counted = made.messages.count_tokens(model="sees", messages=messages)
        usage = expected.usage
        assert counted.input_tokens == usage.prompt_tokens
        assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens == usage.prompt_tokens
        for wrong, message in (
            ({"type": "url", "url": "http://127.0.0.1/a.png"}, "data URL"),
            ({"type": "file", "file_id": "/etc/passwd"}, "source.type"),
            ({"type": "base64", "media_type": "image/svg+xml", "data": "AAAA"}, "media_type"),
            ({"type": "base64", "media_type": "image/png"}, "data"),
            ({"type": "base64", "media_type": "image/png", "data": "%"}, "base64"),
        ):
            blocks[0]["source"] = wrong
            with pytest.raises(anthropic.BadRequestError, match=message):
                made.messages.create(model="sees", max_tokens=4, messages=messages)
        asked: Any = [{"role": "user", "content": [{"type": "document", "source": source}]}]
        with pytest.raises(anthropic.BadRequestError, match="document"):
            made.messages.create(model="sees", max_tokens=4, messages=asked)


def test_images_with_ollamas_client(server: RunningServer, client: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    expected = client.chat.completions.create(
        model="sees", messages=question(part), max_tokens=4, temperature=0
    )
    options = {"temperature": 0, "num_predict": 4}
    made = ollama.Client(host=server.url)
    try:
        asked = {"role": "user", "content": "what is it?", "images": [base64.b64decode(base64_of())]}
        reply = made.chat(model="sees", messages=[asked], options=options)
        assert reply.message.content == expected.choices[0].message.content
        assert reply.prompt_eval_count == expected.usage.prompt_tokens
        written = made.generate(model="sees", prompt="what is it?", images=[base64_of()], options=options)
        assert written.response == reply.message.content
        assert "vision" in made.show("sees").capabilities
        with pytest.raises(ollama.ResponseError, match="raw"):
            made.generate(model="sees", prompt="x", raw=True, images=[base64_of()])
    finally:
        made.close()
    for images in (["/etc/passwd"], ["AAAA"], [7], "x", [base64_of()] * 65):
        for path, body in (
            ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": images}]}),
            ("/api/generate", {"prompt": "x", "images": images}),
        ):
            answer = server.post(path, {"model": "sees", **body})
            assert answer.status == 400, answer.body
            assert "root:" not in answer.error


def test_images_in_responses(client: Any) -> None:
    image = {"type": "input_image", "image_url": data_url(), "detail": "auto"}
    asked: Any = [{"role": "user", "content": [image, {"type": "input_text", "text": "what is it?"}]}]
    part = {"type": "image_url", "image_url": {"url": data_url()}}
    expected = client.chat.completions.create(
        model="sees", messages=question(part), max_tokens=4, temperature=0
    )
    reply = client.responses.create(model="sees", input=asked, max_output_tokens=4, temperature=0)
    assert reply.output_text == expected.choices[0].message.content
    assert reply.usage.input_tokens == expected.usage.prompt_tokens
    later = client.responses.create(
        model="sees", input="And now?", previous_response_id=reply.id, max_output_tokens=4
    )
    assert later.usage.input_tokens > reply.usage.input_tokens
    for wrong in (
        {"type": "input_image", "image_url": "/etc/passwd"},
        {"type": "input_image", "file_id": "a"},
        {"type": "input_file", "file_data": "AAAA"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(
                model="sees", input=[{"role": "user", "content": [wrong]}], max_output_tokens=1
            )


def test_a_model_without_an_image_encoder_refuses_images(server: RunningServer) -> None:
    with serving() as running:
        for path, body in (
            (
                "/v1/chat/completions",
                {"messages": question({"type": "image_url", "image_url": {"url": data_url()}})},
            ),
            ("/api/generate", {"model": "demo", "prompt": "x", "images": [base64_of()]}),
        ):
            answer = running.post(path, body)
            assert answer.status == 400
            assert "image" in str(answer.error)


def test_small_files_that_decode_to_large_images(server: RunningServer) -> None:
    """The server adds up the sizes in the headers of the images before it decodes any image."""
    out = io.BytesIO()
    pillow.new("L", (6000, 6000)).save(out, "PNG")
    assert len(out.getvalue()) < 100_000
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    with mock.patch.object(pillow.Image, "convert", side_effect=AssertionError):
        answer = server.post("/v1/chat/completions", {"messages": question(part, part), "max_tokens": 1})
    assert answer.status == 400
    assert "when they are decoded" in answer.error["message"]


def test_an_image_in_the_result_of_a_tool(server: RunningServer) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of()}
    tool = {"name": "look", "input_schema": {"type": "object"}}
    messages: Any = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "image", "source": source}, {"type": "text", "text": "a lamp"}],
                }
            ],
        },
    ]
    body = {"model": "sees", "messages": messages, "tools": [tool], "max_tokens": 2}
    with_image = server.post("/v1/messages", body)
    assert with_image.status == 200, with_image.body
    messages[2]["content"][0]["content"].pop(0)
    without = server.post("/v1/messages", body)

    def read(answer: Any) -> int:
        usage = answer.json["usage"]
        return int(usage["input_tokens"] + usage["cache_read_input_tokens"])

    assert read(with_image) >= read(without) + TOKENS
