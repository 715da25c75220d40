"""Tests that tracebacks of gemlet's exceptions are short: they do not show gemlet's internal functions."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import gemlet
from gemlet import GenerationConfig

MOST_FRAMES = 3  # the lambda and up to two public functions, because chat() calls stream_chat()


def wrong_calls(model: Any) -> dict[str, Callable[[], object]]:
    return {
        "option": lambda: model.generate("Hello", temperature=-1),
        "name": lambda: model.generate("Hello", max_new_tokens=4),
        "messages": lambda: model.chat([{"role": "user"}]),
        "stream": lambda: model.stream([]),
        "stream_chat": lambda: model.stream_chat(5),
        "logits": lambda: model.logits([]),
        "embed": lambda: model.embed("Hello"),
        "adapter": lambda: model.load_adapter("/no/such/folder"),
        "config": lambda: GenerationConfig(top_p=2),
        "replace": lambda: GenerationConfig().replace(top_p=2),
    }


@pytest.mark.parametrize("which", wrong_calls(None))
def test_a_wrong_call_has_a_short_traceback(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {}
    with gemlet.load(threads=1) as model:
        for how in ("", "full"):
            monkeypatch.setenv("GEMLET_TRACEBACK", how)
            with pytest.raises(gemlet.GemletError) as caught:
                wrong_calls(model)[which]()
            frames = traceback.extract_tb(caught.value.__traceback__)
            lengths[how] = len(frames[[frame.name == "<lambda>" for frame in frames].index(True) :])
    assert lengths[""] <= MOST_FRAMES
    assert which == "name" or lengths["full"] > lengths[""]


def test_the_error_that_the_caller_is_handling_keeps_its_traceback() -> None:
    def handler() -> None:
        try:
            raise KeyError("own")
        except KeyError:
            GenerationConfig(top_p=2)

    with pytest.raises(gemlet.GemletError) as caught:
        handler()
    own = caught.value.__context__
    assert isinstance(own, KeyError)
    assert own.__traceback__ is not None


def test_other_errors_keep_their_tracebacks(tmp_path: Path) -> None:
    class Odd(list[Any]):
        def __iter__(self) -> Any:
            raise RuntimeError("a fault of the caller's")

    with gemlet.load(threads=1) as model, pytest.raises(RuntimeError) as caught:
        model.chat(cast(Any, Odd([{"role": "user", "content": "Hello"}])))
    assert len(traceback.extract_tb(caught.value.__traceback__)) > MOST_FRAMES + 1
