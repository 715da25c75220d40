"""Tests that every public function and method raises only gemlet errors, for values of any type.

The function ``calls`` lists every public function with arguments. New functions have to be added there.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import chat, config
from golden.folders import HERE
from support.public import MODULES, functions
from support.vision import write_shieldgemma2

Call = tuple[Callable[..., object], Mapping[str, Any]]  # a function, and arguments with which it works


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("on purpose")


class UnprintableInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("on purpose")


USER = {"role": "user", "content": "Hi"}
NUMBERS = (True, 0, 3, -1, 10**100, 10**5000, UnprintableInt(7), 1.5, float("nan"), 1j, np.float32(1))
TEXTS = ("", "\ud800", "\udcff", "a\0b", "x" * 100_000, b"x", bytearray(b"x"), memoryview(b"x"))
LISTS = ([], [None], [[]], [10**100], [{}], {}, {1: 2}, {"a": None}, {"": "a"}, {1}, ("x", 3), range(3))
OTHERS = (None, np.zeros((2, 2)), np.array(3), np.array(["a"]), object(), Unprintable(), ..., iter([1]))
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, *LISTS, *OTHERS, [{"role": 3}], [USER | {"content": [3]}])
MODULE_NAMES = {part for module in MODULES for part in module.split(".")}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}<end_of_turn>{% endfor %}"


def double(x: int) -> int:
    return 2 * x


@dataclass(frozen=True)
class Loaded:
    model: gemlet.Model
    embedder: gemlet.Model
    judge: gemlet.Model
    folder: Path

    @property
    def tokenizer(self) -> gemlet.Tokenizer:
        assert self.model.tokenizer is not None
        return self.model.tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = tmp_path_factory.mktemp("wrong")
    of_images = write_shieldgemma2(tmp_path_factory.mktemp("judge"))
    with (
        gemlet.load(threads=1) as model,
        gemlet.load(HERE / "embeddinggemma", threads=1) as embedder,
        gemlet.load(of_images, threads=1) as judge,
    ):
        yield Loaded(model, embedder, judge, folder)


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        return asyncio.run(function(**arguments))

    return with_parameters_of(function, call)


def anew(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """A function that calls ``make`` for each call, and passes the arguments to the result."""

    def call(**arguments: Any) -> Any:
        return make()(**arguments)

    return with_parameters_of(make(), call)


def with_parameters_of(function: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call


def calls(on: Loaded) -> dict[str, Call]:
    """For each public name, the function to call and arguments with which it works."""
    model, tokenizer, parser = on.model, on.tokenizer, chat.ReplyParser({"<a>": "turn_end"})
    prompt, messages = {"prompt": [2, 3], "max_tokens": 1}, {"messages": [USER], "max_tokens": 1}
    no_folder = {"folder": on.folder / "none"}
    found: dict[str, Call] = {
        "gemlet.load": (gemlet.load, {"threads": 1}),
        "gemlet.inspect": (gemlet.inspect, {}),
        "gemlet.convert": (gemlet.convert, {"source": None, "destination": on.folder / "none" / "a"}),
        "gemlet.download": (gemlet.download, {"name": "a/b"}),
        "gemlet.GenerationConfig": (gemlet.GenerationConfig, {}),
        "gemlet.Model.generate": (model.generate, prompt),
        "gemlet.Model.stream": (model.stream, prompt),
        "gemlet.Model.chat": (model.chat, messages),
        "gemlet.Model.stream_chat": (model.stream_chat, messages),
        "gemlet.Model.agenerate": (awaited(model.agenerate), prompt),
        "gemlet.Model.achat": (awaited(model.achat), messages),
        "gemlet.Model.astream": (model.astream, prompt),
        "gemlet.Model.astream_chat": (model.astream_chat, messages),
        "gemlet.TextStream.cancel": (anew(lambda: model.stream("A", max_tokens=1).cancel), {"index": 0}),
        "gemlet.AsyncTextStream.cancel": (
            anew(lambda: model.astream("A", max_tokens=1).cancel),
            {"index": 0},
        ),
        "gemlet.Model.session": (model.session, {}),
        "gemlet.Model.load_session": (model.load_session, {"path": on.folder / "none"}),
        "gemlet.Model.explain_prefix": (model.explain_prefix, {"prompt": [2, 3]}),
        "gemlet.Session.generate": (anew(lambda: model.session().generate), prompt),
        "gemlet.Session.stream": (anew(lambda: model.session().stream), prompt),
        "gemlet.Session.chat": (anew(lambda: model.session().chat), {"message": "Hi", "max_tokens": 1}),
        "gemlet.Session.stream_chat": (anew(lambda: model.session().stream_chat), {"message": "Hi"}),
        "gemlet.Model.close": (gemlet.load(threads=1).close, {}),
        "gemlet.Model.score": (model.score, {"text": "a b"}),
        "gemlet.Model.aembed": (awaited(on.embedder.aembed), {"texts": [[2, 3]]}),
        "gemlet.Model.count_tokens": (model.count_tokens, {"messages": "Hello"}),
        "gemlet.Model.choose": (model.choose, {"prompt": "a", "choices": ["b"]}),
        "gemlet.Model.log_likelihoods": (model.log_likelihoods, {"prompt": "a", "choices": ["b"]}),
        "gemlet.Model.judge_image": (on.judge.judge_image, {"image": np.zeros((9, 9, 3), np.uint8)}),
        "gemlet.Model.embed": (on.embedder.embed, {"texts": [[2, 3]]}),
        "gemlet.Model.embedding_ids": (on.embedder.embedding_ids, {"texts": [[2, 3]]}),
        "gemlet.Model.logits": (model.logits, {"ids": [2]}),
        "gemlet.Model.load_adapter": (model.load_adapter, {"path": on.folder / "none"}),
        "gemlet.Model.unload_adapter": (model.unload_adapter, {"name": "none"}),
        "gemlet.Tokenizer.from_file": (gemlet.Tokenizer.from_file, {"path": on.folder / "none"}),
        "gemlet.Tokenizer.encode": (tokenizer.encode, {"text": "a"}),
        "gemlet.Tokenizer.decode": (tokenizer.decode, {"ids": [3]}),
        "gemlet.Tokenizer.first_ids": (tokenizer.first_ids, {"text": "a", "count": 1}),
        "gemlet.Tokenizer.most_characters": (tokenizer.most_characters, {"tokens": 3}),
        "gemlet.Tokenizer.check_length": (
            tokenizer.check_length,
            {"characters": 10**8, "tokens": 3, "name": "a"},
        ),
        "gemlet.Tokenizer.split": (tokenizer.split, {"text": "a"}),
        "gemlet.Tokenizer.stream_decoder": (tokenizer.stream_decoder, {}),
        "gemlet.Tokenizer.id_to_piece": (tokenizer.id_to_piece, {"token_id": 3}),
        "gemlet.Tokenizer.piece_to_id": (tokenizer.piece_to_id, {"piece": "a"}),
        "gemlet.Tokenizer.token_id": (tokenizer.token_id, {"name": "bos"}),
        "gemlet.tokenizer.StreamDecoder.push": (tokenizer.stream_decoder().push, {"token_id": 3}),
        "gemlet.tokenizer.StreamDecoder.next_bytes": (
            tokenizer.stream_decoder().next_bytes,
            {"token_id": 3},
        ),
        "gemlet.tokenizer.StreamDecoder.next_text": (
            tokenizer.stream_decoder().next_text,
            {"token_id": 3},
        ),
        "gemlet.tokenizer.StreamDecoder.bytes_of": (tokenizer.stream_decoder().bytes_of, {"token_id": 3}),
        "gemlet.chat.chat_format_for": (
            chat.chat_format_for,
            {"model_type": "gemma3_text", "tokenizer": tokenizer},
        ),
        "gemlet.chat.collect": (chat.collect, {"events": []}),
        "gemlet.chat.gemma4_format": (chat.gemma4_format, {}),
        "gemlet.chat.read_chat_template": (chat.read_chat_template, no_folder),
        "gemlet.chat.ReplyParser": (chat.ReplyParser, {"markers": {}}),
        "gemlet.chat.ReplyParser.marker": (parser.marker, {"name": "<a>"}),
        "gemlet.chat.ReplyParser.text": (parser.text, {"text": "a"}),
        "gemlet.chat.ReplyParser.finish": (parser.finish, {}),
        "gemlet.chat.TextReplyParser": (chat.TextReplyParser, {}),
        "gemlet.chat.TextReplyParser.push": (chat.TextReplyParser().push, {"text": "a"}),
        "gemlet.chat.TextReplyParser.finish": (chat.TextReplyParser().finish, {}),
        "gemlet.chat.TokenReplyParser": (chat.TokenReplyParser, {"tokenizer": tokenizer, "markers": {}}),
        "gemlet.chat.TokenReplyParser.push": (chat.TokenReplyParser(tokenizer, {}).push, {"ids": [3]}),
        "gemlet.chat.TokenReplyParser.finish": (chat.TokenReplyParser(tokenizer, {}).finish, {}),
        "gemlet.chat.Segments.marker": (chat.Segments().marker, {"name": "a"}),
        "gemlet.chat.Segments.text": (chat.Segments().text, {"text": "a"}),
        "gemlet.config.embedding_scale": (
            config.embedding_scale,
            {"hidden_size": 8, "weights": "f32"},
        ),
        "gemlet.config.parse_config": (config.parse_config, {"raw": {}, "where": "a"}),
        "gemlet.config.read_config": (config.read_config, no_folder),
        "gemlet.config.read_end_ids": (config.read_end_ids, no_folder | {"config": model.config}),
        "gemlet.config.read_sampling": (config.read_sampling, no_folder),
        "gemlet.config.shape_config": (config.shape_config, {"name": "gemma3-1b"}),
        "gemlet.config.TextConfig.to_core": (model.config.to_core, {"weights": "f32"}),
    }
    session = model.session()
    found |= {
        "gemlet.Session.save": (session.save, {"path": on.folder / "none" / "a"}),
        "gemlet.Model.session": (model.session, {}),
    }
    found["gemlet.chat.GemmaFormat"] = type(chat.GEMMA), {}
    template = chat.chat_format_for("gemma3_text", tokenizer, template=TEMPLATE)
    judge = chat.SHIELD_GEMMA.with_values(guideline="No.")
    translate = chat.TranslateGemmaFormat({"de": "German"}).with_values(
        source_lang_code="de", target_lang_code="de"
    )
    found |= {
        "gemlet.chat.describe_function": (chat.describe_function, {"function": double}),
        "gemlet.chat.GemmaFormat": (chat.GemmaFormat, {}),
        "gemlet.chat.ShieldGemmaFormat.with_values": (judge.with_values, {"guideline": "No."}),
        "gemlet.chat.ShieldGemma2Format.with_values": (
            chat.SHIELD_GEMMA_2.with_values,
            {"guideline": "No."},
        ),
        "gemlet.chat.TranslateGemmaFormat.with_values": (translate.with_values, {"source_lang_code": "de"}),
    }
    formats = (
        chat.GEMMA,
        chat.gemma4_format(),
        chat.FUNCTION_GEMMA,
        template,
        judge,
        translate,
        chat.SHIELD_GEMMA_2,
    )
    for chat_format in formats:
        kind = f"gemlet.chat.{type(chat_format).__name__}"
        assert chat_format is not None
        found |= {
            f"{kind}.render": (chat_format.render, {"messages": [USER]}),
            f"{kind}.encode_chat": (
                chat_format.encode_chat,
                {"tokenizer": tokenizer, "messages": [USER]},
            ),
            f"{kind}.end_ids": (chat_format.end_ids, {"tokenizer": tokenizer}),
            f"{kind}.reply_parser": (
                chat_format.reply_parser,
                {"tokenizer": tokenizer, "prompt_ids": [2]},
            ),
            f"{kind}.call_grammar": (chat_format.call_grammar, {"tools": [{"name": "f"}]}),
            f"{kind}.segments": (
                chat_format.segments,
                {"messages": [USER], "tools": None, "thinking": False, "add_generation_prompt": True},
            ),
        }
    return found


# These are not called: classes that only gemlet makes objects of, functions that accept any values, and
# functions that write a file and raise the errors of open().
NOT_CALLED = {
    *(
        "Model",
        "Session",
        "Session.load",
        "Session.save",
        "TextStream",
        "AsyncTextStream",
        "Tokenizer",
        "StreamDecoder",
        "Sampler",
    ),
    *("GenerationConfig.replace", "TemplateFormat.with_values"),
}


def test_every_public_function_with_arguments_is_called(loaded: Loaded) -> None:
    known = calls(loaded)
    called = {name.removeprefix("gemlet.").removeprefix("chat.").removeprefix("config.") for name in known}
    called |= {name.rpartition("tokenizer.")[2] for name in called} | NOT_CALLED
    for name, thing in functions():
        own = ".".join(part for part in name.split(".") if part not in MODULE_NAMES)
        if own.rpartition(".")[2].startswith("_") or own.startswith("ChatFormat."):
            continue
        if inspect.isclass(thing) and (is_dataclass(thing) or "__init__" not in vars(thing)):
            continue  # a class for results, or a class without its own constructor
        if not (inspect.isclass(thing) and issubclass(thing, BaseException)) and takes_something(thing):
            assert own in called, name


def takes_something(thing: Any) -> bool:
    return any(name not in ("self", "cls") for name in inspect.signature(thing).parameters)


@pytest.mark.slow
def test_wrong_types(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(loaded.folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(loaded.folder)
    wrong = []
    for name, (function, works) in calls(loaded).items():
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
        for parameter, value in itertools.product(parameters, VALUES):
            error = error_of(function, {**works, parameter: value})
            if error is not None and not isinstance(error, gemlet.GemletError):
                wrong.append((name, parameter, type(value).__name__, repr(error)[:90]))
            elif error is not None:
                assert len(str(error)) < 4100
                str(error).encode()
    assert wrong == []


def error_of(function: Callable[..., object], arguments: Mapping[str, Any]) -> BaseException | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = function(**arguments)
    except Exception as error:
        return error
    if isinstance(made, gemlet.Model | gemlet.TextStream):
        made.close()
    return None


@pytest.mark.slow
def test_none_means_not_given(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(loaded.folder))
    for name, (function, works) in calls(loaded).items():
        without = error_of(function, works)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                if name == "gemlet.convert":
                    works = {**works, "destination": loaded.folder / parameter.name / "none"}
                    without = None
                found = error_of(function, {**works, parameter.name: None})
                assert repr(found) == repr(without), (name, parameter.name)
