"""Memory: given back on close, and its lack an error instead of the end of the process.

Everything here runs in a process of its own. Address space is what is limited: the one limit that every
system enforces at once. Thread stacks count.
"""

from __future__ import annotations

import pytest
from support.core_models import builder_of, layer_config, model_config
from support.processes import run_python

pytestmark = pytest.mark.tier

PRELUDE = """
    import threading
    import gemlet
    import numpy as np
    import pytest
    from support.core_models import builder_of, int32, layer_config, model_config, random_core
    from gemlet import _core
    from support.processes import limit_memory, resident
"""


# --- Given back ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_close_gives_the_memory_back() -> None:
    run_python(f"""{PRELUDE}
    from gemlet.loading.random_model import random_model
    gemlet.load(threads=1).close()
    before = resident()
    model = random_model("gemma3-270m", weights="q4", threads=1)
    size = sum(model.memory()[part] for part in ("weights", "embedding")) / 2**20
    assert size > 200
    loaded = resident()
    assert before + 0.98 * size < loaded < before + size + 40, (before, loaded, size)
    model.generate([2, 10, 20], max_tokens=2, temperature=0)
    model.close()
    assert resident() < before + 10, (before, loaded, resident())
    """)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_packing_needed_goes_when_the_model_is_there(threads: int) -> None:
    """Sixteen rows of 2^18 columns as float32 are 16 MB, on each thread."""
    run_python(f"""{PRELUDE}
    random_core(threads={threads}, weights="q4").close()
    config = model_config(layer_config(intermediate_size=2**18), hidden_size=64)
    before = resident()
    core = random_core(config, threads={threads}, weights="q4")
    size = core.memory()["weights"] / 2**20
    assert size > 20
    assert resident() < before + size + 6, (before, resident(), size)
    """)


def test_opening_and_closing_does_not_grow() -> None:
    run_python(f"""{PRELUDE}
    def use():
        with gemlet.load(threads=2) as model:
            model.generate("The", max_tokens=3)
    # malloc keeps places for the memory of threads, and tokenizers are built in threads of their own.
    for _ in range(40):
        use()
    before = resident()
    for _ in range(60):
        use()
    assert resident() < before + 5, (before, resident())
    """)


def test_a_closed_sequence_gives_its_cache_back_though_the_model_stays() -> None:
    run_python(f"""{PRELUDE}
    core = random_core(max_context=20_000)
    def use():
        sequence = _core.TokenSequence(core)
        sequence.extend(np.full(4000, 5, np.int32), logits="all")
        assert sequence.cache_bytes > 1_000_000
        sequence.close()
        assert sequence.cache_bytes == 0
        return sequence
    kept = [use() for _ in range(2)]
    before = resident()
    kept += [use() for _ in range(8)]
    assert resident() < before + 4, (before, resident())
    """)


def test_a_sliding_window_bounds_the_cache() -> None:
    run_python(f"""{PRELUDE}
    core = random_core(config=model_config(layer_config(), max_context=20_000))
    sequence = _core.TokenSequence(core)
    sequence.extend(np.full(600, 5, np.int32))
    size = sequence.cache_bytes
    sequence.extend(np.full(15_000, 5, np.int32))
    assert 0 < sequence.cache_bytes <= size, (size, sequence.cache_bytes)
    """)


def test_the_cache_is_shown_as_large_as_it_is_in_memory() -> None:
    """Blocks of a sliding window are allocated as slabs, which stay until their last block is dropped."""
    run_python(f"""{PRELUDE}
    layer = layer_config(num_kv_heads=4, head_dim=512)  # a block of 1 MB, four to a slab
    core = random_core(config=model_config(layer, max_context=20_000))
    def filled():
        sequence = _core.TokenSequence(core)
        sequence.extend(np.full(256, 5, np.int32))  # of its four blocks only the last is still seen
        return sequence
    filled().close()
    before = resident()
    sequences = [filled() for _ in range(10)]
    size = sum(sequence.cache_bytes for sequence in sequences)
    assert size == core.memory()["kv_cache"] == 10 * 4 * 2**20
    grown = (resident() - before) * 2**20
    assert 0.95 * size < grown < 1.05 * size + 2**21, (grown, size)
    for sequence in sequences:
        sequence.close()
    assert core.memory()["kv_cache"] == 0
    """)


@pytest.mark.parametrize("weights", ["f32", "bf16", "q8", "q4"])
def test_a_context_takes_what_was_planned(weights: str) -> None:
    """Cache, scratch and logits of a full context, whose short last chunk splits attention over the keys. The
    wide MLP makes the inputs count that some tiers prepare as bf16 or int8."""
    run_python(f"""{PRELUDE}
    layer = layer_config(num_heads=16, num_kv_heads=8, head_dim=256, sliding_window=0,
                         intermediate_size=2**13)
    builder = builder_of(model_config(layer, layer, max_context=1024), "{weights}", kv_cache="bf16")
    plan = builder.plan()
    builder.add_random(seed=1)
    core = builder.finish()
    before = resident()
    sequence = _core.TokenSequence(core)
    for count in (1008, 16):
        sequence.extend(np.full(count, 5, np.int32))
    grown = (resident() - before) * 2**20
    planned = plan["kv_cache"] + plan["activations"]
    assert planned - 2e6 < grown < planned + 1e6, (grown, plan)
    """)


