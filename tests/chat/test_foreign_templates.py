"""Chat templates of models that are not Gemma's: the same text to the last byte."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat import (
    FUNCTION_GEMMA,
    GEMMA,
    Gemma4Format,
    TemplateFormat,
    chat_format_for,
    collect,
    gemma4_format,
)
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer import Tokenizer
from support.chat_conversations import official, template_text
from support.templates import (
    ALPACA,
    CHATML,
    FOREIGN,
    GEMMA_LIKE,
    GUARD,
    HOSTILE,
    PARTS_ONLY,
    TOOLS,
    TRANSLATE,
)
from support.tokenizer_files import gemma4_gguf, save, trained_model

pytestmark = pytest.mark.extra("templates")

TOOL = {"type": "function", "function": {"name": "now", "description": "The time."}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("chat") / "tokenizer.model"
    path.write_bytes(trained_model())
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def with_added(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary with ChatML's marks, one special and one not."""
    folder = tmp_path_factory.mktemp("added")
    (folder / "tokenizer.model").write_bytes(trained_model())
    size = Tokenizer.from_file(folder).vocab_size
    added = {
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "<|im_end|>", "special": False},
    }
    save(folder, "tokenizer_config.json", {"added_tokens_decoder": added})
    return Tokenizer.from_file(folder)


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def foreign(template: str, tokenizer: Tokenizer, model_type: str = "gemma3_text") -> TemplateFormat:
    found = chat_format_for(model_type, tokenizer, template=template)
    assert isinstance(found, TemplateFormat)
    assert found.name != "gemma"
    return found


def rendered(template: str, messages: list[Any], **more: Any) -> str:
    defaults = {"tools": None, "thinking": False, "add_generation_prompt": True}
    return official(template, {"messages": messages, **defaults, **more})


# --- which template -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type", ["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"]
)
def test_gemmas_template_in_other_words_is_gemma(tokenizer: Tokenizer, model_type: str) -> None:
    without_system = GEMMA_LIKE.replace(
        "{% set shift",
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% set shift",
    )
    for same in (GEMMA_LIKE, f"{GEMMA_LIKE}{{# a comment #}}", without_system):
        assert chat_format_for(model_type, tokenizer, template=same) is GEMMA


@pytest.mark.parametrize("template", FOREIGN.values(), ids=FOREIGN)
def test_any_other_template_is_not_gemma(tokenizer: Tokenizer, template: str) -> None:
    found = foreign(template, tokenizer)
    for messages in (
        [user()],
        [user(" Hi \n"), assistant(" Hello\t"), user("more")],
        [{"role": "system", "content": "Be brief."}, user("Grüße 世界 😀")],
    ):
        for add in (True, False):
            expected = rendered(template, messages, add_generation_prompt=add)
            assert found.render(messages, add) == expected
            assert found.render(tuple(messages), add) == expected
            ids = found.encode_chat(tokenizer, messages, add)
            assert ids == tokenizer.encode(expected, add_bos=False)


def test_a_blank_template_counts_as_missing(tokenizer: Tokenizer) -> None:
    for blank in (None, "", " \n"):
        assert chat_format_for("gemma2", tokenizer, template=blank) is GEMMA
        assert isinstance(chat_format_for("gemma4", tokenizer, template=blank), type(None))
    assert chat_format_for("llama", tokenizer, template=CHATML) is None


@pytest.mark.parametrize("template", ["<start_of_turn>", "chatml", *list(HOSTILE.values())[-6:]])
def test_a_template_that_cannot_run_is_an_error_when_it_is_used(tokenizer: Tokenizer, template: str) -> None:
    found = foreign(template, tokenizer)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"chat template.*chat_template=") as caught:
            found.render([user()])
        with pytest.raises(UnsupportedError):
            found.encode_chat(tokenizer, [user()])
        assert len(str(caught.value)) < 1500
    assert found.end_ids(tokenizer) == {tokenizer.eos_id}


