"""Replacements for the engine and for a model that give the tokens of a script, for tests that need certain
replies."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np

import gemlet
from gemlet import _core
from gemlet.chat import Gemma4Format
from gemlet.chat.templates import CANONICAL
from gemlet.config import shape_config
from support.replies import gemma4_tokenizer


class ScriptedRequest:
    """A request that gives the tokens of a script, one in each call."""

    def __init__(
        self, script: Sequence[int], prompt: list[int], max_tokens: int, end_ids: Sequence[int]
    ) -> None:
        self.prompt = prompt
        self.given: list[int] = []
        self.cancelled = threading.Event()
        self.cached_tokens = 0
        self.logprobs: list[Any] = []
        self.read_tokens = 0
        self.times = (0.0, 0.0, 0.0, 0, 0)
        self.guesses = (0, 0)
        self.guessed = (0, [])
        self._script = iter(script)
        self._max_tokens = max_tokens
        self._end_ids = end_ids

    def take(self) -> tuple[list[int], str | None, Any]:
        none = np.empty((0, 0), np.float32)
        if self.cancelled.is_set():
            return [], "cancelled", none
        if len(self.given) >= self._max_tokens:
            return [], "length", none
        self.read_tokens = len(self.prompt)
        token_id = self.next_token()
        if token_id in self._end_ids:
            return [], "stop", none
        self.given.append(token_id)
        return [token_id], None, none

    def next_token(self) -> int:
        return next(self._script)

    def cancel(self) -> None:
        self.cancelled.set()


class ScriptedEngine:
    """An engine without a model. Each request gives the tokens of the next script."""

    kind = ScriptedRequest

    def __init__(self, *scripts: Sequence[int]) -> None:
        self.scripts = list(scripts)
        self.requests: list[ScriptedRequest] = []

    def submit(
        self, prompt: Any, *, news: _core.News, max_tokens: int, end_ids: Sequence[int], **others: Any
    ) -> ScriptedRequest:
        assert memoryview(prompt).format == "i"
        self.requests.append(self.kind(self.scripts.pop(0), prompt.tolist(), max_tokens, end_ids))
        return self.requests[-1]

    def wait(self, news: _core.News, seen: int, patience: float | None = None) -> None:
        raise AssertionError("a scripted request never has to wait")


class ScriptedModel(gemlet.Model):
    """A Gemma 4 that gives the replies of a script. ``asked`` lists the text of each request: the prompt and
    the tokens after it."""

    def __init__(self, *replies: str | list[int], chat_format: Any = None) -> None:
        vocab = gemma4_tokenizer().vocab_size
        core_config = SimpleNamespace(max_context=4096, vocab_size=vocab)
        super().__init__(
            core=cast(Any, MagicMock(config=core_config)),
            config=shape_config("gemma4-31b"),
            tokenizer=gemma4_tokenizer(),
            chat_format=chat_format or Gemma4Format(CANONICAL, True),
            end_ids=frozenset({1}),
            source="script",
            load_seconds=0.0,
        )
        self.engine = ScriptedEngine(
            *(ids_of(reply) if isinstance(reply, str) else reply for reply in replies)
        )
        self._resident.engine = lambda: self.engine  # type: ignore[method-assign, assignment, return-value]

    @property
    def asked(self) -> list[str]:
        decode = gemma4_tokenizer().decode
        return [
            decode(request.prompt + request.given[:-1], skip_control=False)
            for request in self.engine.requests
        ]


def ids_of(text: str) -> list[int]:
    """The token ids of a text in Gemma 4's vocabulary."""
    return gemma4_tokenizer().encode(text, add_bos=False)
