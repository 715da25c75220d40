"""Images over HTTP, with OpenAI's client; and no file of the server's machine."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.extras import optional
from support.servers import RunningServer, serving
from support.vision import write_with_vocabulary

pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
openai = optional("openai")
TOKENS = 16


def data_url(seed: int = 0) -> str:
    pillow = pytest.importorskip("PIL.Image")
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


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
        {"type": "video", "video": [["/etc/passwd"], 1]},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ],
)
def test_nothing_else_is_opened(client: Any, part: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sees", messages=question(part), max_tokens=1)
    assert "root:" not in str(caught.value)
