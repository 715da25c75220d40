"""Tests of an int4 KV cache together with all other features. Each result must equal the result of a single
request without a prefix cache and without draft tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from support.inside import always_guess, never_guess
from support.paths import TESTS
from support.servers import serving

pytestmark = pytest.mark.tier
GOLDEN = TESTS / "golden"
ADAPTERS = GOLDEN / "adapters"
LOADED: dict[str, Any] = {"kv_cache": "int4", "threads": 1}
OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
# More tokens than the sliding window of the demo model.
LONG = "The wind blew over the hills and the old house was dark. " * 24


@pytest.fixture(scope="module")
def fresh() -> Iterator[gemlet.Model]:
    """A model without a prefix cache and without draft tokens."""
    with gemlet.load(**LOADED, prefix_cache=False) as loaded:
        never_guess(loaded)
        yield loaded


def test_sessions_and_the_cache_on_disk(fresh: gemlet.Model, tmp_path: Path) -> None:
    """The texts are longer than the sliding window, so the cache drops blocks. A model does not use blocks of
    another cache format from the disk."""
    path, folder = tmp_path / "talk", tmp_path / "cache"
    with gemlet.load(**LOADED, prefix_cache=folder) as model:
        session = model.session()
        first = session.chat(LONG, **OPTIONS)
        session.save(path)
    messages = [*session.messages, {"role": "user", "content": "And then?"}]
    expected = fresh.chat(messages, **OPTIONS)
    with gemlet.load(**LOADED) as model:
        reply = model.load_session(path).chat("And then?", **OPTIONS)
    with gemlet.load(**LOADED, prefix_cache=folder) as model:
        again = model.chat(messages, **OPTIONS)
    for found in (reply, again):
        assert found.token_ids == expected.token_ids
        assert found.cached_tokens >= first.prompt_tokens - 1
    with gemlet.load(threads=1, kv_cache="int8", prefix_cache=folder) as model:
        assert model.load_session(path).chat("And then?", **OPTIONS).cached_tokens == 0


def test_several_requests_with_draft_tokens(fresh: gemlet.Model) -> None:
    """The draft tokens come from earlier text, or from a draft model that also has an int4 cache."""
    prompts = ["The door opened", LONG]
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "seed": 3}
    expected = [fresh.generate(prompt, **options).token_ids for prompt in prompts]
    for drafter in (None, Path(gemlet.__file__).parent / "demo"):
        with gemlet.load(**LOADED, drafter=drafter) as model:
            always_guess(model)
            found = model.generate(prompts, **options)
        assert [one.token_ids for one in found] == expected
        assert found[1].decode_steps < found[1].decode_tokens
        if drafter is not None:
            assert found[1].accepted_tokens > 10


@pytest.mark.extra("serve")
def test_a_server_can_use_an_int4_cache(fresh: gemlet.Model) -> None:
    from gemlet.server.settings import ModelSpec

    expected = fresh.generate("The door opened", **OPTIONS).text
    with serving(specs=[ModelSpec("m", None, LOADED)]) as server:
        body = {"model": "m", "prompt": "The door opened", **OPTIONS}
        assert server.post("/v1/completions", body).json["choices"][0]["text"] == expected
        assert b'cache_dtype="int4"' in server.ask("GET", "/metrics").body


@pytest.mark.parametrize("name", ["gemma1-2b", "gemma3-270m", "gemma4-e2b"])
def test_requests_with_an_adapter_share_a_pass(name: str) -> None:
    """One of the families, gemma1-2b, has no norms on keys, so its int4 cache does not balance keys."""
    adapter = {"gemma3-270m": "gemma3-plain", "gemma4-e2b": "gemma4-linear"}.get(name)
    prompts = [[2, 7, 11] * 30, [2, 9]]
    with gemlet.load(GOLDEN / name, **LOADED) as model, gemlet.load(GOLDEN / name, **LOADED) as other:
        if adapter is not None:
            for one in (model, other):
                one.load_adapter(ADAPTERS / adapter, name="mine")
        chosen = None if adapter is None else "mine"
        expected = [other.generate(ids, adapter=chosen, **OPTIONS).token_ids for ids in prompts]
        for _ in range(2):  # the second round uses the prefix cache
            found = model.generate(prompts, adapter=chosen, **OPTIONS)
            assert [one.token_ids for one in found] == expected
        assert found[0].cached_tokens == 89


def test_the_memory_plan_of_an_int4_cache() -> None:
    found = {
        name: gemlet.inspect(GOLDEN / "gemma1-2b", weights="q4", kv_cache=name) for name in ("int8", "int4")
    }
    assert "KV cache int4" in str(found["int4"])
    plans = {name: one.plan.kv_cache for name, one in found.items()}
    with gemlet.load(GOLDEN / "gemma1-2b", weights="q4", **LOADED) as model:
        config = model.config
        for ids in ([2, 7, 11], [2, 9] * 40):
            model.generate(ids, max_tokens=5)
        assert 0 < model.memory()["prefix_cache"] < plans["int4"]
    # With the scale, a key of one head takes head_dim / 2 + 4 bytes as int4, and head_dim + 4 bytes as int8.
    head = config.layers[0].head_dim
    assert np.isclose(plans["int4"] / plans["int8"], (head / 2 + 4) / (head + 4), rtol=0.02)
