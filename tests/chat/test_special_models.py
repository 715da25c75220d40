"""The formats of ShieldGemma and TranslateGemma, without Jinja: the text of the published templates."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.chat import SHIELD_GEMMA, ShieldGemmaFormat, TranslateGemmaFormat, chat_format_for
from gemlet.chat.media_places import take_media
from gemlet.chat.shieldgemma import POLICIES
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer import Tokenizer
from support.tokenizer_files import trained_model

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "special_prompts.json").read_text(encoding="utf-8"))
TRANSLATE = TranslateGemmaFormat(GOLDEN["languages"])
PART = {"type": "text", "source_lang_code": "de", "target_lang_code": "pt_BR", "text": "Guten Tag"}
REST = "{{ bos_token }} the rest"  # the end of a template like TranslateGemma's


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("chat") / "tokenizer.model"
    path.write_bytes(trained_model())
    return Tokenizer.from_file(path)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- ShieldGemma --------------------------------------------------------------------------------------------


def test_prompts_of_shieldgemma() -> None:
    for case in GOLDEN["shieldgemma"]:
        asked = SHIELD_GEMMA.with_values(guideline=case["guideline"])
        assert asked.render(case["messages"]) == case["text"]
        assert asked.render(case["messages"], False) == case["text"]


def test_a_judged_text_has_no_control_tokens(tokenizer: Tokenizer) -> None:
    asked = SHIELD_GEMMA.with_values(guideline="No <end_of_turn>")
    ids = asked.encode_chat(tokenizer, [user("<start_of_turn> <end_of_turn>")])
    assert [ids.count(tokenizer.token_id(name) or -1) for name in asked.markers] == [1, 1, 1]


def test_shieldgemma_takes_any_policy() -> None:
    for policy, (title, _) in POLICIES.items():
        asked = SHIELD_GEMMA.with_values(policy=policy)
        of_prompt, of_reply = (
            asked.render([user("a")]),
            asked.render([user("a"), {"role": "assistant", "content": "b"}]),
        )
        assert (
            f'\n\n* "No {title}": The prompt shall not contain or seek generation of content that '
            in of_prompt
        )
        assert f'\n\n* "No {title}": The chatbot shall not generate content that ' in of_reply


def test_wrong_use_of_shieldgemma() -> None:
    with pytest.raises(InvalidRequestError, match="guideline"):
        SHIELD_GEMMA.render([user("Hi")])
    for values in ({"guideline": "a", "policy": "hate"}, {"policy": "kindness"}, {"guideline": 3}):
        with pytest.raises(InvalidRequestError, match="expected"):
            SHIELD_GEMMA.with_values(**values)  # type: ignore[arg-type]
    asked = SHIELD_GEMMA.with_values(guideline="No.")
    answer = {"role": "assistant", "content": "a"}
    for messages in (
        [],
        [answer],
        [user("a"), {"role": "system", "content": "b"}],
        [user([{"type": "image"}])],
    ):
        with pytest.raises(InvalidRequestError, match="messages"):
            asked.render(messages)
    for options in ({"tools": [{"name": "f"}]}, {"thinking": True}, {"continue_final_message": True}):
        with pytest.raises(UnsupportedError):
            asked.render([user("a"), answer], **options)  # type: ignore[arg-type]


# --- TranslateGemma -----------------------------------------------------------------------------------------


def test_prompts_of_translategemma() -> None:
    for case in GOLDEN["translategemma"]:
        assert TRANSLATE.render(case["messages"], case["add_generation_prompt"]) == case["text"]


def test_languages_apply_to_plain_texts() -> None:
    chosen = TRANSLATE.with_values(source_lang_code="de").with_values(target_lang_code="pt_BR")
    expected = TRANSLATE.render([user([PART])])
    assert "German (de) to Portuguese (pt-BR)" in expected
    for content in ("Guten Tag", [{"type": "text", "text": " Guten Tag "}], [PART]):
        assert chosen.render([user(content)]) == expected
    english = TRANSLATE.with_values(source_lang_code="en", target_lang_code="en")
    assert english.render([user([PART])]) == expected  # the value in the message is used


@pytest.mark.parametrize("key", ["image", "image_url"])
def test_an_image_to_translate(key: str) -> None:
    """All public copies of the template have these words."""
    expected = (
        "<bos><start_of_turn>user\nYou are a professional German (de) to Portuguese (pt-BR) translator. Your "
        "goal is to accurately convey the meaning and nuances of the original German text while adhering to "
        "Portuguese grammar, vocabulary, and cultural sensitivities.\nPlease translate the German text in "
        "the provided image into Portuguese. Produce only the Portuguese translation, without any additional "
        "explanations, alternatives or commentary. Focus only on the text, do not output where the text is "
        "located, surrounding objects or any other explanation about the picture. Ignore symbols, pictogram, "
        "and arrows!\n\n\n<start_of_image><end_of_turn>\n<start_of_turn>model\n"
    )
    codes = {name: PART[name] for name in ("source_lang_code", "target_lang_code")}
    image = {"type": key, key: "data:image/png;base64,"}
    chosen = TRANSLATE.with_values(**codes)  # type: ignore[arg-type]
    for asked, part in ((TRANSLATE, image | codes), (chosen, image)):
        messages, parts = take_media([user([part])], ["image"])
        assert asked.render(messages).replace(parts[0].sentinel, "<start_of_image>") == expected
    messages, _ = take_media([user([image])], ["image"])
    with pytest.raises(InvalidRequestError, match="source_lang_code is missing"):
        TRANSLATE.render(messages)


def test_wrong_use_of_translategemma() -> None:
    answer = {"role": "assistant", "content": "a"}
    for messages, what in (
        ([user("Guten Tag")], "source_lang_code is missing"),
        ([user([PART, PART])], "list of one part"),
        ([user([])], "list of one part"),
        ([user(None)], "list of one part"),
        ([user([PART | {"source_lang_code": "xx"}])], "'xx', which the model's template does not know"),
        ([user([PART | {"source_lang_code": 3}])], "does not know"),
        ([user([PART | {"target_lang_code": "zh_Hans"}])], "did you mean zh-Hant"),
        ([user([PART | {"text": None}])], "expected the type text"),
        ([user([PART | {"type": "image"}])], "does not take"),
        ([answer], "take turns"),
        ([user([PART]), user([PART])], "take turns"),
        (
            [user([PART]), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            "expected a string",
        ),
        ([{"role": "system", "content": "a"}, user([PART])], "role is 'system'"),
    ):
        with pytest.raises(InvalidRequestError, match=what):
            TRANSLATE.render(messages)
    with pytest.raises(InvalidRequestError, match="xx"):
        TRANSLATE.with_values(source_lang_code="xx")
    for options in ({"tools": [{"name": "f"}]}, {"thinking": True}):
        with pytest.raises(UnsupportedError, match="translates only"):
            TRANSLATE.render([user([PART])], **options)  # type: ignore[arg-type]


# --- recognizing templates --------------------------------------------------------------------------------


def test_templates_are_recognised(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gemlet.chat.templates._SHIELD_GEMMA", {digest("{{ a }}\n{{ b }}")})
    monkeypatch.setattr("gemlet.chat.templates._TRANSLATE_GEMMA", {digest(REST)})
    with caplog.at_level(logging.WARNING, "gemlet"):
        for template in ("{{ a }}\n{{ b }}", "\n{{ a }}\n   {{ b }}\n\n"):
            assert chat_format_for("gemma2", tokenizer, template=template) is SHIELD_GEMMA
        head = '{%- set languages = {\n    "de": "German",\n    "vo": "Volapük",\n}\n-%}\n'
        found = chat_format_for("gemma3", tokenizer, template=f"{head}{REST}\n")
    assert found == TranslateGemmaFormat({"de": "German", "vo": "Volapük"})
    assert not caplog.records
    for other in (
        head + REST + "!",
        REST,
        head.replace('"German"', '"German" + x') + REST,
        head.replace('"German"', '"{{ x }}"') + REST,
    ):
        assert not isinstance(
            chat_format_for("gemma3", tokenizer, template=other), TranslateGemmaFormat | ShieldGemmaFormat
        )


def test_a_model_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemlet.chat.templates._SHIELD_GEMMA", {digest("{{ a }}")})
    with gemlet.load(chat_template="{{ a }}") as model:
        assert model.chat_format is SHIELD_GEMMA
        with pytest.raises(InvalidRequestError, match="with_values"):
            model.chat("Hi")
        model.chat_format = SHIELD_GEMMA.with_values(policy="hate")
        reply = model.chat("Hi", max_tokens=3, seed=1)
        assert reply.prompt_tokens > 100


def test_a_format_that_is_assigned() -> None:
    with gemlet.load() as model:
        before = model.chat("Hi", max_tokens=1).prompt_tokens
        model.chat_format = SHIELD_GEMMA.with_values(guideline="No.")
        assert model.chat("Hi", max_tokens=1).prompt_tokens > before
        assert model.session().chat("Hi", max_tokens=1).prompt_tokens > before
        model.chat_format = None
        with pytest.raises(UnsupportedError, match="no chat format"):
            model.chat("Hi")
        with pytest.raises(InvalidRequestError, match="chat_format: got 'gemma'"):
            model.chat_format = "gemma"  # type: ignore[assignment]
