"""Tests of images, videos and sounds on the web page in a real browser: choosing, dropping, pasting,
recording, removing, sending and keeping them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gemlet.chat import Content
from support.audio import wav
from support.browser import Browser, browsing
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.videos import clip
from support.vision import write_gemma3n_with_vocabulary, write_with_vocabulary

pytestmark = [pytest.mark.browser, pytest.mark.slow, *map(pytest.mark.extra, ("serve", "vision", "audio"))]
pillow = optional("PIL.Image")
READY = "#state[data-state=ready]"
DONE = ".assistant:last-child [data-action=again]"
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, { type }));
  const how = { bubbles: true, cancelable: true };
  const event = (kind, key) => Object.assign(new Event(kind, how), { [key]: given });
  const at = PASTES ? document.querySelector("#question") : document.body;
  at.dispatchEvent(PASTES ? event("paste", "clipboardData") : event("drop", "dataTransfer"));
}"""


def png(width: int = 60, height: int = 40) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    pillow.fromarray(levels).save(out, "PNG")
    return out.getvalue()


def drop(page: Any, name: str, kind: str, data: bytes, *, pastes: bool = False) -> None:
    script = DROP.replace("PASTES", str(pastes).lower())
    page.evaluate(script, [name, kind, base64.b64encode(data).decode()])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server.settings import ModelSpec

    sees = write_with_vocabulary(tmp_path_factory.mktemp("images"))
    both = write_gemma3n_with_vocabulary(tmp_path_factory.mktemp("both"))
    specs = [ModelSpec("sees", str(sees)), ModelSpec("demo"), ModelSpec("both", str(both))]
    with serving(specs=specs) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Any]:
    browser.complaints.clear()
    browser.asked.clear()
    opened = browser.open(server.url, permissions=["microphone"])
    opened.wait_for_selector(READY)
    yield opened
    opened.context.close()
    assert browser.complaints == []
    assert [url for url in browser.asked if not url.startswith(server.url)] == []


def sent_parts(page: Any) -> Any:
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click("#send")
        page.wait_for_selector(DONE)
    return asked.value.post_data_json["messages"][-1]["content"]


def test_an_image_is_dropped_sent_and_kept(page: Any) -> None:
    page.click("#open-settings")
    page.fill("[name=max_tokens]", "4")
    page.click("#close-settings")
    data = png()
    drop(page, "a.png", "image/png", data)
    page.wait_for_selector("#attachments canvas[aria-label='a.png']")
    assert page.locator("#send").is_enabled()
    page.fill("#question", "what is it?")
    image, text = sent_parts(page)
    assert image["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert text == {"type": "text", "text": "what is it?"}
    assert page.locator(".problem").count() == 0  # the model has answered
    assert page.locator("#attachments").is_hidden()
    page.wait_for_selector(".user .sent canvas")
    page.reload()
    page.wait_for_selector(".user .sent canvas")
    page.locator(".user").hover()
    page.click("[data-action=edit]")
    page.wait_for_selector("#attachments canvas")
    page.click("#attachments button")
    assert page.locator("#attachments li").count() == 0


def test_an_image_is_chosen_or_pasted(page: Any) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#attach")
    chooser.value.set_files({"name": "b.png", "mimeType": "image/png", "buffer": png()})
    page.wait_for_selector("#attachments canvas[aria-label='b.png']")
    drop(page, "c.png", "image/png", png(3000, 20), pastes=True)
    page.wait_for_selector("#attachments canvas[aria-label='c.png']")
    with saying(chunk(Content("Yes.")), chunk(reason="stop")):
        first, second = sent_parts(page)
    assert first["image_url"]["url"].startswith("data:image/png")
    drawn = base64.b64decode(second["image_url"]["url"].partition(",")[2])
    assert pillow.open(io.BytesIO(drawn)).size == (2048, 14)


@pytest.mark.extra("video")
def test_a_video_is_dropped_and_sent(page: Any) -> None:
    page.click("#open-settings")
    page.fill("[name=max_tokens]", "4")
    page.click("#close-settings")
    data = clip(3)
    drop(page, "a.mp4", "video/mp4", data)
    page.wait_for_selector("#attachments .video >> text=Video, a.mp4")
    (video,) = sent_parts(page)
    assert video["video_url"]["url"] == f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    assert page.locator(".problem").count() == 0
    page.wait_for_selector(".user .sent .video")


@pytest.mark.extra("video")
def test_the_sound_of_a_video_is_an_option(page: Any) -> None:
    page.click("#open-settings")
    page.fill("[name=max_tokens]", "1")
    assert page.locator("#hears-videos").is_hidden()
    page.evaluate("document.querySelector('#model').value = 'both'")
    page.dispatch_event("#model", "change")
    for hears in (False, True):
        page.set_checked("[name=hears_videos]", hears)
        page.click("#close-settings")
        drop(page, "a.mp4", "video/mp4", clip(2, rate=4, sound=True, seconds=0.25))
        page.wait_for_selector("#attachments .video")
        with page.expect_request("**/v1/chat/completions") as asked:
            page.click("#send")
            page.wait_for_selector(DONE)
        assert asked.value.post_data_json.get("load_audio_from_video", False) is hears
        assert page.locator(".problem").count() == 0
        page.click("#new")
        page.click("#open-settings")


def test_files_of_wrong_kinds_cannot_be_attached(page: Any) -> None:
    for name, kind, data, message in (
        ("a.png", "image/png", b"no image", "cannot be read as an image"),
        ("a.pdf", "application/pdf", b"%PDF", "takes images and videos and no sounds"),
        ("a.wav", "audio/wav", wav(np.zeros(1000, np.float32)), "takes images and videos and no sounds"),
    ):
        drop(page, name, kind, data)
        page.wait_for_selector(f"#attach-error:has-text('{message}')")
        assert page.locator("#attachments li").count() == 0
    assert page.locator("#record").is_hidden()
    page.select_option("#model", "demo")
    assert page.locator("#attach").is_hidden()
    drop(page, "a.png", "image/png", png())
    page.wait_for_selector("#attach-error:has-text('takes no images')")


def test_sounds_are_recorded_and_dropped(browser: Browser, tmp_path: Any) -> None:
    from gemlet.server.settings import ModelSpec
    from support.audio import write_with_vocabulary as write_hearing

    with serving(specs=[ModelSpec("hears", str(write_hearing(tmp_path)))]) as server:
        page = browser.open(server.url, permissions=["microphone"])
        try:
            page.wait_for_selector("#record")
            page.click("#open-settings")
            page.fill("[name=max_tokens]", "4")
            page.click("#close-settings")
            page.click("#record")
            page.wait_for_selector("#record[aria-pressed=true]")
            page.wait_for_timeout(1200)
            page.click("#record")
            page.wait_for_selector("#attachments .sound")
            drop(page, "d.wav", "audio/wav", wav(np.zeros(48_000, np.float32), 48_000))
            page.wait_for_selector("#attachments .sound >> text=Sound, 1.0 s")
            recorded, dropped = sent_parts(page)
            assert page.locator(".problem").count() == 0
            for part in (recorded, dropped):
                assert part["type"] == "input_audio"
                data = base64.b64decode(part["input_audio"]["data"])
                assert data[:4] == b"RIFF"
                assert int.from_bytes(data[24:28], "little") == 16_000
            assert len(base64.b64decode(dropped["input_audio"]["data"])) == 44 + 2 * 16_000
            drop(page, "e.wav", "audio/wav", wav(np.zeros(320_000, np.float32), 8000))
            page.wait_for_selector("#attach-error:has-text('has 40 seconds')")
        finally:
            page.context.close()
