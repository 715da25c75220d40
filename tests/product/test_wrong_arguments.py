"""Tests that each public function raises an error that names the argument if it gets a wrong value.

The error is a gemlet error, is short, and can be printed.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import FUNCTION_GEMMA, GEMMA, ChatFormat, chat_format_for, gemma4_format
from gemlet.config import parse_config
from golden.folders import HERE

ADAPTER = HERE / "adapters" / "gemma3-plain"
USER = {"role": "user", "content": "Hi"}


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("on purpose")


class UnprintableInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("on purpose")


CHAT = ([{"role": 3}], [USER | {"content": [3]}], [USER | {"content": "\ud800"}], [{"role": "user"}])
TOOLS = ([{"type": "function"}], [{"type": "function", "function": {"name": "\ud800", "parameters": 3}}])
NUMBERS = (True, 3, -1, 10**100, 10**5000, UnprintableInt(7), 1.5, float("nan"), 1j, np.float32(1))
TEXTS = ("", "\ud800", "\udcff", "a\0b", "x" * 100_000, b"x", bytearray(b"x"), memoryview(b"x"))
LISTS = ([], [None], [[]], [10**100], [{}], {}, {1: 2}, {"a": None}, {1}, ("x", 3), range(3))
OTHERS = (None, np.zeros((2, 2)), np.array(3), np.array(["a"]), object(), Unprintable(), ...)
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, *LISTS, *OTHERS, *CHAT, *TOOLS)


def refuse(names: str, call: Callable[[Any], object]) -> None:
    """Calls ``call`` with each of ``VALUES``. If it raises an error, the message must contain one of the
    words in ``names``."""
    for value in VALUES:
        error = error_of(call, value)
        if error is not None:
            message = str(error)
            assert isinstance(error, gemlet.GemletError), repr(error)
            if type(error) is gemlet.InvalidRequestError and ": got " in message:
                assert any(name in message for name in names.split()), message
            assert len(message) < 4100
            message.encode()


def error_of(call: Callable[[Any], object], value: object) -> Exception | None:
    try:
        made = call(value)
    except (gemlet.GemletError, TypeError, ValueError) as error:
        return error
    if isinstance(made, gemlet.Model | gemlet.TextStream):
        made.close()
    return None


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embedder() -> Iterator[gemlet.Model]:
    with gemlet.load(HERE / "embeddinggemma", threads=1) as loaded:
        yield loaded


def options_of(function: Callable[..., object], *others: str) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name not in others]


@pytest.mark.parametrize("name", options_of(gemlet.load))
def test_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refuse(f"{name} takes", lambda value: gemlet.load(**{"source": None, "threads": 1, name: value}))


@pytest.mark.parametrize("name", options_of(gemlet.inspect))
def test_inspect(name: str) -> None:
    refuse(name, lambda value: gemlet.inspect(**{"source": None, name: value}))


@pytest.mark.parametrize("name", options_of(gemlet.convert))
def test_convert(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = map(str, itertools.count())
    refuse(
        f"{name} takes",
        lambda value: gemlet.convert(**{"source": None, "destination": next(folders), name: value}),
    )


@pytest.mark.parametrize("name", [field.name for field in fields(gemlet.GenerationConfig)])
def test_options_of_generation(model: gemlet.Model, name: str) -> None:
    refuse(name, lambda value: gemlet.GenerationConfig(**{name: value}))
    refuse(name, lambda value: model.stream([2, 3], **{name: value}))


def test_requests(model: gemlet.Model) -> None:
    refuse("prompt", lambda value: model.stream(value, max_tokens=1))
    refuse("config", lambda value: model.stream([2], value))
    refuse("adapter", lambda value: model.stream([2], adapter=value))
    refuse("ids", lambda value: model.logits(value))
    for name in options_of(model.stream_chat):
        refuse(name, lambda value, name=name: model.stream_chat(**{"messages": [USER], name: value}))


def test_adapters(model: gemlet.Model) -> None:
    refuse("path name", lambda value: model.load_adapter(value))
    refuse("name", lambda value: model.load_adapter(ADAPTER, value))
    refuse("name adapter", lambda value: model.unload_adapter(value))
    with pytest.raises(gemlet.InvalidRequestError, match="name: got None"):
        model.unload_adapter(None)  # type: ignore[arg-type]


def test_embed(embedder: gemlet.Model) -> None:
    for name in options_of(embedder.embed):
        refuse(name, lambda value, name=name: embedder.embed(**{"texts": [[2, 3]], name: value}))


def test_tokenizers(model: gemlet.Model) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    refuse("path", gemlet.Tokenizer.from_file)
    refuse("text", tokenizer.encode)
    refuse("ids id", tokenizer.decode)
    refuse("id", lambda value: tokenizer.decode([value]))
    refuse("id", tokenizer.id_to_piece)
    refuse("id", lambda value: tokenizer.stream_decoder().push(value))
    refuse("piece", tokenizer.piece_to_id)
    refuse("name", tokenizer.token_id)
    refuse("count", lambda value: tokenizer.first_ids("Hi", value))


@pytest.mark.parametrize("chat_format", [GEMMA, gemma4_format(), FUNCTION_GEMMA], ids=lambda f: f.name)
def test_chat_formats(chat_format: ChatFormat) -> None:
    refuse_in_chats(chat_format)


@pytest.mark.extra("templates")
def test_chats_of_a_template(model: gemlet.Model) -> None:
    assert model.tokenizer is not None
    template = "{% for m in messages %}<start_of_turn>{{ m.role }} {{ m.content }}{% endfor %}{{ tools }}"
    found = chat_format_for("gemma3_text", model.tokenizer, template=template)
    assert found is not None
    assert found.name == "template"
    refuse_in_chats(found)


def refuse_in_chats(chat_format: ChatFormat) -> None:
    for name in options_of(chat_format.render):
        refuse(name, lambda value, name=name: chat_format.render(**{"messages": [USER], name: value}))
    keys = ("role", "content", "tool_calls", "name", "reasoning")
    for role, key in itertools.product(("user", "assistant", "tool"), keys):
        message = {"role": role, "content": "Hi"}
        refuse("messages", lambda value, m=message, k=key: chat_format.render([USER, m | {k: value}, USER]))


@pytest.mark.parametrize("key", ["name", "description", "parameters", "type", "properties", "enum"])
def test_tools(key: str) -> None:
    def tool(value: object) -> Mapping[str, object]:
        schema = {"type": "object", "properties": {"p": {"type": "string", key: value}}}
        return {"type": "function", "function": {"name": "f", "parameters": schema, key: value}}

    refuse("tools", lambda value: gemma4_format().render([USER], tools=[tool(value)]))


def test_choice_of_a_format_and_configs(model: gemlet.Model) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    refuse("model_type", lambda value: chat_format_for(value, tokenizer))
    refuse("tokenizer", lambda value: chat_format_for("gemma3_text", value))
    refuse("template", lambda value: chat_format_for("gemma3_text", tokenizer, template=value))
    refuse("where", lambda value: parse_config(value, where="where"))


@pytest.mark.parametrize("name", ["plain", "m\udcff\udce9 odel"])
def test_long_messages_are_cut_and_printable(name: str) -> None:
    error = gemlet.ModelFileError(f"{name}: {'x' * 100_000} the end")
    assert str(error).startswith(name.encode("utf-8", "backslashreplace").decode())
    assert str(error).endswith("xxx the end")
    assert len(str(error)) < 4100


@pytest.mark.parametrize(
    "name",
    ["generate", "chat", "stream_chat", "embed", "score", "choose", "log_likelihoods", "explain_prefix"],
)
def test_the_error_for_a_missing_argument_names_the_method(name: str) -> None:
    with gemlet.load(threads=1) as model, pytest.raises(TypeError, match=rf"^Model\.{name}\(\) missing"):
        getattr(model, name)()


def test_an_empty_list_of_prompts_is_refused() -> None:
    with gemlet.load(threads=1) as model:
        for call in (model.generate, model.stream):
            with pytest.raises(
                gemlet.InvalidRequestError, match=r"expected at least one token id or prompt$"
            ):
                call([])
