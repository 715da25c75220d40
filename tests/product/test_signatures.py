"""Tests of the signatures that completion, help() and type checkers show, and of the errors for wrong names
of arguments."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.base.sampling_options import OPTIONS
from gemlet.config import shape_config
from gemlet.generation import GenerationConfig, GenerationOptions
from golden.folders import HERE
from support.public import functions

FIELDS = [field.name for field in dataclasses.fields(GenerationConfig)]
DEMO = gemlet.Tokenizer.from_file(Path(gemlet.__file__).parent / "demo")
WRITES = ("generate", "stream", "chat", "stream_chat")


def test_every_public_function_has_type_hints() -> None:
    found = dict(functions())
    assert {"gemlet.load", "gemlet.Model.generate", "gemlet.Model.__enter__"} <= found.keys()
    for name, thing in found.items():
        try:
            typing.get_type_hints(thing)
        except NameError as error:
            pytest.fail(f"{name}: {error}")


def test_all_methods_have_the_same_options() -> None:
    hints = typing.get_type_hints(GenerationOptions)
    assert sorted(hints) == sorted(FIELDS)
    assert set(OPTIONS) <= set(FIELDS)
    for name, option in OPTIONS.items():
        assert getattr(GenerationConfig(), name) == option.default
    signature = inspect.signature(GenerationConfig)
    assert list(signature.parameters) == FIELDS
    for method in WRITES:
        function = getattr(gemlet.Model, method)
        taken = inspect.signature(function).parameters
        types = typing.get_type_hints(function)
        assert list(taken)[-len(FIELDS) :] == FIELDS
        assert not {"options", "kwargs"} & (taken.keys() | types.keys())
        for name in FIELDS:
            assert taken[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert taken[name].default is None
            # Methods for several prompts also accept a list with a seed for each prompt.
            if "chat" not in method and name == "seed":
                assert types[name] == int | Sequence[int] | None
            else:
                assert types[name] == hints[name]
            assert f"\n    {name}: " in inspect.cleandoc(function.__doc__)


def test_a_class_has_its_signature_without_wrappers() -> None:
    """To show the signature of a class, Python 3.13.5 and later bind the function that the wrappers of
    ``__init__`` contain. This must work too."""
    shown: Any = inspect.unwrap(GenerationConfig.__init__, stop=lambda each: hasattr(each, "__signature__"))
    assert "self" in inspect.signature(shown).parameters
    bound = shown.__get__(GenerationConfig, type)
    assert list(inspect.signature(bound).parameters) == FIELDS
    config = object.__new__(GenerationConfig)
    shown(config, max_tokens=3)
    assert config.max_tokens == 3


@pytest.mark.parametrize("method", WRITES)
def test_every_method_checks_every_option(method: str) -> None:
    wrong: dict[str, Any] = {name: -5 for name in FIELDS}
    with gemlet.load(threads=1) as model:
        for name, value in wrong.items():
            with pytest.raises(gemlet.InvalidRequestError, match=f"^{name}: got "):
                getattr(model, method)("Hello", **{name: value})
        config = GenerationConfig(max_tokens=3, temperature=0)
        written = getattr(model, method)("Hello", config, **dict.fromkeys(FIELDS))
        if "stream" in method:
            assert len(list(written)) == 3
        else:
            assert written.completion_tokens == 3


def test_every_public_function_has_an_error_for_wrong_names() -> None:
    """Checks all functions that accept options by name, except the functions that get tokens one by one."""
    found = {
        name: thing
        for name, thing in functions()
        if inspect.isfunction(thing)
        and any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(thing).parameters.values())
        and not name.rpartition(".")[2].startswith("_")
        and not name.endswith(("Parser.finish", "to_core"))
    }
    assert {"gemlet.load", "gemlet.chat.gemma4_format", "gemlet.Tokenizer.decode"} <= found.keys()
    for name, thing in found.items():
        own = name.rpartition(".")[2]
        with pytest.raises(gemlet.InvalidRequestError, match=rf"^{own}\(\) has no argument 'surprise'; "):
            thing(surprise=1)


def call(function: Callable[..., Any], name: str) -> str:
    with pytest.raises(gemlet.InvalidRequestError) as caught:
        function(**{name: 1})
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "max_tokens"),
        ("n_predict", "max_tokens"),
        ("repeat_penalty", "repetition_penalty"),
        ("temprature", "temperature"),
        ("Top_P", "top_p"),
        ("top-k", "top_k"),
        ("stop_sequences", "stop"),
        ("do_sampel", "do_sample"),
    ],
)
def test_the_error_for_a_wrong_name_suggests_the_option(name: str, meant: str) -> None:
    with gemlet.load(threads=1) as model:
        for method in WRITES:
            found = call(lambda method=method, **wrong: getattr(model, method)("x", **wrong), name)
            assert f"{method}() has no argument {name!r}; did you mean {meant}? It has " in found
    for function in (GenerationConfig, GenerationConfig().replace):
        assert f"did you mean {meant}?" in call(function, name)


def test_errors_for_known_mistakes_name_the_way_out() -> None:
    with gemlet.load(threads=1) as model:
        with pytest.raises(
            gemlet.InvalidRequestError, match=r"stream_chat\(\) return the text piece by piece"
        ):
            model.chat("Hello", stream=True)  # type: ignore[call-arg]
        with pytest.raises(gemlet.InvalidRequestError, match="the first message, of the role system"):
            model.chat("Hello", system="Be brief.")  # type: ignore[call-arg]


def test_the_error_for_an_unknown_name_lists_all_names() -> None:
    assert "has no argument 'colour'; it has max_tokens, min_tokens" in call(GenerationConfig, "colour")
    assert len(call(GenerationConfig, "x" * 10**6)) < 500


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        (lambda: shape_config("gemma-3-1b"), "gemma3-1b"),
        (lambda: shape_config("gemma4-e2"), "gemma4-e2b"),
        (lambda: DEMO.encode("a", add_special_tokens=False), "add_bos"),  # type: ignore[call-arg]
        (lambda: DEMO.decode([1], skip_special_tokens=True), "skip_control"),  # type: ignore[call-arg]
    ],
)
def test_errors_of_other_functions_suggest_names_too(wrong: Callable[[], object], meant: str) -> None:
    with pytest.raises(gemlet.GemletError, match=f"did you mean {meant}"):
        wrong()


def test_errors_suggest_names_of_adapters_and_prompts() -> None:
    with gemlet.load(HERE / "gemma3-270m", threads=1) as model:
        model.load_adapter(HERE / "adapters" / "gemma3-plain", name="polite")
        with pytest.raises(gemlet.InvalidRequestError, match="did you mean 'polite'"):
            model.generate([2, 7], adapter="polit")
    with (
        gemlet.load(HERE / "embeddinggemma", threads=1) as model,
        pytest.raises(gemlet.InvalidRequestError, match="Did you mean 'query'"),
    ):
        model.embed([[2, 5]], prompt="qeury")