def test_an_unknown_revision_of_gemma4(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(gemma4_gguf())
    tokenizer = Tokenizer.from_file(path)
    text = template_text("google-gemma-4-31B-it.jinja")
    nearest = chat_format_for("gemma4", tokenizer, template=text + "{# changed #}")
    assert nearest == gemma4_format(text + "{# changed #}")
    assert isinstance(nearest, Gemma4Format)
    changed = text.replace("{{- bos_token -}}", "{{- bos_token -}}Be kind.")
    assert changed != text
    found = foreign(changed, tokenizer, "gemma4")
    assert found.render([user()]) == rendered(changed, [user()])
    assert found.render([user()], tools=[TOOL], thinking=True) == rendered(
        changed, [user()], tools=[TOOL], thinking=True
    )
    prompt = found.encode_chat(tokenizer, [user()], tools=[TOOL], thinking=True)
    assert found.end_ids(tokenizer) == nearest.end_ids(tokenizer)
    reply = '<|channel>thought\nHm.\n<channel|>It is<|tool_call>call:now{zone:<|"|>Oslo<|"|>}<tool_call|>'
    parser = found.reply_parser(tokenizer, prompt)
    read = collect(parser.push(tokenizer.encode(reply, add_bos=False)) + parser.finish())
    assert (read.reasoning, read.content, read.tool_calls[0].arguments) == ("Hm.", "It is", {"zone": "Oslo"})
    assert not caplog.records
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "gemlet"):
        patch.setattr("gemlet.chat.template_process.can_run_templates", lambda: False)
        assert chat_format_for("gemma4", tokenizer, template=changed) == gemma4_format(changed)
    assert "does not know" in caplog.text


def test_without_jinja_only_published_templates_are_gemma(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise UnsupportedError("needs jinja2")

    monkeypatch.setattr("gemlet.chat.template_probes.run_template", absent)
    with pytest.raises(UnsupportedError, match="needs jinja2"):
        foreign(GEMMA_LIKE, tokenizer).render([user()])
    published = hashlib.sha256(GEMMA_LIKE.strip().encode()).hexdigest()
    monkeypatch.setattr("gemlet.chat.templates._PUBLISHED", {published})
    for same in (GEMMA_LIKE, f"\n{GEMMA_LIKE} \n"):
        assert chat_format_for("gemma3_text", tokenizer, template=same) is GEMMA


# --- the known ones -----------------------------------------------------------------------------------------


def test_a_guard_gets_its_guideline(tokenizer: Tokenizer) -> None:
    found = foreign(GUARD, tokenizer, "gemma2")
    with pytest.raises(InvalidRequestError, match="no guideline"):
        found.render([user()])
    asked = found.with_values(guideline="No <end_of_turn> hate")
    filled = GUARD.replace("{{ guideline }}", "No <end_of_turn> hate")
    expected = rendered(filled.replace("not guideline is defined", "false"), [user()])
    assert asked.render([user()]) == expected
    ids = asked.encode_chat(tokenizer, [user()])
    assert ids.count(tokenizer.end_of_turn_id or 0) == 1  # the template's
    assert tokenizer.decode(ids, skip_control=False) == expected
    without_check = "{{ guideline }}: {{ messages[0].content }}"
    with pytest.raises(InvalidRequestError, match=r"with_values\(guideline=...\)"):
        foreign(without_check, tokenizer).render([user()])
    for wrong in ({"messages": []}, {"bos_token": "x"}, {"guideline": object()}):
        with pytest.raises(InvalidRequestError):
            found.with_values(**wrong)


def test_a_translator_gets_its_languages(tokenizer: Tokenizer) -> None:
    found = foreign(TRANSLATE, tokenizer, "gemma3")
    part = {"type": "text", "source_lang_code": "de", "target_lang_code": "en", "text": " Guten Tag "}
    messages = [user([part]), assistant("Good day"), user([part])]
    assert found.render(messages) == rendered(TRANSLATE, messages)
    assert "From German into English" in found.render(messages)
    for wrong in (user("Guten Tag"), user([part, part])):
        with pytest.raises(InvalidRequestError, match="one part with its languages"):
            found.render([wrong])
    with pytest.raises(InvalidRequestError, match="fails on these messages"):
        found.render([user([{**part, "source_lang_code": "xx"}])])


def test_tools(tokenizer: Tokenizer) -> None:
    found = foreign(TOOLS, tokenizer)
    assert found.render([user()], tools=[TOOL]) == rendered(TOOLS, [user()], tools=[TOOL])
    for template in (CHATML, ALPACA):
        with pytest.raises(UnsupportedError, match="tools"):
            foreign(template, tokenizer).render([user()], tools=[TOOL])
        with pytest.raises(UnsupportedError, match="thinking"):
            foreign(template, tokenizer).render([user()], thinking=True)
    thinks = CHATML + "{% if enable_thinking %}<think>{% endif %}"
    assert foreign(thinks, tokenizer).render([user()], thinking=True).endswith("<think>")
    assert not foreign(thinks, tokenizer).render([user()]).endswith("<think>")


def test_calls_have_their_arguments_as_an_object(tokenizer: Tokenizer) -> None:
    text = (
        "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{{ m.content }}{% endfor %}"
    )
    found = foreign(text, tokenizer)
    for arguments in ({"a": 1}, '{"a": 1}'):
        call = {"function": {"name": "f", "arguments": arguments}}
        assert found.render([assistant(None, tool_calls=[call])]) == '{"a": 1}'
    call = {"function": {"name": "f", "arguments": "{'a': 1}"}}
    assert found.render([assistant("x", tool_calls=[call])]) == json.dumps("{'a': 1}") + "x"


def test_functiongemmas_own_template_in_other_words_runs(tmp_path: Path) -> None:
    symbols = [m for m in FUNCTION_GEMMA.markers if m not in ("<bos>", "<start_of_turn>", "<end_of_turn>")]
    names = ["<start_of_turn>", "<end_of_turn>", "\n", *symbols]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained_model(user_defined_symbols=tuple(names)))
    tokenizer = Tokenizer.from_file(path)
    template = GEMMA_LIKE + "{# <start_function_call> #}"
    found = chat_format_for("gemma3_text", tokenizer, template=template)
    assert found is not FUNCTION_GEMMA
    assert found is not None
    assert found.render([user()]) == rendered(template, [user()])


