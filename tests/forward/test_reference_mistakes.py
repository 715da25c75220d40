"""The goldens notice known mistakes: each test breaks the reference in one way, and it must not pass.

If a golden did not notice a mistake, it would not protect the C++ core from it either. A test makes a mistake
in the configuration, in the weights (dividing a weight by a factor omits the factor), or by replacing a
function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from golden.folders import ALL_NAMES, HERE, TOLERANCE, read_golden, tap_errors
from reference import altup, attention, blocks, experts, forward, mlp, per_layer_inputs
from reference.config import Config, Layer, Rope
from reference.model import Model

OPENED = cache(lambda name: Model.open(HERE / name))
SHORT = [name for name in ALL_NAMES if not name.endswith("-far")]
GEMMA2 = ["gemma2-2b", "gemma2-27b", "gemma2-resaved"]
GEMMA3 = [name for name in ALL_NAMES if name.startswith("gemma3-")]
GEMMA3N = [name for name in ALL_NAMES if name.startswith("gemma3n-")]
GEMMA4 = [name for name in ALL_NAMES if name.startswith("gemma4-")]
OLD = [name for name in ALL_NAMES if name not in GEMMA3N + GEMMA4]
SCALED = ["gemma3-rope-parameters", "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b"]
WINDOWED = GEMMA2 + GEMMA3 + GEMMA3N + GEMMA4
SPARSE = ["gemma3n-e2b", "gemma3n-e4b", "gemma3n-sliced"]
KEY_IS_VALUE = ["gemma4-31b", "gemma4-12b", "gemma4-26b-a4b", "gemma4-resaved"]
PER_LAYER = [*GEMMA3N, "gemma4-e2b", "gemma4-e4b", "gemma4-far"]
EXPERTS = ["gemma4-26b-a4b"]
# Layers share the keys of an earlier layer of their kind, but not of the right one.
TWO_SOURCES = ["gemma3n-e2b", "gemma3n-e4b", "gemma3n-sliced", "gemma4-e2b", "gemma4-e4b"]


def logits_error(name: str, model: Model | None = None) -> float:
    golden = read_golden(name)
    logits = forward.forward(model or OPENED(name), golden["ids"])[golden["rows"]]
    return float(np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max())


def pairs(table: dict[str, Any]) -> Any:
    """(mistake, name) for every golden in which a mistake of the table must show."""
    return pytest.mark.parametrize(
        ("mistake", "name"), [(mistake, name) for mistake, (names, *_) in table.items() for name in names]
    )


# --- A misread configuration --------------------------------------------------------------------------------
def per_layer(change: Callable[[Layer], dict[str, Any]]) -> Callable[[Config], Config]:
    return lambda config: replace(config, layers=tuple(replace(x, **change(x)) for x in config.layers))


def shifted(config: Config) -> Config:
    return replace(config, layers=config.layers[1:] + config.layers[:1])


def kinds_exchanged(config: Config) -> Config:
    """Each layer gets the window of the other kind. Head sizes stay, because the weights depend on them."""
    window = max(layer.sliding_window for layer in config.layers)
    return per_layer(lambda x: {"sliding_window": 0 if x.sliding_window else window})(config)


def window(change: int) -> Callable[[Config], Config]:
    return per_layer(lambda x: {"sliding_window": x.sliding_window and x.sliding_window + change})


def rope(**changes: Any) -> Callable[[Config], Config]:
    return per_layer(lambda x: {"rope": replace(x.rope, **changes)})


def global_rope(**changes: Any) -> Callable[[Config], Config]:
    return per_layer(lambda x: {"rope": x.rope if x.sliding_window else replace(x.rope, **changes)})


def local_rope(**changes: Any) -> Callable[[Config], Config]:
    return per_layer(lambda x: {"rope": replace(x.rope, **changes) if x.sliding_window else x.rope})


def first_of_its_kind(config: Config) -> Config:
    """Keys and values come from the first layer of the same kind instead of the last one with its own."""
    first = {bool(x.sliding_window): i for i, x in reversed(list(enumerate(config.layers)))}
    return per_layer(
        lambda x: {"kv_source": x.kv_source if x.kv_source is None else first[bool(x.sliding_window)]}
    )(config)


CONFIG_MISTAKES: dict[str, tuple[list[str], Callable[[Config], Config]]] = {
    "no embedding scale": (list(ALL_NAMES), lambda c: replace(c, embedding_scale=1.0)),
    "norm weight w for 1 + w": (OLD, lambda c: replace(c, norm_offset=0.0)),
    "norm weight 1 + w for w": (GEMMA3N + GEMMA4, lambda c: replace(c, norm_offset=1.0)),
    "rms_norm_eps not read": (
        ["gemma1-7b", "gemma3-untied", "gemma3n-e4b", "gemma4-resaved"],
        lambda c: replace(c, rms_norm_eps=1e-6),
    ),
    "window one short": (WINDOWED, window(-1)),
    "window one long": (WINDOWED, window(+1)),
    "no sliding window": (WINDOWED, per_layer(lambda x: {"sliding_window": 0})),
    "layer pattern shifted": (GEMMA2 + GEMMA3, shifted),
    "local and global exchanged": (GEMMA3N + GEMMA4, kinds_exchanged),
    "scale from head_dim": (
        ["gemma2-27b", "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b", *GEMMA3N, *GEMMA4],
        per_layer(lambda x: {"query_scale": x.head_dim**-0.5}),
    ),
    "no attention softcap": (GEMMA2, per_layer(lambda x: {"attention_softcap": 0.0})),
    "no final softcap": (
        [*GEMMA2, *GEMMA3N, *(name for name in GEMMA4 if name != "gemma4-resaved")],
        lambda c: replace(c, final_softcap=0.0),
    ),
    "a final softcap of the family": (
        ["gemma3n-dense", "gemma4-resaved"],
        lambda c: replace(c, final_softcap=30.0),
    ),
    "no post norms": (WINDOWED, per_layer(lambda x: {"post_norms": False})),
    "no q/k norm": (GEMMA3 + GEMMA3N + GEMMA4, per_layer(lambda x: {"qk_norm": False})),
    "no v norm": (GEMMA3N + GEMMA4, per_layer(lambda x: {"v_norm": False})),
    "global theta on local layers": (GEMMA3 + GEMMA3N + GEMMA4, local_rope(theta=1e6)),
    "local theta on global layers": (GEMMA3 + GEMMA3N + GEMMA4, global_rope(theta=1e4)),
    "no rope scaling": ([*SCALED, "gemma4-resaved"], rope(factor=1.0)),
    "rope scaling on local layers": (SCALED, rope(factor=8.0)),
    "every pair turns in global layers": (GEMMA4, rope(partial_factor=1.0)),
    "a quarter of the pairs in local layers": (GEMMA4, local_rope(partial_factor=0.25)),
    "keys of the first layer of the kind": (TWO_SOURCES, first_of_its_kind),
    "no activation sparsity": (SPARSE, per_layer(lambda x: {"sparsity_cutoff": None})),
    "no per-layer inputs": (PER_LAYER, lambda c: replace(c, per_layer_input_size=0)),
    "one expert fewer": (EXPERTS, per_layer(lambda x: {"experts_per_token": x.experts_per_token - 1})),
    "no experts": (EXPERTS, per_layer(lambda x: {"experts_per_token": 0})),
    "no layer scalar": (GEMMA4, per_layer(lambda x: {"layer_scalar": False})),
}


@pairs(CONFIG_MISTAKES)
def test_a_misread_config_does_not_pass(mistake: str, name: str) -> None:
    model = OPENED(name)
    assert logits_error(name, Model(CONFIG_MISTAKES[mistake][1](model.config), model.weights)) > 5 * TOLERANCE


# --- Weights applied wrongly --------------------------------------------------------------------------------
def root(array: Any) -> Any:
    return np.float32(array.shape[-1] ** 0.5)


def prediction_transposed(w: Any) -> Any:
    count = w.shape[1]
    return w.reshape(count, count, count).swapaxes(0, 1).reshape(w.shape)


# A slot, in a layer or in the model, and how a mistake changes it.
WEIGHT_MISTAKES: dict[str, tuple[list[str], str, Callable[[Any], Any]]] = {
    "altup router divided by the root of d": (GEMMA3N, "altup_router", lambda w: w * root(w)),
    "altup router norm 1 + w": (GEMMA3N, "altup_router_norm", lambda w: w + 1),
    "altup prediction coefficients [in, out]": (GEMMA3N, "altup_prediction_coefs", prediction_transposed),
    "altup correction coefficients transposed": (GEMMA3N, "altup_correction_coefs", lambda w: w.T),
    "no altup correct scale": (GEMMA3N, "altup_correct_scale", np.ones_like),
    "laurel norm 1 + w": (GEMMA3N, "post_laurel_norm", lambda w: w + 1),
    "altup projections transposed": (GEMMA3N, "altup_projections.1", lambda w: w.T),
    "no root of P on the per-layer table": (
        PER_LAYER,
        "embed_tokens_per_layer",
        lambda w: w * np.float32(0.35),  # P is 5 to 10
    ),
    "per-layer gate of the next lane": (PER_LAYER, "per_layer_input_gate", lambda w: np.roll(w, 1, axis=0)),
    "expert gate and up exchanged": (
        EXPERTS,
        "experts_gate_up",
        lambda w: np.roll(w, w.shape[1] // 2, axis=1),
    ),
    "expert gate and up interleaved": (
        EXPERTS,
        "experts_gate_up",
        lambda w: w.reshape(len(w), 2, -1, w.shape[2]).swapaxes(1, 2).reshape(w.shape),
    ),
    "no per-expert scale": (EXPERTS, "router_per_expert_scale", np.ones_like),
    "no router scale": (EXPERTS, "router_scale", np.ones_like),
    "router not divided by the root of d": (EXPERTS, "router_scale", lambda w: w * np.float32(len(w) ** 0.5)),
    "no norm of the dense MLP beside the experts": (EXPERTS, "post_dense_norm", np.ones_like),
}


@pairs(WEIGHT_MISTAKES)
def test_weights_applied_wrongly_do_not_pass(mistake: str, name: str) -> None:
    _, slot, change = WEIGHT_MISTAKES[mistake]
    model = OPENED(name)
    changed = {key: change(w) for key, w in model.weights.items() if key == slot or key.endswith(f".{slot}")}
    assert changed
    assert logits_error(name, Model(model.config, model.weights | changed)) > 5 * TOLERANCE


# --- Wrong formulas -----------------------------------------------------------------------------------------
ROTATE, VISIBLE, KEYS_AND_VALUES = blocks.rotate, attention.visible, attention.keys_and_values
ABOVE_CUT, ROUTE, LAUREL, CORRECT = mlp.above_cut, experts.route, altup.laurel, altup.correct
PER_LAYER_INPUTS, ADD_PER_LAYER_INPUT = per_layer_inputs.per_layer_inputs, forward.add_per_layer_input


def interleaved(x: Any, positions: Any, rope: Rope) -> Any:
    """RoPE that pairs neighbouring lanes, as the original paper does."""
    order = np.concatenate([np.arange(0, x.shape[-1], 2), np.arange(1, x.shape[-1], 2)])
    turned = ROTATE(x[..., order], positions, rope)
    result = np.empty_like(turned)
    result[..., order] = turned
    return result


def partial_head(x: Any, positions: Any, rope: Rope) -> Any:
    """Partial RoPE as in other models: the first lanes are rotated like a smaller head."""
    lanes = 2 * int(rope.partial_factor * x.shape[-1] // 2)
    turned = ROTATE(x[..., :lanes], positions, replace(rope, partial_factor=1.0))
    return np.concatenate([turned, x[..., lanes:]], axis=-1)


def exact_gelu(x: Any) -> Any:
    # erf to 1.5e-7 (Abramowitz and Stegun 7.1.26), because NumPy has no erf
    z = np.abs(x) / np.sqrt(2.0)
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return 0.5 * x * (1 + np.sign(x) * (1 - series * np.exp(-z * z)))


def looking_ahead(layer: Layer, positions: Any, keys: int, spans: Any) -> Any:
    following = np.eye(len(positions), keys, 1 + keys - len(positions), dtype=bool)
    return VISIBLE(layer, positions, keys, spans) | following


def values_are_finished_keys(model: Model, index: int, x: Any, positions: Any) -> Any:
    keys, values = KEYS_AND_VALUES(model, index, x, positions)
    return keys, keys if model.config.layers[index].key_is_value else values


def values_with_key_weight(model: Model, index: int, x: Any, positions: Any) -> Any:
    keys, values = KEYS_AND_VALUES(model, index, x, positions)
    weighted = model.config.layers[index].key_is_value
    return keys, values * model.weights[f"layers.{index}.k_norm"] if weighted else values


def sample_deviation(gate: Any, cutoff: float) -> Any:
    mean, deviation = gate.mean(axis=-1, keepdims=True), gate.std(axis=-1, ddof=1, keepdims=True)
    return np.maximum(gate - (mean + np.float32(cutoff) * deviation), 0)


def masked_gate(gate: Any, cutoff: float) -> Any:
    return np.where(ABOVE_CUT(gate, cutoff) > 0, gate, 0)


def zero_mean_cut(gate: Any, cutoff: float) -> Any:
    return np.maximum(gate - np.float32(cutoff) * gate.std(axis=-1, keepdims=True), 0)


def per_layer_input_to_all(model: Model, index: int, x: Any, p: Any) -> Any:
    after = ADD_PER_LAYER_INPUT(model, index, x, p)
    return np.concatenate([after[:1] + (after[1] - x[1]), after[1:]])


def per_layer_input_to_active(model: Model, index: int, x: Any, p: Any) -> Any:
    after = ADD_PER_LAYER_INPUT(model, index, x, p)
    return np.concatenate([after[:1] + (after[1] - x[1]), x[1:]])


def predict_from_average(model: Model, index: int, x: Any) -> Any:
    """The mixing coefficients come from the mean stream instead of the active one."""
    mixing = model.linear(altup.route(model, index, x.mean(axis=0)), f"layers.{index}.altup_prediction_coefs")
    return x + np.einsum("nkj,jnd->knd", mixing.reshape(-1, len(x), len(x)), x)


def predict_without_residual(model: Model, index: int, x: Any) -> Any:
    mixing = model.linear(altup.route(model, index, x[0]), f"layers.{index}.altup_prediction_coefs")
    return np.einsum("nkj,jnd->knd", mixing.reshape(-1, len(x), len(x)), x)


def correct_without_one(model: Model, index: int, y: Any, activated: Any) -> Any:
    return CORRECT(model, index, y, activated) - (activated - y[0])


def correct_from_prediction(model: Model, index: int, y: Any, activated: Any) -> Any:
    mixing = model.linear(altup.route(model, index, y[0]), f"layers.{index}.altup_correction_coefs") + 1
    return y + mixing.T[:, :, None] * (activated - y[0])


def experts_fed_like_router(model: Model, index: int, x: Any) -> Any:
    """The router gets the input of the experts."""
    return ROUTE(model, index, model.norm(x, f"layers.{index}.pre_moe_norm"))


def shares_not_renormalised(model: Model, index: int, x: Any) -> Any:
    at, count = f"layers.{index}", model.config.layers[index].experts_per_token
    t = model.norm(x, None) * model.weights[f"{at}.router_scale"] * np.float32(x.shape[-1] ** -0.5)
    shares = blocks.softmax(model.linear(t, f"{at}.router_proj"))
    least = np.sort(shares, axis=-1)[:, -count, None]
    return np.where(shares >= least, shares, 0) * model.weights[f"{at}.router_per_expert_scale"]


def scaled_before_renormalising(model: Model, index: int, x: Any) -> Any:
    gates = ROUTE(model, index, x)
    return gates / gates.sum(axis=-1, keepdims=True)


def per_layer_inputs_of_token(model: Model, ids: Any, embedded: Any) -> Any:
    """The part from the projection of the embedding is missing."""
    table, width = model.weights["embed_tokens_per_layer"], model.config.per_layer_input_size
    rows = table[np.where(ids < len(table), ids, 0)] * np.float32((width / 2) ** 0.5)
    return rows.reshape(len(ids), -1, width)


def last_row_beyond_table(model: Model, ids: Any, embedded: Any) -> Any:
    return PER_LAYER_INPUTS(
        model, np.minimum(ids, len(model.weights["embed_tokens_per_layer"]) - 1), embedded
    )


BEYOND = ["gemma3n-e2b", "gemma3n-e4b", "gemma3n-sliced"]
WRONG_FORMULAS: dict[str, tuple[list[str], Any, str, Callable[..., Any]]] = {
    "rope on neighbouring lanes": (SHORT, blocks, "rotate", interleaved),
    "relu for gelu": (SHORT, blocks, "gelu", lambda x: np.maximum(x, 0)),
    "erf gelu for tanh gelu": (SHORT, blocks, "gelu", exact_gelu),
    "sees the next token": (SHORT, attention, "visible", looking_ahead),
    "partial rope of a smaller head": (GEMMA4, blocks, "rotate", partial_head),
    "values are the keys after norm and rope": (
        KEY_IS_VALUE,
        attention,
        "keys_and_values",
        values_are_finished_keys,
    ),
    "values have the keys' norm weight": (KEY_IS_VALUE, attention, "keys_and_values", values_with_key_weight),
    "sparsity by the sample deviation": (SPARSE, mlp, "above_cut", sample_deviation),
    "sparsity keeps the gate itself": (SPARSE, mlp, "above_cut", masked_gate),
    "sparsity forgets the mean": (SPARSE, mlp, "above_cut", zero_mean_cut),
    "per-layer input into stream 0 too": (GEMMA3N, forward, "add_per_layer_input", per_layer_input_to_all),
    "per-layer input into stream 0 only": (
        GEMMA3N,
        forward,
        "add_per_layer_input",
        per_layer_input_to_active,
    ),
    "per-layer inputs of the table alone": (
        PER_LAYER,
        per_layer_inputs,
        "per_layer_inputs",
        per_layer_inputs_of_token,
    ),
    "last row for ids beyond the table": (
        BEYOND,
        per_layer_inputs,
        "per_layer_inputs",
        last_row_beyond_table,
    ),
    "streams keep their magnitude": (GEMMA3N, altup, "like", lambda y, target: y),
    "prediction from all streams": (GEMMA3N, altup, "predict", predict_from_average),
    "prediction without the stream itself": (GEMMA3N, altup, "predict", predict_without_residual),
    "correction without + 1": (GEMMA3N, altup, "correct", correct_without_one),
    "correction routed by the prediction": (GEMMA3N, altup, "correct", correct_from_prediction),
    "laurel without its residual": (GEMMA3N, altup, "laurel", lambda m, i, u: LAUREL(m, i, u) - u),
    "no root of 2 after laurel": (GEMMA3N, altup, "with_laurel", lambda branch, learned: branch + learned),
    "router sees the experts' norm": (EXPERTS, experts, "route", experts_fed_like_router),
    "shares not renormalised": (EXPERTS, experts, "route", shares_not_renormalised),
    "per-expert scale before renormalising": (EXPERTS, experts, "route", scaled_before_renormalising),
}


@pairs(WRONG_FORMULAS)
def test_a_wrong_formula_does_not_pass(mistake: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, function, wrong = WRONG_FORMULAS[mistake]
    monkeypatch.setattr(module, function, wrong)
    assert logits_error(name) > TOLERANCE


@pytest.mark.parametrize("name", PER_LAYER)
def test_a_wrong_scale_of_the_per_layer_inputs_shows_in_their_tap(name: str) -> None:
    """The logits may hide it, because the norm after the branch removes any factor."""
    golden, taps = read_golden(name), dict[str, Any]()
    forward.forward(OPENED(name), golden["ids"], taps=taps)
    taps["per_layer_inputs"] = taps["per_layer_inputs"] * np.float32(2**0.5)
    assert tap_errors(golden, taps)["per_layer_inputs"] > 5 * TOLERANCE


@pytest.mark.parametrize(
    "name",
    [*GEMMA2, "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b", "gemma3n-e2b", "gemma4-31b", "gemma4-e4b"],
)
def test_interleaved_kv_heads_do_not_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query head j must read kv head j // (H / K), not j % K. The two differ if 1 < K < H."""
    in_turns = lambda x, layer: np.tile(x, (1, layer.num_heads // layer.num_kv_heads, 1))  # noqa: E731
    monkeypatch.setattr(attention, "spread", in_turns)
    assert logits_error(name) > 5 * TOLERANCE
