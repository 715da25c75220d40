"""A model's own chat template, and another one that the caller gives: load(), inspect() and convert()."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import GEMMA, TemplateFormat, read_chat_template
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from support.commands import failed, run
from support.gguf_cases import model_of
from support.gguf_models import metadata, typed, write_gguf
from support.templates import CHATML, ENDLESS, GEMMA_LIKE
from support.tokenizer_files import gguf_entry, trained_entries

pytestmark = pytest.mark.extra("templates")

DEMO = Path(gemlet.__file__).with_name("demo")
QUESTION = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the demo model."""
    copy = tmp_path / "demo"
    shutil.copytree(DEMO, copy)
    return copy


def add_template(folder: Path, value: Any) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"chat_template": value}))


def test_a_model_with_a_template_of_its_own(folder: Path, tmp_path: Path) -> None:
    add_template(folder, CHATML)
    assert gemlet.inspect(folder).chat_format == "ChatML template"
    with gemlet.load(folder, threads=1) as model:
        assert isinstance(model.chat_format, TemplateFormat)
        assert model.tokenizer is not None
        prompt = "<|im_start|>user\nWho is there?<|im_end|>\n<|im_start|>assistant\n"
        reply = model.chat(QUESTION, max_tokens=8, temperature=0)
        expected = model.generate(
            model.tokenizer.encode(prompt, add_bos=False), max_tokens=8, temperature=0, stop="<|im_end|>"
        )
        assert reply.text == expected.text
        assert reply.prompt_tokens == expected.prompt_tokens
    gemlet.convert(folder, tmp_path / "packed", weights="q4")
    with gemlet.load(tmp_path / "packed", threads=1) as packed:
        assert isinstance(packed.chat_format, TemplateFormat)


def test_an_end_mark_that_is_not_a_token_ends_a_reply() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}MARK{% endif %}{% endfor %}"
    )
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    with gemlet.load(threads=1, chat_template=template) as model:
        whole = model.chat(QUESTION, **options)
    mark = next(word for word in whole.text[4:].split()[1:] if len(word) >= 3)
    with gemlet.load(threads=1, chat_template=template.replace("MARK", f" {mark}")) as model:
        reply = model.chat(QUESTION, **options)
        assert reply.text == whole.text.partition(f" {mark}")[0]
        assert reply.finish_reason == "stop"
        assert model.chat(QUESTION, stop=[str(i) for i in range(16)], **options).text == reply.text


def test_a_template_in_the_place_of_the_models_own(folder: Path, tmp_path: Path) -> None:
    add_template(folder, CHATML)
    file = tmp_path / "mine.jinja"
    file.write_text(GEMMA_LIKE)
    for given in (GEMMA_LIKE, file, str(file)):
        with gemlet.load(folder, threads=1, chat_template=given) as model:
            assert model.chat_format is GEMMA
    with gemlet.load(threads=1, chat_template=CHATML) as model:
        assert isinstance(model.chat_format, TemplateFormat)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("", InvalidRequestError, "expected the text"),
        (3, InvalidRequestError, "chat_template is 3"),
        ("missing.jinja", ModelFileError, "missing.jinja"),
        ("a\0b", InvalidRequestError, "expected the text"),
        ("{% for %}", UnsupportedError, "line 1"),
        ("{{ 1 }}", UnsupportedError, "does not read the messages"),
        (next(iter(ENDLESS.values())), UnsupportedError, "time or memory"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(given: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        gemlet.load(threads=1, chat_template=given)


def test_a_template_for_a_model_without_conversations() -> None:
    for name in ("tests/golden/embeddinggemma", "tests/golden/gemma3-270m"):
        with pytest.raises(UnsupportedError, match=r"chat_template: .*tokenizer"):
            gemlet.load(Path(__file__).parents[2] / name, chat_template=CHATML)


def test_a_broken_template_leaves_the_model_usable(folder: Path) -> None:
    add_template(folder, "{% for %}")
    with gemlet.load(folder, threads=1) as model:
        assert model.generate("The door", max_tokens=2).token_ids
        with pytest.raises(UnsupportedError, match=r"not valid Jinja.*chat_template="):
            model.chat(QUESTION)


def test_named_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": GEMMA_LIKE}, {"name": "default", "template": CHATML}]
    add_template(folder, named)
    assert gemlet.inspect(folder).chat_format == "ChatML template"
    add_template(folder, named[:1])
    assert gemlet.inspect(folder).chat_format == "gemma"
    add_template(folder, [named[0], {"name": "rag", "template": CHATML}])
    with pytest.raises(ModelFileError, match=r"tool_use, rag.*chat_template="):
        gemlet.load(folder)
    with gemlet.load(folder, threads=1, chat_template=CHATML) as model:
        assert isinstance(model.chat_format, TemplateFormat)


def test_named_templates_in_files(folder: Path) -> None:
    """transformers saves them in this folder, and the one called default in chat_template.jinja."""
    place = folder / "additional_chat_templates"
    place.mkdir()
    (place / "notes.txt").write_text("no template")
    assert read_chat_template(folder) is None
    (place / "rag.jinja").write_text("rag")
    assert read_chat_template(folder) == "rag"
    (place / "tool_use.jinja").write_text("tools")
    with pytest.raises(ModelFileError, match=r"additional_chat.*rag, tool_use.*no template called default"):
        read_chat_template(folder)
    (place / "default.jinja").write_text("default")
    assert read_chat_template(folder) == "default"
    (folder / "chat_template.jinja").write_text("first")
    assert read_chat_template(folder) == "first"


def test_a_template_saved_on_windows(folder: Path) -> None:
    """Its lines end as those of the same template from another system, so it is recognized."""
    text = "{# one #}\n{{ messages }}\n"
    (folder / "chat_template.jinja").write_bytes(text.replace("\n", "\r\n").encode())
    assert read_chat_template(folder) == text


def test_the_template_of_a_gguf_file(tmp_path: Path) -> None:
    """If a template writes no BOS, the tokenizer adds it, unless the file says that it does not."""
    config, tensors = model_of("gemma3_text")
    entries, size = trained_entries()
    rows = np.resize(tensors["token_embd.weight"], (size, config["hidden_size"]))
    without = GEMMA_LIKE.replace("{{ bos_token }}", "")
    for template, adds_bos, name in (
        (GEMMA_LIKE, True, "gemma"),
        (without, True, "gemma"),
        (without, None, "gemma"),
        (without, False, "template"),
        (CHATML, True, "ChatML template"),
    ):
        more = [gguf_entry("tokenizer.chat_template", 8, template)]
        more += [] if adds_bos is None else [gguf_entry("tokenizer.ggml.add_bos_token", 7, adds_bos)]
        path = write_gguf(
            tmp_path / "model.gguf",
            [*metadata(config), *entries, *more],
            typed(tensors | {"token_embd.weight": rows}, "F32"),
        )
        with gemlet.load(path, threads=1) as model:
            assert model.chat_format is not None
            assert model.tokenizer is not None
            assert model.chat_format.name == name
            ids = model.chat_format.encode_chat(model.tokenizer, QUESTION)
            assert ids.count(model.tokenizer.bos_id or 0) == (adds_bos is not False)


def test_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} said")
    options = ("chat", "--chat-template", str(file), "--max-tokens", "4", "--seed", "1")
    done = run(*options, stdin=b"Hello\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    file.write_text("{% for %}")
    assert "chat_template" in failed(run(*options, stdin=b"Hello\n"))
