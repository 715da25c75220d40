"""Balanced channels: a vector divides a norm and multiplies the columns of the matrices after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import TensorError
from support.core_models import HIDDEN, VOCAB, builder_of, int32, layer_config, model_config
from support.inside import testing

pytestmark = pytest.mark.tier

Tensors = dict[str, NDArray[np.float32]]

NORMS = {
    "attention_balance": ("pre_attention_norm", ("q_proj", "k_proj", "v_proj")),
    "mlp_balance": ("pre_mlp_norm", ("gate_proj", "up_proj")),
    "moe_balance": ("pre_moe_norm", ("experts.0.gate_up", "experts.1.gate_up")),
}
EXPERTS = {"num_experts": 2, "experts_per_token": 1, "expert_intermediate_size": 32}
IDS = int32(2, 7, 11, 5, 40)
RANDOM = np.random.default_rng(5)
# Powers of two: products with them are not rounded.
SCALES = {slot: np.exp2(RANDOM.integers(-4, 5, HIDDEN)).astype(np.float32) for slot in NORMS}


def config() -> _core.ModelConfig:
    return model_config(layer_config(), layer_config(**EXPERTS), norm_offset=0.0)


def on_the_grid() -> Tensors:
    """Weights that q4 holds exactly: in every block of 32 there is a -8."""
    tensors: Tensors = {}
    for name, shape in builder_of(config(), weights="q4").tensors().items():
        if name.endswith("_balance"):
            continue
        if len(shape) == 1:
            tensors[name] = np.exp2(RANDOM.integers(-1, 2, shape)).astype(np.float32)
        else:
            steps = RANDOM.integers(-8, 8, shape)
            steps[:, ::32] = -8
            tensors[name] = steps.astype(np.float32) / 64
    return tensors


def balanced(tensors: Tensors) -> Tensors:
    """The same function, with every norm multiplied by the vector and every column divided by it: as if the
    vector had been folded in already, in ``tensors``."""
    changed = dict(tensors)
    for balance, (norm, matrices) in NORMS.items():
        for layer in ("layers.0", "layers.1"):
            if f"{layer}.{norm}" in tensors:
                changed[f"{layer}.{norm}"] = tensors[f"{layer}.{norm}"] * SCALES[balance]
                for matrix in matrices:
                    changed[f"{layer}.{matrix}"] = tensors[f"{layer}.{matrix}"] / SCALES[balance]
    return changed


def build(tensors: Tensors, vectors: Mapping[str, NDArray[np.float32]] | None = None) -> _core.Model:
    builder = builder_of(config(), weights="q4")
    for slot in builder.tensors():
        if vectors is not None and slot.endswith("_balance"):
            builder.add(slot, vectors[slot.rpartition(".")[2]], "f32")
    for name, values in tensors.items():
        builder.add(name, values, "f32")
    return builder.finish()


def logits(model: _core.Model, adapter: _core.Adapter | None = None) -> NDArray[np.float32]:
    (found,) = testing.batch_logits(model, [IDS.tolist()], [adapter])
    return found


def test_the_vector_is_folded_into_norm_and_columns() -> None:
    tensors = on_the_grid()
    plain = logits(build(tensors))
    np.testing.assert_array_equal(logits(build(balanced(tensors), SCALES)), plain)
    assert not np.array_equal(logits(build(balanced(tensors))), plain)  # these weights are not on the grid


@pytest.mark.parametrize("matrix", ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_sees_the_norm_as_it_was(matrix: str, dora: bool) -> None:
    tensors = on_the_grid()
    slot = f"layers.1.{matrix}"
    rows, cols = tensors[slot].shape
    a, b = (RANDOM.integers(-3, 4, shape).astype(np.float32) / 16 for shape in ((3, cols), (rows, 3)))
    scales = {name: SCALES[balance] for balance, (_, names) in NORMS.items() for name in names}
    factors = scales.get(matrix, np.float32(1))
    lengths = []
    for weight, own in ((tensors[slot], a * factors), (tensors[slot] / factors, a)):
        lengths.append(np.linalg.norm((weight + 0.5 * b @ own).astype(np.float64), axis=1))
    magnitudes = RANDOM.uniform(0.5, 2, rows) * lengths[1]
    seen = []
    for model, own, length in (
        (build(tensors), a * factors, lengths[0]),
        (build(balanced(tensors), SCALES), a, lengths[1]),
    ):
        given = (magnitudes / lengths[1] * length).astype(np.float32).tolist() if dora else []
        builder = _core.AdapterBuilder(model)
        builder.add(slot, a=own, a_dtype="f32", b=b, b_dtype="f32", scale=0.5, magnitudes=given)
        seen.append(logits(model, builder.finish()))
        assert not np.array_equal(seen[-1], logits(model))
    np.testing.assert_allclose(*seen, rtol=1e-4 if dora else 0, atol=1e-5 if dora else 0)


def test_missing_balance_vectors_are_ones() -> None:
    tensors = on_the_grid()
    ones = {slot: np.ones(HIDDEN, np.float32) for slot in NORMS}
    np.testing.assert_array_equal(logits(build(tensors)), logits(build(tensors, ones)))


def test_only_norms_before_matrices_of_few_bits_are_balanced() -> None:
    def slots(weights: str, config: Any = None, **formats: str) -> set[str]:
        layer = {f"layers.0.{name}": format for name, format in formats.items()}
        found = builder_of(config, weights=weights, formats=layer).tensors()
        return {slot for slot in found if slot.endswith("_balance")}

    for weights in ("f32", "bf16", "bf12", "q8"):
        assert slots(weights, config()) == set()
    assert slots("q8", v_proj="q4") == {"layers.0.attention_balance"}
    assert slots("q8", down_proj="q4", o_proj="q4") == set()
    both = {f"layers.{i}.{name}" for i in (0, 1) for name in ("attention_balance", "mlp_balance")}
    assert slots("q4", config()) == both | {"layers.1.moe_balance"}
    assert slots("q4", q_proj="f32", gate_proj="q8") == both
    sizes = {"per_layer_input_size": 8, "per_layer_vocab_size": VOCAB, "altup_streams": 4, "laurel_rank": 4}
    laurel = model_config(layer_config(v_norm=True, query_scale=1.0), **sizes)
    assert slots("q4", laurel) == {"layers.0.mlp_balance"}


def test_a_wrong_vector() -> None:
    builder = builder_of(weights="q4")
    slot, vector = "layers.0.mlp_balance", np.ones(HIDDEN, np.float32)
    for value in (0.0, -1.0, np.nan, np.inf, 65.0, 1 / 65):
        vector[3] = value
        with pytest.raises(TensorError, match=r"layers\.0\.mlp_balance.*(expected numbers from|NaN)"):
            builder.add(slot, vector, "f32")
    with pytest.raises(TensorError, match=r"shape \[65\], expected \[64\]"):
        builder.add(slot, np.ones(HIDDEN + 1, np.float32), "f32")
    vector[3] = 2
    builder.add(slot, vector, "f32")
    with pytest.raises(TensorError, match="given twice"):
        builder.add(slot, vector, "f32")
    builder.add("layers.0.q_proj", np.ones((64, HIDDEN), np.float32), "f32")
    with pytest.raises(TensorError, match="after a weight that it balances"):
        builder.add("layers.0.attention_balance", vector, "f32")
    with pytest.raises(TensorError, match="after a weight that it balances"):
        builder.pack("layers.0.attention_balance", vector, "f32")
