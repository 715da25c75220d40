"""An int8 or int4 cache has one scale for a key. The channels of the keys are first made about equally large,
and the queries are multiplied by the inverse, so that small channels keep their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from golden.folders import HERE, read_golden
from support.core_models import builder_of, layer_config, model_config
from support.feeding import difference
from support.inside import testing

pytestmark = pytest.mark.tier

# These differ in how layers get their keys; a golden model reacts strongly to rounding. Gemma 1 and 2 have no
# norms on keys, so nothing is balanced there.
NAMES = [
    "gemma1-2b",
    "gemma2-2b",
    "gemma3-4b",
    "gemma3n-sliced",
    "gemma4-e2b",
    "gemma4-12b",
    "gemma4-26b-a4b",
    "gemma4-far",
]
BOUNDS = {"int8": 0.12, "int4": 0.7}


@pytest.mark.parametrize("name", NAMES)
def test_every_family_computes_the_same(name: str) -> None:
    """This is also true if layers share keys, if keys are values too, and if RoPE rotates a part of the
    lanes."""
    ids = read_golden(name)["ids"][-41:].tolist()
    found = []
    for kv_cache in ("f32", *BOUNDS):
        with gemlet.load(HERE / name, weights="f32", kv_cache=kv_cache, threads=1) as model:
            found.append(model.logits(ids))
    exact, *rounded = found
    for logits, bound in zip(rounded, BOUNDS.values(), strict=True):
        assert np.linalg.norm(logits - exact) < bound * np.linalg.norm(exact)


def logits(kv_cache: str, sizes: NDArray[np.float32], head_dim: int = 32) -> NDArray[np.float32]:
    """Results of a model whose keys have channels of these sizes, and whose queries have the inverse."""
    layers = [layer_config(head_dim=head_dim, sliding_window=0, query_scale=0.2) for _ in range(2)]
    builder = builder_of(model_config(*layers, norm_offset=0.0), kv_cache=kv_cache)
    for i in range(2):
        builder.add(f"layers.{i}.k_norm", sizes, "f32")
        builder.add(f"layers.{i}.q_norm", 1 / sizes, "f32")
    builder.add_random(seed=4)
    (found,) = testing.batch_logits(builder.finish(), [list(range(2, 90))], [None])
    return np.asarray(found)


def loss(kv_cache: str, sizes: Any) -> float:
    sizes = np.asarray(sizes, np.float32)
    return difference(logits(kv_cache, sizes), logits("f32", sizes))


@pytest.mark.parametrize(("kv_cache", "bound"), [("int8", 0.02), ("int4", 0.3)])
def test_channels_of_different_sizes_keep_their_bits(kv_cache: str, bound: float) -> None:
    even = loss(kv_cache, np.ones(32))
    assert even < bound
    large = np.ones(32)
    large[[3, 19]] = 30  # the two lanes of a pair
    assert loss(kv_cache, large) < 3 * even


def test_a_channel_far_from_the_others_does_not_spoil_int4() -> None:
    """One channel of the values is five times the largest level. Rotated, it is like the others."""
    found = []
    for kv_cache in ("f32", "int4"):
        layer = layer_config(head_dim=256, num_heads=1, num_kv_heads=1, sliding_window=0, post_norms=False)
        builder = builder_of(model_config(layer, embedding_scale=0.01), kv_cache=kv_cache)
        values = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
        values[5] *= 50
        builder.add("layers.0.v_proj", values, "f32")
        builder.add_random(seed=4)
        found += testing.batch_logits(builder.finish(), [[7]], [None])
    assert np.linalg.norm(found[1] - found[0]) < 0.2 * np.linalg.norm(found[0])


@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
def test_channels_of_zero_do_no_harm(kv_cache: str) -> None:
    for kept in (slice(0, 0), slice(0, 3)):
        sizes = np.zeros(32, np.float32)
        sizes[kept] = 2
        config = model_config(layer_config(head_dim=32, sliding_window=0), norm_offset=0.0)
        builder = builder_of(config, kv_cache=kv_cache)
        builder.add("layers.0.k_norm", sizes, "f32")
        builder.add_random(seed=4)
        (found,) = testing.batch_logits(builder.finish(), [[2, 7, 11, 5]], [None])
        assert np.isfinite(found).all()
