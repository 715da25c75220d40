"""A model is built tensor by tensor through the core. The core refuses a wrong tensor and names it, and the
builder still accepts the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet import _core
from support.core_models import (
    HIDDEN,
    VOCAB,
    builder_of,
    int32,
    layer_config,
    model_config,
    random_core,
    sampler,
)

pytestmark = pytest.mark.tier


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "data", "dtype", "first_row", "message"),
    [
        ("embed", ones(VOCAB, HIDDEN), "f32", 0, "'embed' is not part"),
        ("lm_head", ones(VOCAB, HIDDEN), "f32", 0, "'lm_head' is not part"),
        ("layers.2.q_proj", ones(64, 64), "f32", 0, "not part"),
        ("final_norm", ones(HIDDEN + 1), "f32", 0, r"\[65\], expected \[64\]"),
        ("final_norm", ones(1, HIDDEN), "f32", 0, r"\[1, 64\], expected \[64\]"),
        ("final_norm", ones(HIDDEN), "f32", 1, "rows from 1, expected the next ones, from 0"),
        ("final_norm", np.float32(1), "f32", 0, r"\[\], expected \[64\]"),
        ("embed_tokens", ones(HIDDEN, VOCAB), "f32", 0, r"\[64, 96\], expected \[96, 64\]"),
        ("embed_tokens", ones(VOCAB * HIDDEN), "f32", 0, r"expected \[96, 64\]"),
        ("embed_tokens", ones(1, VOCAB, HIDDEN), "f32", 0, r"expected \[96, 64\]"),
        ("embed_tokens", ones(VOCAB + 16, HIDDEN), "f32", 0, r"expected \[96, 64\]"),
        ("embed_tokens", ones(0, HIDDEN), "f32", 0, r"expected \[96, 64\]"),
        ("embed_tokens", ones(17, HIDDEN), "f32", 0, r"expected \[96, 64\]"),
        ("embed_tokens", ones(16, HIDDEN), "f32", 16, "rows from 16, expected the next ones, from 0"),
        ("embed_tokens", ones(16, HIDDEN), "f32", -16, "rows from -16"),
        ("embed_tokens", ones(VOCAB, HIDDEN), "bf16", 0, "must be a C-contiguous uint16"),
        ("embed_tokens", ones(VOCAB, HIDDEN), "f16", 0, "must be a C-contiguous uint16"),
        ("embed_tokens", ones(VOCAB, HIDDEN).astype(np.float64), "f32", 0, "C-contiguous float32"),
        ("embed_tokens", ones(VOCAB, HIDDEN).astype(np.int32), "f32", 0, "C-contiguous float32"),
        ("embed_tokens", ones(VOCAB, HIDDEN).astype(np.float16), "f16", 0, "C-contiguous uint16"),
        ("embed_tokens", ones(VOCAB, HIDDEN).astype(">f4"), "f32", 0, "C-contiguous float32"),
        ("embed_tokens", ones(HIDDEN, VOCAB).T, "f32", 0, "C-contiguous float32"),
        ("embed_tokens", ones(VOCAB, 2 * HIDDEN)[:, ::2], "f32", 0, "C-contiguous float32"),
        (
            "embed_tokens",
            ones(VOCAB, HIDDEN),
            "q8",
            0,
            "dtype tag 'q8'.* expected f32, bf16, f16, a block type",
        ),
    ],
)
def test_a_wrong_tensor(name: str, data: Any, dtype: str, first_row: int, message: str) -> None:
    builder = builder_of()
    with pytest.raises(gemlet.TensorError, match=message):
        builder.add(name, np.asarray(data), dtype, first_row)
    builder.add("embed_tokens", ones(VOCAB, HIDDEN), "f32")  # building goes on
    builder.add("final_norm", ones(HIDDEN), "f32")


def test_rows_in_the_wrong_order() -> None:
    builder = builder_of()
    builder.add("embed_tokens", ones(32, HIDDEN), "f32")
    for first_row in (0, 16, 48, 96, -32, 2**62):
        with pytest.raises(
            gemlet.TensorError, match=f"rows from {first_row}, expected the next ones, from 32"
        ):
            builder.add("embed_tokens", ones(32, HIDDEN), "f32", first_row)
    with pytest.raises(gemlet.TensorError, match=r"\[80, 64\], expected \[64, 64\]"):
        builder.add("embed_tokens", ones(80, HIDDEN), "f32", 32)
    builder.add("embed_tokens", ones(64, HIDDEN), "f32", 32)
    with pytest.raises(gemlet.TensorError, match="given twice"):
        builder.add("embed_tokens", ones(VOCAB, HIDDEN), "f32")
    with pytest.raises(gemlet.TensorError, match="given twice"):
        builder.add("embed_tokens", ones(16, HIDDEN), "f32", 96)


def test_the_rows_of_a_tensor_in_pieces() -> None:
    config = model_config(vocab_size=VOCAB + 3)
    table = np.random.default_rng(0).standard_normal((VOCAB + 3, HIDDEN)).astype(np.float32)
    results = []
    for cuts in ([], [16], [32, 48, 96]):
        builder = builder_of(config, weights="q8")
        for first, last in zip([0, *cuts], [*cuts, VOCAB + 3], strict=True):
            builder.add("embed_tokens", table[first:last], "f32", first)
        builder.add_random(seed=3)
        sequence = _core.TokenSequence(builder.finish())
        sequence.extend(int32(1, 2, VOCAB + 2))
        results.append(sequence.logits())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_unaligned_tensors() -> None:
    """In a file, a tensor may begin at any byte."""
    table = np.random.default_rng(0).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    shifted = np.frombuffer(b"x" + table.tobytes(), np.uint8)[1:].view(np.float32).reshape(table.shape)
    results = []
    for data in (table, shifted):
        builder = builder_of()
        builder.add("embed_tokens", data, "f32")
        builder.add_random(seed=3)
        sequence = _core.TokenSequence(builder.finish())
        sequence.extend(int32(1, 2))
        results.append(sequence.logits())
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63 - 8192, 2**62, -1, -(2**63)])
def test_rows_outside_the_file(tmp_path: Path, offset: int) -> None:
    (tmp_path / "weights").write_bytes(bytes(64))
    with open(tmp_path / "weights", "rb") as file:
        for name, shape in (("embed_tokens", (VOCAB, HIDDEN)), ("final_norm", (HIDDEN,))):
            rows = _core.FileRows(descriptor=file.fileno(), offset=offset, shape=shape, dtype="f32")
            for take in (builder_of().add, builder_of().pack):
                with pytest.raises(gemlet.ModelFileError, match=name):
                    take(name, rows)


@pytest.mark.parametrize("weights", ["f32", "bf16", "bf12", "q8", "q4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(weights: str, value: float) -> None:
    builder = builder_of(weights=weights)
    for name, shape in (
        ("embed_tokens", (VOCAB, HIDDEN)),
        ("layers.1.down_proj", (HIDDEN, 96)),
        ("final_norm", (HIDDEN,)),
    ):
        bad = ones(*shape)
        bad[(-1,) * len(shape)] = value
        with pytest.raises(gemlet.TensorError, match=f"'{name}' holds NaN"):
            builder.add(name, bad, "f32")
        builder.add(name, ones(*shape), "f32")  # a good tensor is still accepted
    builder.add_random(seed=1)
    sequence = _core.TokenSequence(builder.finish())
    sequence.extend(int32(1, 2))
    assert np.isfinite(sequence.logits()).all()


def test_finish() -> None:
    builder = builder_of()
    with pytest.raises(gemlet.TensorError, match="is missing: expected shape"):
        builder.finish()
    builder.add("embed_tokens", ones(32, HIDDEN), "f32")
    builder.add_random(seed=1)  # this call does not touch a tensor that is only partly written
    with pytest.raises(gemlet.TensorError, match=r"'embed_tokens' is missing"):
        builder.finish()
    builder.add("embed_tokens", ones(64, HIDDEN), "f32", 32)
    model = builder.finish()
    with pytest.raises(gemlet.InvalidRequestError, match="already called"):
        builder.finish()
    for name in ("embed_tokens", "final_norm"):
        with pytest.raises(gemlet.TensorError):
            builder.add(name, ones(VOCAB, HIDDEN), "f32")
    builder.add_random(seed=2)
    assert builder.tensors() == {}
    del builder
    sequence = _core.TokenSequence(model)
    sequence.extend(int32(1))
    assert np.isfinite(sequence.logits()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "q7"}, "'q7' is unknown"),
        ({"embedding": ""}, "'' is unknown"),
        ({"kv_cache": "q8"}, "KV cache format 'q8' is unknown; expected f32, bf16, int8"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 1025}, "threads is 1025"),
    ],
)
def test_a_wrong_choice(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=message):
        builder_of(**{"embedding": "f32", **changes})


def test_configs_that_make_no_sense() -> None:
    with pytest.raises(gemlet.ConfigError, match=r"layer 1: head_dim is 15, expected an even number"):
        model_config(layer_config(), layer_config(head_dim=15))
    with pytest.raises(
        gemlet.ConfigError, match=r"layer 0: num_heads \(4\) is not a multiple of num_kv_heads \(3\)"
    ):
        model_config(layer_config(num_kv_heads=3))
    with pytest.raises(gemlet.ConfigError, match="activation_sparsity is 11, expected -10 to 10"):
        model_config(layer_config(activation_sparsity=11))
    with pytest.raises(gemlet.ConfigError, match="per_layer_input_size is 0, expected 1 to"):
        model_config(altup_streams=4, laurel_rank=2)
    with pytest.raises(gemlet.ConfigError, match="laurel_rank is 0, expected 1 to"):
        model_config(altup_streams=4, per_layer_input_size=2, per_layer_vocab_size=2)
    with pytest.raises(gemlet.ConfigError, match="layer 1: kv_source is 1, expected -1 to 0"):
        model_config(layer_config(), layer_config(kv_source=1))
    with pytest.raises(
        gemlet.ConfigError, match="layer 1: kv_source is 0, expected a layer with its own cache"
    ):
        model_config(layer_config(), layer_config(kv_source=0, sliding_window=0))
    with pytest.raises(gemlet.ConfigError, match="experts_per_token is 5, expected 1 to 4"):
        model_config(layer_config(num_experts=4, experts_per_token=5, expert_intermediate_size=8))
    with pytest.raises(gemlet.ConfigError, match="number of layers is 1025"):
        model_config(*[layer_config()] * 1025)
    with pytest.raises(gemlet.ConfigError, match="number of layers is 0"):
        _core.ModelConfig(
            vocab_size=1, hidden_size=1, max_context=1, rms_norm_eps=1e-6, embedding_scale=1.0, layers=[]
        )


def test_the_smallest_model() -> None:
    """Every size is 1: the shortest case of every loop."""
    layer = layer_config(num_heads=1, num_kv_heads=1, head_dim=2, intermediate_size=1, sliding_window=1)
    for weights in ("f32", "bf16", "bf12", "q8", "q4"):
        model = random_core(
            config=model_config(layer, vocab_size=1, hidden_size=1, max_context=3), weights=weights
        )
        sequence = _core.TokenSequence(model)
        sequence.extend(int32(0, 0), logits="all")
        sequence.extend(int32(0), logits="all")
        assert np.isfinite(sequence.logits()).all()
        assert sequence.sample(sampler()) == 0
