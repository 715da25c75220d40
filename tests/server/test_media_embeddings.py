"""Tests of embeddings of images, videos and sounds over HTTP. A request cannot make the server open a file of
the server's machine."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gemlet
from support.audio import wav
from support.embedding import golden, write_with_vocabulary
from support.extras import optional
from support.servers import RunningServer, serving
from support.videos import clip

pytestmark = [pytest.mark.extra(name) for name in ("serve", "test-serve", "vision", "audio")]
GOLDEN = golden()
IMAGE, WAVE = GOLDEN["image.4.0"], GOLDEN["wave.4.0"]


def image_part() -> dict[str, Any]:
    out = io.BytesIO()
    optional("PIL.Image").fromarray(IMAGE).save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def sound_part() -> dict[str, Any]:
    data = base64.b64encode(wav(WAVE)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_with_vocabulary(tmp_path_factory.mktemp("embeds") / "model"))


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[RunningServer]:
    from gemlet.server.settings import ModelSpec

    with serving(specs=[ModelSpec("embeds", folder)]) as running:
        yield running


def ask(server: RunningServer, given: Any, **more: Any) -> Any:
    return server.post("/v1/embeddings", {"model": "embeds", "input": given, **more})


def test_an_input_may_mix_texts_and_parts(server: RunningServer, folder: str) -> None:
    text = {"type": "text", "text": "a dog"}
    mixed = ["a dog", [image_part()], [text, image_part(), sound_part()]]
    answer = ask(server, mixed, dimensions=16, prompt_name="Document")
    assert answer.status == 200, answer.json
    with gemlet.load(folder) as model:
        given = ["a dog", *mixed[1:]]
        expected = model.embed(given, "Document", 16)
        tokens = sum(map(len, model.embedding_ids(given, "Document")))
    found = np.array([one["embedding"] for one in answer.json["data"]], np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert answer.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    alone = ask(server, [text, image_part(), sound_part()], dimensions=16, prompt_name="Document")
    np.testing.assert_allclose(alone.json["data"][0]["embedding"], expected[2], atol=1e-6)
    plain = ask(server, ["a dog"], dimensions=16, prompt_name="Document")
    np.testing.assert_allclose(plain.json["data"][0]["embedding"], expected[0], atol=1e-6)


@pytest.mark.extra("video")
def test_a_video(server: RunningServer, folder: str) -> None:
    data = clip(frames=5, rate=2)
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    answer = ask(server, [{"type": "video_url", "video_url": {"url": url}}])
    assert answer.status == 200, answer.json
    with gemlet.load(folder) as model:
        expected = model.embed([[{"type": "video", "video": data}]])
    np.testing.assert_allclose(answer.json["data"][0]["embedding"], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"type": "image", "image": "/etc/passwd"}], r"input[0][0] is of type 'image'; send"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "expected a data URL"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "input[0][0]"),
        ([{"type": "input_audio", "input_audio": "/etc/passwd"}], "expected an object with data"),
        ([["a"], [{"type": "text", "text": "b"}]], "got"),
        ([{}], "input[0][0]: got {}"),
        ([[]], "expected a text"),
        ([{"type": "text", "text": ["a"]}], "input[0][0]: got"),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}], "input[0][0]"),
        (["a", [{"type": "sculpture"}]], "input[1][0] is of type 'sculpture'"),
    ],
)
def test_wrong_parts(server: RunningServer, given: Any, message: str) -> None:
    answer = ask(server, given)
    assert answer.status == 400, answer.json
    assert message in answer.json["error"]["message"]


def test_a_request_has_a_limit_of_parts(server: RunningServer) -> None:
    answer = ask(server, [[image_part()]] * 65)
    assert answer.status == 400
    assert "at most 64 images, videos and sounds" in answer.json["error"]["message"]