def test_the_plan_has_what_each_thread_expands_of_bf12() -> None:
    layer = layer_config(intermediate_size=2**15)
    builder = builder_of(model_config(layer), "bf12", kv_cache="bf16")
    plans = [builder.plan(threads=threads)["activations"] for threads in (1, 2, 9)]
    panel = 2**15 * 32  # of down_proj, 16 outputs as bf16
    assert plans[1] - plans[0] == panel
    assert plans[2] - plans[0] == 8 * panel
    assert builder.plan() == builder.plan(threads=1)  # the builder's own


# --- Not there ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        "model_config(vocab_size=2**22, hidden_size=2**16)",  # 1 TiB in one tensor
        "model_config(*[layer_config(num_heads=1024, head_dim=1024)] * 16, hidden_size=2**16)",
        "model_config(*[layer_config(intermediate_size=2**20)] * 16, hidden_size=2**16)",
        # Each tensor would fit, of 2 to 16 GiB; together they are 7 to 49 TiB.
        "model_config(*[layer_config(intermediate_size=2**20)] * 1024, hidden_size=2**12)",
    ],
)
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_a_model_larger_than_the_machine_is_refused_before_it_fills(config: str, weights: str) -> None:
    """Without a limit set: allocating may be promised by the system long before the memory is there."""
    run_python(
        f"""{PRELUDE}
    config = {config}
    try:
        builder = builder_of(config, weights="{weights}")
    except gemlet.MemoryLimitError as error:
        print(error)
    else:
        raise SystemExit("was promised the memory; filling it would end the process")
    assert resident() < 500
    """,
        timeout=20,
    )


def test_weights_that_do_not_fit() -> None:
    run_python(f"""{PRELUDE}
    limit_memory(64)
    with pytest.raises(gemlet.MemoryLimitError, match="bytes"):
        builder_of(model_config(vocab_size=2**18, hidden_size=512))
    with gemlet.load(weights="q4", threads=1) as model:  # and a small one still loads
        model.generate("The", max_tokens=2)
    """)


@pytest.mark.parametrize("logits", ["last", "all"])
def test_a_context_that_does_not_fit(logits: str) -> None:
    """What was there before the failed extend stays, and the sequence goes on with less."""
    run_python(f"""{PRELUDE}
    config = model_config(layer_config(num_kv_heads=4, head_dim=512, sliding_window=0), max_context=2**22,
                          vocab_size=4096)
    core = random_core(config)
    sequence = _core.TokenSequence(core)
    sequence.extend(int32(1, 2, 3))
    sequence.extend(np.full(512, 5, np.int32), logits="none")
    limit_memory(48)
    with pytest.raises(gemlet.MemoryLimitError):
        sequence.extend(np.full(20_000, 5, np.int32), logits="{logits}")
    length = sequence.length
    assert (length - 515) % 512 == 0 and length < 20_000
    sequence.close()
    fresh = _core.TokenSequence(core)
    fresh.extend(int32(1, 2, 3))
    assert np.isfinite(fresh.logits()).all()
    """)


def test_more_threads_than_fit() -> None:
    """Each needs a stack. An error, and nothing left behind that could not be tried again with fewer."""
    run_python(f"""{PRELUDE}
    random_core().close()
    limit_memory(512)
    with pytest.raises(gemlet.MemoryLimitError, match="thread"):
        random_core(threads=1024)
    with gemlet.load(threads=2) as model:
        model.generate("The", max_tokens=2)
    """)


@pytest.mark.parametrize("threads", [1, 2])
def test_packing_without_room_for_its_scratch(threads: int) -> None:
    """Sixteen rows of a very wide matrix as float32, on each thread."""
    run_python(f"""{PRELUDE}
    config = model_config(layer_config(intermediate_size=2**20), hidden_size=64)
    core = random_core(threads={threads})
    builder = builder_of(config, weights="q4", threads={threads})
    limit_memory(24)
    with pytest.raises(gemlet.MemoryLimitError):
        builder.add_random(seed=1)
    core.close()
    """)


@pytest.mark.parametrize("threads", [1, 2])
def test_activations_that_do_not_fit(threads: int) -> None:
    run_python(f"""{PRELUDE}
    config = model_config(layer_config(intermediate_size=2**16), hidden_size=64, max_context=2048)
    core = random_core(config, threads={threads}, weights="q4")
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
    """)


def test_the_tokenizer_is_in_the_plan() -> None:
    """Of a stored vocabulary it is built in a thread, which the plan waits for."""
    run_python(f"""{PRELUDE}
    from types import SimpleNamespace
    from gemlet.loading.builder import settle
    calls = []
    settle(SimpleNamespace(tokenizer=SimpleNamespace(encode=calls.append)))
    settle(SimpleNamespace(tokenizer=None))
    assert calls == ["x"]
    """)


def test_freed_memory_goes_back_to_the_system() -> None:
    run_python(f"""{PRELUDE}
    pieces = [bytearray(1000) for _ in range(50_000)]
    kept = pieces[::50]  # all over the heap, so that it cannot shrink from its end
    pieces.clear()
    before = resident()
    _core.return_free_memory()
    assert resident() < before - 30, (before, resident())
    assert kept
    """)