# --- messages -----------------------------------------------------------------------------------------------


def test_content_in_the_form_that_the_template_takes(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert foreign(CHATML, tokenizer).render([user(parts)]) == rendered(CHATML, [user("a b")])
    assert foreign(PARTS_ONLY, tokenizer).render([user("a b")]) == "[user]a b<end_of_turn>"
    no_trim = FOREIGN["without trim"]
    assert foreign(no_trim, tokenizer).render([user(parts)]) == rendered(no_trim, [user(parts)])
    with pytest.raises(InvalidRequestError, match="does not take"):
        foreign(CHATML, tokenizer).render([user([{"type": "image_url"}])])


def test_roles_and_reasoning(tokenizer: Tokenizer) -> None:
    found = foreign(CHATML, tokenizer)
    assert found.render([{"role": "developer", "content": "a"}]).startswith("<|im_start|>system\na")
    known = CHATML + "{# developer #}"
    assert (
        foreign(known, tokenizer)
        .render([{"role": "developer", "content": "a"}])
        .startswith("<|im_start|>developer")
    )
    shows = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.name }};{% endfor %}"
    for key in ("reasoning", "thinking", "reasoning_content"):
        text = foreign(shows, tokenizer).render([assistant("x", **{key: "why"}, name=None)])
        assert text == "why|why|;"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ("Hi", "list of messages"),
        (["Hi"], "messages[0]"),
        ([{"role": "robot", "content": ""}], "'robot'"),
        ([{"role": "<end_of_turn>", "content": ""}], "role"),
        ([user(3)], "content is 3"),
        ([user({"a": 1})], "content is"),
        ([user(b"x")], "bytes"),
        ([{"role": "user", "content": "x", 3: 4}], "key 3"),
        ([{"role": "user", "content": "x", "more": object()}], "object"),
        ([{"role": "user", "content": "x", "more": float("nan")}], "nan"),
        ([user(), assistant("x", tool_calls=[{"function": {"arguments": "[" * 90000}}])], "messages[1]"),
    ],
)
def test_messages_that_are_refused(tokenizer: Tokenizer, messages: Any, words: str) -> None:
    found = foreign(CHATML, tokenizer)
    if words == "messages[1]":  # arguments that are not a JSON object stay text
        assert found.render(messages).startswith("<|im_start|>user")
        return
    for call in (lambda: found.render(messages), lambda: found.encode_chat(tokenizer, messages)):
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert words in str(caught.value)


