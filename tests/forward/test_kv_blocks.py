"""The blocks of the cache: forked, copied when one side writes, used again, dropped, counted and refused."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gemlet
from gemlet import _core
from support.core_models import int32, layer_config, model_config, random_core
from support.inside import testing

pytestmark = pytest.mark.tier

BLOCK = 64 * 2 * 2 * 16 * 4  # the bytes of a block: 64 tokens with keys and values of 2 heads of 16 floats
IDS = np.random.default_rng(5).integers(0, 96, 2000).astype(np.int32)


def full_core(**changes: object) -> _core.Model:
    """One kind of layer, without a window."""
    return random_core(model_config(layer_config(sliding_window=0), max_context=4000), **changes)


def window_core(window: int = 100) -> _core.Model:
    """One kind of layer with a window and one without."""
    layers = layer_config(sliding_window=window), layer_config(sliding_window=0)
    return random_core(model_config(*layers, max_context=4000))


def fed(core: _core.Model, *pieces: int) -> _core.TokenSequence:
    sequence = _core.TokenSequence(core)
    for piece in pieces:
        at = sequence.length
        sequence.extend(IDS[at : at + piece], logits="last")
    return sequence


def used(core: _core.Model) -> int:
    return core.memory()["kv_cache_used"]


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 200])
@pytest.mark.parametrize("forked_goes_first", [False, True])
def test_a_fork_goes_on_as_the_original_would(kv_cache: str, length: int, forked_goes_first: bool) -> None:
    """Both continue with different tokens, and each gives the same bits as a separate sequence."""
    layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
    core = random_core(model_config(*layers, max_context=400), kv_cache=kv_cache)
    original = fed(core, length)
    forked = original.fork()
    assert forked.token_ids == original.token_ids
    np.testing.assert_array_equal(forked.logits(), original.logits())
    tails = {False: IDS[300:420], True: IDS[500:620]}
    for is_fork in (forked_goes_first, not forked_goes_first):
        sequence = forked if is_fork else original
        alone = fed(core, length)
        for piece in (1, 2, 60, 57):
            at = sequence.length - length
            sequence.extend(tails[is_fork][at : at + piece])
            alone.extend(tails[is_fork][at : at + piece])
            np.testing.assert_array_equal(sequence.logits(), alone.logits())


def test_a_fork_shares_every_block_until_one_side_writes() -> None:
    core = full_core()
    original = fed(core, 100)
    before = used(core)
    forks = [original.fork() for _ in range(3)]
    assert used(core) == before
    assert all(testing.cache_bytes(fork) == 2 * BLOCK for fork in forks)  # no block in reserve
    forks[0].extend(int32(5))  # copies the last block, which is not full
    assert used(core) == before + BLOCK
    forks[0].extend(int32(6))
    assert used(core) == before + BLOCK
    original.extend(int32(7))
    forks[1].extend(int32(8))
    assert used(core) == before + 3 * BLOCK
    forks[2].extend(int32(9))  # no other sequence has the first copy any more
    assert used(core) == before + 3 * BLOCK


def test_a_fork_of_full_blocks_copies_nothing() -> None:
    core = full_core()
    original = fed(core, 128)
    before = used(core)
    fork = original.fork()
    fork.extend(int32(5))
    assert used(core) <= before + BLOCK * 2  # one for the token, one in reserve
    original.extend(int32(6))
    assert original.length == fork.length == 129


def test_a_block_lives_as_long_as_one_of_its_sequences() -> None:
    core = full_core()
    original = fed(core, 200)
    expected = fed(core, 200, 10).logits()
    forks = [original.fork() for _ in range(4)]
    original.close()
    del original, forks[:3]
    gc.collect()
    forks[0].extend(IDS[200:210])
    np.testing.assert_array_equal(forks[0].logits(), expected)
    forks[0].close()
    assert core.memory()["kv_cache"] == core.memory()["kv_cache_used"] == 0


def test_closing_sequences_in_any_order_frees_all_memory() -> None:
    core = window_core()
    random = np.random.default_rng(1)
    sequences = [fed(core, 150)]
    for _ in range(60):
        action, victim = random.integers(0, 4), int(random.integers(0, len(sequences)))
        if action == 0:
            sequences.append(sequences[victim].fork())
        elif action == 1 and len(sequences) > 1:
            sequences.pop(victim).close()
        else:
            sequence = sequences[victim]
            sequence.extend(IDS[sequence.length : sequence.length + int(random.integers(1, 90))])
        assert used(core) <= core.memory()["kv_cache"]
        assert used(core) <= sum(testing.cache_bytes(sequence) for sequence in sequences)
    for sequence in sequences:
        sequence.close()
    assert core.memory()["kv_cache"] == core.memory()["kv_cache_used"] == 0


def test_blocks_are_used_again_with_the_same_results() -> None:
    """Blocks of an ended sequence still hold its keys and values. The next sequence must not see them."""
    core = window_core()
    keeper = fed(core, 1)  # this sequence keeps the slabs alive
    expected = fed(core, 30, 70).logits()
    memory = []
    for _ in range(5):
        spoiled = _core.TokenSequence(core)
        spoiled.extend(np.full(700, 7, np.int32))
        memory.append(core.memory()["kv_cache"])
        spoiled.close()
        np.testing.assert_array_equal(fed(core, 30, 70).logits(), expected)
    assert len(set(memory[1:])) == 1
    assert keeper.length == 1


def test_a_growing_sequence_gets_neighbouring_blocks() -> None:
    """The pool allocates slabs with as many blocks as there are already."""
    core = full_core()
    sequence = _core.TokenSequence(core)
    sizes = []
    for _ in range(20):
        sequence.extend(np.ones(64, np.int32), logits="none")
        sizes.append(core.memory()["kv_cache"] // BLOCK)
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32]


def test_windows_drop_tokens_that_no_query_sees() -> None:
    core = random_core(model_config(layer_config(sliding_window=100), max_context=4000))
    sequence = fed(core, 1000)
    assert testing.cache_bytes(sequence) == 2 * BLOCK  # blocks of the tokens from 901 on
    fork = sequence.fork()
    sequence.extend(np.ones(500, np.int32), logits="none")
    for token in (5, 6):
        fork.extend(int32(token))  # its blocks are still there
    alone = fed(core, 1000)
    for token in (5, 6):
        alone.extend(int32(token))
    np.testing.assert_array_equal(fork.logits(), alone.logits())


# --- Prefixes: full blocks that are looked up and shared ---------------------------------------------------
@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_a_prefix_of_full_blocks_is_shared(blocks: int) -> None:
    core = full_core()
    original = fed(core, 200)
    before = used(core)
    prefix = testing.prefix(original, blocks)
    assert prefix.token_ids == IDS[: 64 * blocks].tolist()
    assert used(core) == before
    prefix.extend(IDS[64 * blocks : 64 * blocks + 30])
    alone = fed(core, 64 * blocks, 30) if blocks else fed(core, 30)
    np.testing.assert_array_equal(prefix.logits(), alone.logits())
    with pytest.raises(gemlet.InvalidRequestError, match="no logits"):
        testing.prefix(original, blocks).sample(_core.Sampler(**GREEDY))


GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1, "seed": 0}


def test_a_prefix_needs_what_its_window_sees() -> None:
    core = window_core(100)
    original = fed(core, 190)  # tokens 91 and later: blocks 1 and 2
    alone = fed(core, 128, 50)
    prefix = testing.prefix(fed(core, 128), 2)
    prefix.extend(IDS[128:178])
    np.testing.assert_array_equal(prefix.logits(), alone.logits())
    with pytest.raises(gemlet.InvalidRequestError, match="sliding window has dropped tokens"):
        testing.prefix(original, 2)  # its next token would see tokens 29 and later
    with pytest.raises(gemlet.InvalidRequestError, match="first 3 blocks"):
        testing.prefix(original, 3)


# --- No memory ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("blocks", range(14))
def test_a_pass_that_gets_no_memory_changes_nothing(blocks: int) -> None:
    """Memory is refused at every possible place: in one kind of layer or the other, for a copy or for
    growth."""
    core = window_core(100)
    expected = fed(core, 100, 300).logits()
    original = fed(core, 100)
    fork = original.fork()
    before = testing.cache_bytes(fork), used(core), core.memory()["kv_cache"]
    limit = before[2] + blocks * BLOCK
    testing.limit_kv_cache(core, limit)
    if blocks < 12:  # each kind of layer needs a copy and five more blocks
        with pytest.raises(gemlet.MemoryLimitError, match=f"at most {limit};"):
            fork.extend(IDS[100:400])
        assert (testing.cache_bytes(fork), used(core), core.memory()["kv_cache"]) == before
        assert fork.length == 100
        testing.limit_kv_cache(core, 1 << 60)
    fork.extend(IDS[100:400])
    np.testing.assert_array_equal(fork.logits(), expected)
    testing.limit_kv_cache(core, 1 << 60)
    original.extend(IDS[100:400])
    np.testing.assert_array_equal(original.logits(), expected)


def test_memory_that_another_sequence_gives_back_is_there_again() -> None:
    core = full_core()
    one, other = fed(core, 640), fed(core, 64)
    testing.limit_kv_cache(core, core.memory()["kv_cache"])
    with pytest.raises(gemlet.MemoryLimitError, match="end another sequence"):
        other.extend(IDS[64:600])
    one.close()
    other.extend(IDS[64:600])
    np.testing.assert_array_equal(other.logits(), fed(full_core(), 64, 536).logits())
