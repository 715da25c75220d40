"""Videos that are heard, over HTTP."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from support.extras import optional
from support.servers import serving
from support.videos import clip
from support.vision import write_gemma3n_with_vocabulary

pytestmark = [pytest.mark.extra(name) for name in ("serve", "test-serve", "audio", "video")]
openai = optional("openai")


def test_a_video_is_heard_if_it_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemlet.server import sent_media
    from gemlet.server.settings import ModelSpec

    folder = write_gemma3n_with_vocabulary(tmp_path_factory.mktemp("gemma3n"))
    data = base64.b64encode(clip(2, rate=4, sound=True, seconds=0.25)).decode()
    part: dict[str, Any] = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is said?"}]}]
    with (
        serving(specs=[ModelSpec("m", str(folder))]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):

        def heard(**body: Any) -> int:
            reply = client.chat.completions.create(
                model="m", messages=messages, max_tokens=1, extra_body=body
            )
            return int(reply.usage.prompt_tokens_details.audio_tokens)

        assert heard() == heard(load_audio_from_video=False) == 0
        assert heard(load_audio_from_video=True) > 0
        with pytest.raises(openai.BadRequestError, match="load_audio_from_video"):
            heard(load_audio_from_video="yes")
        # What the sound takes counts too.
        seen = sent_media.video_bytes(base64.b64decode(data))
        monkeypatch.setattr(sent_media, "MOST_DECODED", seen)
        assert heard() == 0
        with pytest.raises(openai.BadRequestError, match="when they are decoded"):
            heard(load_audio_from_video=True)