def test_the_last_message_can_be_continued(tokenizer: Tokenizer) -> None:
    begun = [user(), assistant("It is \n")]
    for template in (CHATML, ALPACA, TOOLS):
        expected = rendered(template, [user()]) + "It is"
        if template is ALPACA:
            assert foreign(template, tokenizer).render(begun, continue_final_message=True) == expected
            continue
        found = foreign(template, tokenizer)
        assert found.render(begun, continue_final_message=True) == expected
        ids = found.encode_chat(tokenizer, begun, continue_final_message=True)
        assert ids == tokenizer.encode(expected, add_bos=False)
    parts = [user(), assistant([{"type": "text", "text": "It is "}])]
    assert foreign(TOOLS, tokenizer).render(parts, continue_final_message=True).endswith("model\nIt is")
    for last in (user(), assistant("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])):
        with pytest.raises(InvalidRequestError, match="continue_final_message"):
            foreign(CHATML, tokenizer).render([user(), last], continue_final_message=True)
    with pytest.raises(UnsupportedError, match="continue_final_message"):
        foreign("{{ messages[0].content }}", tokenizer).render(begun, continue_final_message=True)


def test_a_special_token_that_gemlet_does_not_know(tokenizer: Tokenizer) -> None:
    found = foreign(CHATML + "{{ start_token }}", tokenizer)
    with pytest.raises(UnsupportedError, match=r"start_token.*with_values"):
        found.render([user()])
    assert found.with_values(start_token="<s>").render([user()]).endswith("<s>")


# --- tokens -------------------------------------------------------------------------------------------------

TOKENS = ["<end_of_turn>", "<start_of_turn>", "<bos>", "<|im_end|>", "<|im_start|>", "<eos>"]
pieces = st.sampled_from(
    [*TOKENS, "<", "<|", "im_end|>", "end_of_turn>", "<end_of", "_turn>", "a", " ", "\n"]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(pieces, max_size=5).map("".join), min_size=1, max_size=4))
def test_no_message_becomes_a_token(with_added: Tokenizer, texts: list[str]) -> None:
    joins = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}<|im_end|>"
    for template in (CHATML, TOOLS, joins):
        structure = with_added.control_ids | (
            {with_added.token_id("<|im_end|>")} if "<|" in template else set()
        )
        found = foreign(template, with_added)
        messages = [user([{"type": "text", "text": text} for text in texts])]
        plain = [user([{"type": "text", "text": "a"}] * len(texts))]
        got = [i for i in found.encode_chat(with_added, messages) if i in structure]
        assert got == [i for i in found.encode_chat(with_added, plain) if i in structure]
        text = with_added.decode(found.encode_chat(with_added, messages), skip_control=False)
        assert text == found.render(messages)


def test_the_tokens_that_end_a_turn_are_found(tokenizer: Tokenizer, with_added: Tokenizer) -> None:
    end = tokenizer.token_id("<end_of_turn>")
    assert foreign(TOOLS, tokenizer).end_ids(tokenizer) == {tokenizer.eos_id, end}
    assert foreign(CHATML, with_added).end_ids(with_added) == {
        with_added.eos_id,
        with_added.token_id("<|im_end|>"),
    }
    assert foreign(CHATML, with_added).stops == ()
    assert foreign(CHATML, tokenizer).stops == ("<|im_end|>",)
    assert foreign(CHATML, tokenizer).end_ids(tokenizer) == {tokenizer.eos_id}
    assert foreign(ALPACA, tokenizer).ends == ("<eos>",)
    no_eos = ALPACA.replace(" + eos_token", "")
    assert foreign(no_eos, tokenizer).stops == ("\n\n### Instruction:",)


def test_templates_for_one_task_end_turns_with_the_usual_tokens(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_id("<end_of_turn>")
    for template in (TRANSLATE, GUARD):
        assert foreign(template, tokenizer).end_ids(tokenizer) == {tokenizer.eos_id, end}


def test_a_reply_is_plain_text(tokenizer: Tokenizer) -> None:
    found = foreign(FOREIGN["with a role of its own"], tokenizer)
    prompt = found.encode_chat(tokenizer, [user()])
    parser = found.reply_parser(tokenizer, prompt)
    reply = tokenizer.encode("It is <b> <bos>four.<end_of_turn>\nuser", add_bos=False)
    assert collect(parser.push(reply) + parser.finish()).content == "It is <b> four."
