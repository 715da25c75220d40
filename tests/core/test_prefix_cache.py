"""The engine's prefix cache: tokens that a text shares with earlier ones are not computed again. The result
stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.engine_reader import Reader, alone

IDS = np.random.default_rng(4).integers(0, 96, 4000).astype(np.int32)

pytestmark = pytest.mark.tier


def core_of(window: int = 100, **changes: object) -> _core.Model:
    layers = layer_config(sliding_window=window), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=1400), exact_batches=True, **changes)


def cached(reader: Reader, ids: NDArray[np.int32], **options: int) -> int:
    """Reads a text, continues it, and returns how many of its tokens came from the cache."""
    request = reader.submit(ids, **options)
    reader.read(request)
    return request.cached_tokens


def joined(*parts: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate(parts)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 600])
def test_the_same_text_again_computes_one_token(length: int) -> None:
    """The last token is needed for the logits. With a window of 100, old blocks are dropped on the way."""
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=1 << 24))
    assert cached(reader, IDS[:length]) == 0
    assert cached(reader, IDS[:length]) == length - 1
    assert cached(reader, IDS[:length], cache_salt=7) == 0


@pytest.mark.parametrize("common", [1, 30, 63, 64, 65, 100, 500, 511, 512, 513, 699])
def test_texts_with_a_common_beginning(common: int) -> None:
    """If two texts differ within a block, a part of it is used. This may be in the middle of the first text,
    whose pass had 512 tokens and whose window is 100."""
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=1 << 24))
    other = (IDS[common : common + 50] + 1) % 96
    assert cached(reader, IDS[:700]) == 0
    assert cached(reader, joined(IDS[:common], other)) == common
    assert cached(reader, joined(IDS[:common], other)) == common + len(other) - 1
    assert cached(reader, IDS[:700]) == 699  # the first text is still in the cache


def test_a_text_that_ended_is_kept_to_its_end() -> None:
    """Only the last token of a reply is not kept, because it has not been computed."""
    core = core_of()
    reader = Reader(_core.Engine(core, prefix_cache_bytes=1 << 24))
    prompt = IDS[:40]
    ((reply, _),) = reader.read(reader.submit(prompt, max_tokens=30))
    text = joined(prompt, np.array(reply, np.int32))
    assert cached(reader, joined(text, IDS[1000:1020])) == len(text) - 1
    edited = joined(
        text[:55], IDS[2000:2030]
    )  # the text of the reply is encoded as other tokens than the written ones
    assert cached(reader, edited) == 55


@pytest.mark.parametrize("weights", ["f32", "q4"])
@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("window", [20, 300])
def test_the_tokens_are_those_without_a_cache(weights: str, kv_cache: str, window: int) -> None:
    """Random texts with few different beginnings, several at a time, so that blocks are shared in every
    way."""
    core = core_of(window, weights=weights, kv_cache=kv_cache)
    reader = Reader(_core.Engine(core, most_running=3, prefix_cache_bytes=1 << 19))
    random = np.random.default_rng(window)
    texts = [IDS[:400]]
    for i in range(12):
        old = texts[random.integers(len(texts))]
        cut = int(random.integers(0, len(old) + 1))
        texts.append(joined(old[:cut], IDS[1000 + 70 * i : 1000 + 70 * i + int(random.integers(1, 70))]))
    found = [alone(core, ids, i, 12) for i, ids in enumerate(texts)]
    for _ in range(2):
        requests = [reader.submit(ids, seed=i, max_tokens=12) for i, ids in enumerate(texts)]
        assert [ids for ids, _ in reader.read(*requests)] == found
    assert sum(request.cached_tokens for request in requests) > 500


def test_blocks_of_windows_are_dropped_first() -> None:
    """The blocks of windows that are far from the end of a long text are dropped first, and the text still
    continues from its end. If a text needs dropped blocks, it begins earlier."""
    core = core_of(100)
    per_block = 64 * (core.memory()["kv_cache_per_token"] + core.memory()["kv_cache_per_window_token"])
    engine = _core.Engine(core, prefix_cache_bytes=13 * per_block)
    reader = Reader(engine)
    # There is room for 13 of 20 blocks with windows, and for all without most of the windows.
    assert cached(reader, IDS[:1280]) == 0
    assert cached(reader, IDS[:1290]) == 1280
    assert cached(reader, joined(IDS[:640], IDS[2000:2010])) < 640
    assert engine.stats()["prefix_cache_bytes"] <= 13 * per_block


def test_memory_tells_running_texts_and_kept_ones_apart() -> None:
    core = core_of()
    engine = _core.Engine(core, prefix_cache_bytes=1 << 24)
    reader = Reader(engine)
    assert core.memory()["kv_cache"] == core.memory()["prefix_cache"] == 0
    running = reader.submit(IDS[:300], max_tokens=1000, most_unread=4)
    while not running.take()[0]:
        reader.engine.wait(reader.news, reader.news.value, 0.01)
    # While a text runs, only blocks that its windows have passed are kept.
    assert core.memory()["kv_cache"] > core.memory()["prefix_cache"]
    running.cancel()
    reader.read(running)
    memory = core.memory()
    assert memory["kv_cache"] == 0
    assert memory["prefix_cache"] >= memory["kv_cache_used"] == engine.stats()["prefix_cache_bytes"] > 0
    engine.close()
    assert core.memory()["kv_cache_used"] == core.memory()["prefix_cache"] == 0


def test_a_cache_of_zero_bytes_keeps_nothing() -> None:
    reader = Reader(_core.Engine(core_of(), prefix_cache_bytes=0))
    assert cached(reader, IDS[:300]) == cached(reader, IDS[:300]) == 0
