"""Images in prompts and conversations: the tokens that stand for them are those of the official processor."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.media.preparing import ImageView
from support.extras import optional
from support.guides import example
from support.vision import write_with_vocabulary

pillow = optional("PIL.Image")
needs_pillow = pytest.mark.extra("vision")

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8)
TOKENS = 16
BLOCK = "\n\n<start_of_image>" + "<image_soft_token>" * TOKENS + "<end_of_image>\n\n"
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_with_vocabulary(tmp_path_factory.mktemp("images"))
    with gemlet.load(folder, weights="f32", threads=2) as loaded:
        yield loaded


def ids_of(model: gemlet.Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, add_bos=False)


def png(image: Any) -> bytes:
    out = io.BytesIO()
    pillow.fromarray(image).save(out, "PNG")
    return out.getvalue()


def prompt(*texts: str) -> str:
    return f"<bos><start_of_turn>user\n{''.join(texts)}<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize(
    "form",
    [
        "array",
        *(
            pytest.param(form, marks=needs_pillow)
            for form in ("bytes", "path", "pillow", "image_url", "plain URL")
        ),
    ],
)
def test_a_message_with_an_image(model: gemlet.Model, form: str, tmp_path: Path) -> None:
    value: Any = IMAGE
    if form != "array":
        data = png(IMAGE)
        (tmp_path / "image.png").write_bytes(data)
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        value = {"bytes": data, "path": tmp_path / "image.png", "pillow": pillow.fromarray(IMAGE)}.get(
            form, url
        )
    part = {"type": "image", "image": value}
    if form == "image_url":
        part = {"type": "image_url", "image_url": {"url": value}}
    if form == "plain URL":
        part = {"type": "image_url", "image_url": value}
    content = [{"type": "text", "text": "what is it?"}, part, {"type": "text", "text": "say it"}]
    reply = model.chat([{"role": "user", "content": content}], **OPTIONS)
    ids = ids_of(model, prompt("what is it?", BLOCK, "say it"))
    assert reply.prompt_tokens == len(ids)
    assert reply.image_tokens == TOKENS
    expected = model.generate(ids, images=[IMAGE], **OPTIONS)
    assert reply.token_ids == expected.token_ids
    assert expected.image_tokens == TOKENS
    assert model.count_tokens([{"role": "user", "content": content}]) == len(ids)


@needs_pillow
def test_the_example_of_the_guide(
    model: gemlet.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(png(IMAGE))
    exec(example("images"), {"model": model})
    assert capsys.readouterr().out.endswith(f" {TOKENS}\n")


def test_an_image_that_is_seen_in_parts(model: gemlet.Model) -> None:
    wide = np.concatenate([IMAGE] * 2, axis=1)
    how = {"min_crop_size": 20}
    message = {
        "role": "user",
        "content": [{"type": "image", "image": wide}, {"type": "text", "text": "say it"}],
    }
    reply = model.chat([message], pan_and_scan=how, **OPTIONS)
    original = "Here is the original image " + BLOCK
    crops = " and here are some crops to help you see better " + BLOCK + " " + BLOCK + " " + BLOCK
    ids = ids_of(model, prompt(original, crops, "say it"))
    assert (reply.prompt_tokens, reply.image_tokens) == (len(ids), 4 * TOKENS)
    expected = model.generate(ids, images=[wide], pan_and_scan=how, **OPTIONS)
    assert reply.token_ids == expected.token_ids


def test_a_text_can_have_placeholders(model: gemlet.Model) -> None:
    found = model.generate("see <start_of_image> and <start_of_image>", images=[IMAGE, OTHER], **OPTIONS)
    ids = ids_of(model, f"<bos>see {BLOCK} and {BLOCK}")
    expected = model.generate(ids, images=[IMAGE, OTHER], **OPTIONS)
    assert (found.prompt_tokens, found.image_tokens) == (len(ids), 2 * TOKENS)
    assert found.token_ids == expected.token_ids
    with pytest.raises(gemlet.InvalidRequestError, match="<start_of_image> 1 times, but there are 2 images"):
        model.generate("<start_of_image>", images=[IMAGE, OTHER], max_tokens=1)


def test_several_texts_with_images(model: gemlet.Model) -> None:
    texts = ["see <start_of_image>", "the door", "<start_of_image> or <start_of_image>"]
    images = [[IMAGE], [], [OTHER, IMAGE]]
    together = model.generate(texts, images=images, **OPTIONS)
    alone = [model.generate(text, images=own, **OPTIONS) for text, own in zip(texts, images, strict=True)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.image_tokens for one in together] == [TOKENS, 0, 2 * TOKENS]
    with pytest.raises(gemlet.InvalidRequestError, match="for each of 3 prompts"):
        model.generate(texts, images=[IMAGE], max_tokens=1)


def test_the_prefix_cache_tells_images_apart(model: gemlet.Model) -> None:
    def ask(image: Any) -> gemlet.Generation:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "the old man said " * 20}]
        return model.chat([{"role": "user", "content": content}], **OPTIONS)

    first, other, again = ask(IMAGE), ask(OTHER), ask(IMAGE)
    assert again.cached_tokens > TOKENS
    assert other.cached_tokens < TOKENS
    assert again.token_ids == first.token_ids


def test_image_markers_in_a_users_text_are_not_placeholders(model: gemlet.Model) -> None:
    text = {"type": "text", "text": "<start_of_image><image_soft_token>"}
    image = {"type": "image", "image": IMAGE}
    assert model.chat([{"role": "user", "content": [text]}], max_tokens=1).image_tokens == 0
    assert model.chat([{"role": "user", "content": [text, image]}], max_tokens=1).image_tokens == TOKENS


def test_a_later_turn_sees_the_image_again(model: gemlet.Model) -> None:
    messages: list[Any] = [{"role": "user", "content": [{"type": "image", "image": IMAGE}]}]
    first = model.chat(messages, **OPTIONS)
    messages += [{"role": "assistant", "content": "the door"}, {"role": "user", "content": "and then?"}]
    second = model.chat(messages, **OPTIONS)
    assert second.image_tokens == TOKENS
    assert second.prompt_tokens > first.prompt_tokens


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, r"messages\[0\].content\[0\] has no image"),
        ({"type": "image", "image": 7}, r"messages\[0\].content\[0\]: got 7, expected a path"),
        pytest.param(
            {"type": "image", "image": b"GIF"},
            "not an image, or is damaged",
            marks=needs_pillow,
        ),
        ({"type": "image_url", "image_url": {"url": "https://localhost/a.png"}}, "expected a data URL"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "expected a data URL"),
    ],
)
def test_wrong_images_are_refused(model: gemlet.Model, part: dict[str, Any], message: str) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        model.chat([{"role": "user", "content": [part]}], max_tokens=1)


def test_a_model_that_does_not_see_takes_text_only() -> None:
    with (
        gemlet.load(threads=1) as model,
        pytest.raises(gemlet.InvalidRequestError, match="of type image, which this model does not take"),
    ):
        model.chat([{"role": "user", "content": [{"type": "image", "image": IMAGE}]}])


@needs_pillow
def test_a_session_with_images(model: gemlet.Model, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(IMAGE))
    session = model.session()
    first = session.chat([{"role": "user", "content": [{"type": "image", "image": str(path)}]}], **OPTIONS)
    again = session.chat("and then?", **OPTIONS)
    assert first.image_tokens == again.image_tokens == TOKENS
    session.save(tmp_path / "talk.session")
    loaded = model.load_session(tmp_path / "talk.session")
    assert loaded.chat("what?", **OPTIONS).token_ids == session.chat("what?", **OPTIONS).token_ids
    session.chat([{"role": "user", "content": [{"type": "image", "image": IMAGE}]}], **OPTIONS)
    with pytest.raises(gemlet.InvalidRequestError, match="as an object"):
        session.save(tmp_path / "talk.session")


def test_the_tower_runs_once_for_all_texts_of_a_prompt(
    model: gemlet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is also true if the images are too large to be kept for other prompts."""
    runs, pixels = 0, ImageView.pixels

    def counted(view: ImageView) -> Any:
        nonlocal runs
        runs += 1
        return pixels(view)

    monkeypatch.setattr(ImageView, "pixels", counted)
    monkeypatch.setattr("gemlet.model.media.KEPT_BYTES", 0)
    images = np.random.default_rng(2).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    text = "<start_of_image> and <start_of_image>"
    found = model.generate(text, images=[images[0], images[1]], n=3, seed=1, max_tokens=3)
    assert len(found) == 3
    assert runs == 2
    content = [{"type": "image", "image": image} for image in images[2:]]
    replies = model.chat([{"role": "user", "content": content}], best_of=3, n=2, seed=1, max_tokens=3)
    assert len(replies) == 2
    assert runs == 4
