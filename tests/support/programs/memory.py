"""Functions that core/test_memory.py runs in separate processes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model
from support.core_models import builder_of, int32, layer_config, model_config, random_core
from support.inside import testing
from support.processes import limit_memory, resident


def close_a_model() -> None:
    gemlet.load(threads=1).close()
    before = resident()
    model = random_model("gemma3-270m", LoadOptions(weights="q4", threads=1))
    size = sum(model.memory()[part] for part in ("weights", "embedding")) / 2**20
    assert size > 200
    loaded = resident()
    assert before + 0.98 * size < loaded < before + size + 40, (before, loaded, size)
    model.generate([2, 10, 20], max_tokens=2, temperature=0)
    model.close()
    assert resident() < before + 10, (before, loaded, resident())


def pack(threads: int) -> None:
    random_core(threads=threads, weights="q4").close()
    config = model_config(layer_config(intermediate_size=2**18), hidden_size=64)
    before = resident()
    core = random_core(config, threads=threads, weights="q4")
    size = core.memory()["weights"] / 2**20
    assert size > 20
    assert resident() < before + size + 6, (before, resident(), size)


def open_and_close() -> None:
    def use() -> None:
        with gemlet.load(threads=2) as model:
            model.generate("The", max_tokens=3)
            model.generate(["The", "A"], max_tokens=3)
            list(model.stream("The", max_tokens=3))
            model.chat([{"role": "user", "content": "Hi"}], max_tokens=3)

    # Tokenizers are built in their own threads, and malloc keeps memory arenas for threads.
    for _ in range(20):
        use()
    gc.disable()  # close() must free the memory without the garbage collector
    before = resident()
    for _ in range(60):
        use()
    assert resident() < before + 5, (before, resident())


def many_steps(steps: int) -> None:
    """Generates texts with all kinds of options in one model, one after the other and together."""
    with gemlet.load(threads=1, prefix_cache_size=4_000_000) as model:

        def use(number: int) -> None:
            model.generate(f"The {number}", max_tokens=700, seed=number, ignore_eos=True)
            model.generate([f"The {i}" for i in range(4)], max_tokens=200, seed=number, ignore_eos=True)
            with model.stream(f"A {number}", max_tokens=300, seed=number) as stream:
                next(stream)  # the stream is cancelled after its first chunk
            model.generate("The", max_tokens=300, timeout=0.01)
            model.generate("The", max_tokens=20, logprobs=3, stop="e", n=2, seed=number)

        number = 0
        while model.stats()["steps"] < steps / 10:  # fills the prefix cache before the measurement
            use(number := number + 1)
        before = resident()
        while model.stats()["steps"] < steps:
            use(number := number + 1)
        assert resident() < before + 5, (before, resident())
        assert model.memory()["kv_cache"] == 0


def close_sequences() -> None:
    # Each token needs much memory: the KV cache and the logits of a sequence have at least 2 MB.
    layer = layer_config(num_heads=2, num_kv_heads=2, head_dim=512, sliding_window=0)
    core = random_core(model_config(layer, max_context=1000, vocab_size=1024))

    def use() -> _core.TokenSequence:
        sequence = _core.TokenSequence(core)
        sequence.extend(np.full(600, 5, np.int32), logits="all")
        assert testing.cache_bytes(sequence) > 1_000_000
        sequence.close()
        assert testing.cache_bytes(sequence) == 0
        return sequence

    kept = [use() for _ in range(2)]
    before = resident()
    kept += [use() for _ in range(8)]
    assert resident() < before + 4, (before, resident())


def slide_a_window() -> None:
    core = random_core(config=model_config(layer_config(), max_context=20_000))
    sequence = _core.TokenSequence(core)
    sequence.extend(np.full(600, 5, np.int32))
    size = testing.cache_bytes(sequence)
    sequence.extend(np.full(15_000, 5, np.int32))
    assert 0 < testing.cache_bytes(sequence) <= size, (size, testing.cache_bytes(sequence))


def fill_caches() -> None:
    # A block of the KV cache has 1 MB, and a slab has four blocks.
    layer = layer_config(num_kv_heads=4, head_dim=512)
    core = random_core(config=model_config(layer, max_context=20_000))

    def filled() -> _core.TokenSequence:
        sequence = _core.TokenSequence(core)
        # Only the last of the four blocks is still in the attention window.
        sequence.extend(np.full(256, 5, np.int32))
        return sequence

    filled().close()
    before = resident()
    sequences = [filled() for _ in range(10)]
    used = sum(testing.cache_bytes(sequence) for sequence in sequences)
    assert used == core.memory()["kv_cache_used"] == 10 * 2**20
    # The last forward pass used four blocks, and three of these are free now.
    size = core.memory()["kv_cache"]
    assert size == 13 * 2**20
    grown = (resident() - before) * 2**20
    assert 0.95 * size < grown < 1.05 * size + 2**21, (grown, size)
    for sequence in sequences:
        sequence.close()
    assert core.memory()["kv_cache"] == 0


def fill_a_context(weights: str, longest_span: int) -> None:
    layer = layer_config(
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        sliding_window=0,
        intermediate_size=2**13,
        bidirectional_spans=True,
    )
    config = model_config(layer, layer, max_context=544, longest_span=longest_span)
    builder = builder_of(config, weights, kv_cache="bf16")
    plan = builder.plan()
    builder.add_random(seed=1)
    core = builder.finish()
    before = resident()
    sequence = _core.TokenSequence(core)
    spans = [(3, 3 + longest_span)] if longest_span else []
    sequence.extend(np.full(528, 5, np.int32), spans=spans)
    sequence.extend(np.full(16, 5, np.int32))
    grown = (resident() - before) * 2**20
    planned = plan["kv_cache"] + plan["activations"]
    assert planned - 2e6 < grown < planned + 1e6, (grown, plan)


def build_too_large(layer: dict[str, int], layers: int, config: dict[str, int], weights: str) -> None:
    # Without this error, the system would kill the process while it fills the memory.
    with pytest.raises(gemlet.MemoryLimitError):
        builder_of(model_config(*[layer_config(**layer)] * layers, **config), weights=weights)
    assert resident() < 500


def build_beyond_a_limit() -> None:
    limit_memory(64)
    with pytest.raises(gemlet.MemoryLimitError, match="bytes"):
        builder_of(model_config(vocab_size=2**18, hidden_size=512))
    with gemlet.load(weights="q4", threads=1) as model:  # a small model can still be loaded
        model.generate("The", max_tokens=2)


def extend_beyond_a_limit(logits: str) -> None:
    layer = layer_config(num_kv_heads=4, head_dim=512, sliding_window=0)
    core = random_core(model_config(layer, max_context=2**22, vocab_size=4096))
    sequence = _core.TokenSequence(core)
    sequence.extend(int32(1, 2, 3))
    sequence.extend(np.full(512, 5, np.int32), logits="none")
    limit_memory(48)
    with pytest.raises(gemlet.MemoryLimitError):
        sequence.extend(np.full(20_000, 5, np.int32), logits=logits)
    length = sequence.length
    assert (length - 515) % 512 == 0
    assert length < 20_000
    sequence.close()
    fresh = _core.TokenSequence(core)
    fresh.extend(int32(1, 2, 3))
    assert np.isfinite(fresh.logits()).all()


def start_too_many_threads() -> None:
    random_core().close()
    limit_memory(512)
    with pytest.raises(gemlet.MemoryLimitError, match="thread"):
        random_core(threads=1024)
    with gemlet.load(threads=2) as model:
        model.generate("The", max_tokens=2)


def pack_beyond_a_limit(threads: int) -> None:
    config = model_config(layer_config(intermediate_size=2**20), hidden_size=64)
    core = random_core(threads=threads)
    builder = builder_of(config, weights="q4", threads=threads)
    limit_memory(24)
    with pytest.raises(gemlet.MemoryLimitError):
        builder.add_random(seed=1)
    core.close()


def activate_beyond_a_limit(threads: int) -> None:
    config = model_config(layer_config(intermediate_size=2**16), hidden_size=64, max_context=2048)
    core = random_core(config, threads=threads, weights="q4")
    sequence = _core.TokenSequence(core)
    sequence.extend(int32(1))
    before = sequence.logits()
    limit_memory(24)
    with pytest.raises(gemlet.MemoryLimitError):
        sequence.extend(np.full(512, 5, np.int32))
    assert sequence.length == 1
    sequence.extend(int32(2, 3, 4))
    fresh = _core.TokenSequence(core)
    fresh.extend(int32(1))
    np.testing.assert_array_equal(fresh.logits(), before)


def return_free_memory() -> None:
    pieces = [bytearray(1000) for _ in range(50_000)]
    kept = pieces[::50]  # these pieces are spread over the heap, so malloc cannot shrink the heap at its end
    pieces.clear()
    before = resident()
    _core.return_free_memory()
    assert resident() < before - 30, (before, resident())
    assert kept
