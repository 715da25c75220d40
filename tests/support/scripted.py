"""A context that needs no model, and a model that gives the replies of a script."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest

import gemlet
import gemlet.model.requests
from gemlet import _core
from gemlet.chat import Gemma4Format
from gemlet.chat.templates import CANONICAL
from gemlet.config import shape_config
from support.replies import gemma4_tokenizer


class ScriptedSequence:
    """A context that gives the tokens of a script instead of those of a model."""

    def __init__(self, script: list[int]) -> None:
        self.script = iter(script)
        self.token_ids: list[int] = []
        self.calls: list[tuple[int, str]] = []
        self.closed = False
        self.cancelled = threading.Event()

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def extend(self, ids: Any, *, logits: str = "last") -> None:
        assert not self.closed
        assert ids.dtype == np.int32
        self.calls.append((len(ids), logits))
        self.token_ids += ids.tolist()

    def sample(self, sampler: object) -> int:
        return next(self.script)

    def cancel(self) -> None:
        assert not self.closed
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True


class ScriptedModel(gemlet.Model):
    """A Gemma 4 with given replies, after :func:`follow_scripts`. ``asked`` lists the texts that it was asked
    to continue."""

    def __init__(self, *replies: str | list[int], chat_format: Any = None) -> None:
        vocab = gemma4_tokenizer().vocab_size
        core_config = SimpleNamespace(max_context=4096, vocab_size=vocab)
        super().__init__(
            core=cast(Any, MagicMock(config=core_config, next_sequence=self.next_sequence)),
            config=shape_config("gemma4-31b"),
            tokenizer=gemma4_tokenizer(),
            chat_format=chat_format or Gemma4Format(CANONICAL, True),
            end_ids=frozenset({1}),
            source="script",
            load_seconds=0.0,
        )
        self.sequences = [
            ScriptedSequence(ids_of(reply) if isinstance(reply, str) else reply) for reply in replies
        ]
        self.started: list[ScriptedSequence] = []

    @property
    def asked(self) -> list[str]:
        decode = gemma4_tokenizer().decode
        return [decode(sequence.token_ids, skip_control=False) for sequence in self.started]

    def next_sequence(self) -> ScriptedSequence:
        self.started.append(self.sequences.pop(0))
        return self.started[-1]


def ids_of(text: str) -> list[int]:
    """The token ids of a reply of Gemma 4."""
    return gemma4_tokenizer().encode(text, add_bos=False)


def follow_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of a test, a scripted model that asks for a sequence gets one of its own."""

    def sequence(core: Any, adapter: Any) -> Any:
        scripted = getattr(core, "next_sequence", None)
        return scripted() if scripted else _core.TokenSequence(core, adapter)

    monkeypatch.setattr(gemlet.model.requests, "_core", SimpleNamespace(TokenSequence=sequence))
