"""Closing frees memory. If memory is missing, the caller gets an error and the process goes on.

Every test here runs in a separate process. The tests limit the address space, because every system enforces
that limit at once. The stacks of threads count.
"""

from __future__ import annotations

import pytest

from support.core_models import builder_of, layer_config, model_config
from support.processes import run_program
from support.programs import memory


# --- Given back ---------------------------------------------------------------------------------------------
@pytest.mark.tier
@pytest.mark.slow
def test_close_gives_the_memory_back() -> None:
    run_program(memory.close_a_model)


@pytest.mark.parametrize("threads", [1, 2])
def test_packing_gives_its_scratch_back(threads: int) -> None:
    """Each thread needs sixteen rows of 2^18 columns as float32, which are 16 MB."""
    run_program(memory.pack, threads)


@pytest.mark.slow
def test_opening_and_closing_does_not_grow() -> None:
    run_program(memory.open_and_close)


@pytest.mark.tier
@pytest.mark.slow
def test_many_steps_do_not_grow() -> None:
    run_program(memory.many_steps, 100_000, timeout=600)


def test_a_closed_sequence_gives_its_cache_back_while_the_model_stays() -> None:
    run_program(memory.close_sequences)


def test_a_sliding_window_bounds_the_cache() -> None:
    run_program(memory.slide_a_window)


def test_the_reported_size_of_a_cache_is_what_it_takes() -> None:
    """Blocks of a sliding window are allocated in slabs. A slab stays until its last block is dropped."""
    run_program(memory.fill_caches)


@pytest.mark.tier
@pytest.mark.parametrize(("weights", "longest_span"), [("f32", 0), ("bf16", 500), ("q8", 500), ("q4", 0)])
def test_a_full_context_takes_the_planned_memory(weights: str, longest_span: int) -> None:
    """Cache, scratch and logits of a full context. Its last chunk is short, so attention is split over the
    keys. Some tiers prepare inputs as bf16 or int8; the MLP is wide, so that these inputs count."""
    run_program(memory.fill_a_context, weights, longest_span)


def test_the_plan_counts_the_panel_of_bf12_that_each_thread_expands() -> None:
    layer = layer_config(intermediate_size=2**15)
    builder = builder_of(model_config(layer), "bf12", kv_cache="bf16")
    plans = [builder.plan(threads=threads)["activations"] for threads in (1, 2, 9)]
    panel = 2**15 * 32  # 16 outputs of down_proj as bf16
    assert plans[1] - plans[0] == panel
    assert plans[2] - plans[0] == 8 * panel
    assert builder.plan() == builder.plan(threads=1)  # the number of threads of the builder


# --- Missing ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layer", "layers", "config"),
    [
        ({}, 1, {"vocab_size": 2**22, "hidden_size": 2**16}),  # 1 TiB in one tensor
        ({"num_heads": 1024, "head_dim": 1024}, 16, {"hidden_size": 2**16}),
        ({"intermediate_size": 2**20}, 16, {"hidden_size": 2**16}),
        # Each tensor has 2 to 16 GiB and would fit. Together they have 7 to 49 TiB.
        ({"intermediate_size": 2**20}, 1024, {"hidden_size": 2**12}),
    ],
    ids=["vocabulary", "heads", "mlp", "layers"],
)
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_a_model_larger_than_the_machine_is_refused_before_it_fills(
    layer: dict[str, int], layers: int, config: dict[str, int], weights: str
) -> None:
    """No limit is set here. A system may promise memory long before the memory exists."""
    run_program(memory.build_too_large, layer, layers, config, weights, timeout=20)


def test_weights_that_do_not_fit() -> None:
    run_program(memory.build_beyond_a_limit)


@pytest.mark.parametrize("logits", ["last", "all"])
def test_a_context_that_does_not_fit(logits: str) -> None:
    """The tokens before the failed extend stay, and the sequence can go on with fewer tokens."""
    run_program(memory.extend_beyond_a_limit, logits)


def test_more_threads_than_fit() -> None:
    """Each thread needs a stack. The caller gets an error and can try again with fewer threads."""
    run_program(memory.start_too_many_threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_packing_without_room_for_its_scratch(threads: int) -> None:
    """Each thread needs sixteen rows of a very wide matrix as float32."""
    run_program(memory.pack_beyond_a_limit, threads)


@pytest.mark.tier
@pytest.mark.parametrize("threads", [1, 2])
def test_activations_that_do_not_fit(threads: int) -> None:
    run_program(memory.activate_beyond_a_limit, threads)


def test_freed_memory_goes_back_to_the_system() -> None:
    run_program(memory.return_free_memory)
