"""A model's chat template: it is found in the folder and recognised, but never run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gemlet.chat import Gemma4Format, gemma4_format, read_chat_template
from gemlet.chat.templates import ALL_PROPERTIES, CANONICAL, INTERLEAVED, LAUNCH, TOOL_MESSAGES
from gemlet.errors import ModelFileError
from support.chat_conversations import TEMPLATES, template_text

CURRENT = "google-gemma-4-31B-it.jinja"
OLDER = "google-gemma-4-31B-it-interleaved.jinja"


def known(template: str) -> Gemma4Format:
    found = gemma4_format(template)
    assert found is not None
    return found


def test_templates_are_recognised(capfd: pytest.CaptureFixture[str]) -> None:
    for name, revision in ((CURRENT, TOOL_MESSAGES), (OLDER, INTERLEAVED)):
        text = template_text(name)
        for same in (text, text.strip(), "\n" + text):
            assert known(same) == Gemma4Format(revision, True)
        changed = known(text + "{# changed #}")
        assert changed == Gemma4Format(revision, True, is_exact=False)
        assert changed.name == f"gemma4, nearest to {revision.name}"
    assert known("{{ '<|turn>' }} {{ '<turn|>' }}") == Gemma4Format(LAUNCH, False, is_exact=False)
    assert known("<|turn> <turn|> continues_into_next").revision == CANONICAL
    assert known("<|turn> <turn|> captured_content").revision == ALL_PROPERTIES
    assert known("\ud800 <|turn> <turn|>").revision == LAUNCH
    for foreign in ("", "<start_of_turn>", "{% for m in messages %}{{ m }}{% endfor %}"):
        assert gemma4_format(foreign) is None
    assert capfd.readouterr() == ("", "")


def test_a_template_for_tools_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": {"default": "A", "rag": "B"}}))
    assert read_chat_template(tmp_path) == "A"
    assert caplog.text == ""
    config.write_text(json.dumps({"chat_template": {"default": "A", "tool_use": "B"}}))
    assert read_chat_template(tmp_path) == "A"
    assert "tokenizer_config.json: the model has a chat template 'tool_use'" in caplog.text
    caplog.clear()
    config.write_text(json.dumps({"chat_template": "A"}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("B")
    assert read_chat_template(tmp_path) == "A"
    assert "tool_use.jinja: the model has a chat template 'tool_use'" in caplog.text


def test_the_chat_template_is_found_in_every_file(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"add_bos_token": true}')
    assert read_chat_template(tmp_path) is None
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}]
    values: list[tuple[object, str | None]] = [
        (named, "A"),
        (named[:1], "B"),
        ({"default": "A", "rag": "B"}, "A"),
    ]
    values += [("C", "C"), (None, None), ([], None), ({}, None), ("", None)]
    for value, expected in values:
        config.write_text(json.dumps({"chat_template": value}))
        assert read_chat_template(tmp_path) == expected
    for wrong in (
        3,
        [["x"]],
        [3],
        [{"name": 3}],
        {"default": 3},
        [{"name": "default", "template": ["x"]}],
        "x" * 2**21,
    ):
        config.write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(ModelFileError, match=r"chat_template is .*chat_template="):
            read_chat_template(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"chat_template": "P", "image_seq_length": 256}')
    assert read_chat_template(tmp_path) == "P"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "D"}')
    assert read_chat_template(tmp_path) == "D"
    (tmp_path / "chat_template.jinja").write_bytes((TEMPLATES / CURRENT).read_bytes())
    assert read_chat_template(tmp_path) == template_text(CURRENT)


def test_templates_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    for data, word in ((b"\xff", "UTF-8"), (b"x" * 2_000_000, "larger")):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=word):
            read_chat_template(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelFileError, match="regular"):
        read_chat_template(tmp_path)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_chat_template(tmp_path)
    path.unlink()
    (tmp_path / "chat_template.json").write_text("[]")
    with pytest.raises(ModelFileError, match="object"):
        read_chat_template(tmp_path)
