"""Functions that core/test_safety.py runs in separate processes."""

from __future__ import annotations

from typing import Any

import pytest

from gemlet import _core


def give_none_to_the_core() -> None:
    nothing: Any = None
    with pytest.raises(TypeError):
        _core.TokenSequence(nothing)
    with pytest.raises(TypeError):
        _core.ModelConfig(
            vocab_size=1, hidden_size=1, max_context=1, rms_norm_eps=1e-6, embedding_scale=1, layers=[nothing]
        )
    with pytest.raises(TypeError):
        _core.ModelBuilder(config=nothing, weights="f32", embedding="f32", kv_cache="f32", threads=1)
