"""The NumPy reference against the golden taps of the official implementation, and the goldens' own power.

The second half breaks the reference on purpose, one known mistake at a time: a golden that did not notice
would not protect the C++ core from it either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.folders import BY_NAME, HERE, NAMES, TOLERANCE, expected_taps, read_golden, tap_errors
from reference import forward as reference
from reference.config import Config, Layer
from reference.forward import Cache, Model, forward, greedy

SHORT = [name for name in NAMES if name != "gemma3-far"]
# What the reference is held to: far inside the tolerance of the product, yet above float32 noise.
REFERENCE_TOLERANCE = 5e-5


def test_every_variant_is_on_disk_and_nothing_else() -> None:
    folders = {path.name for path in HERE.iterdir() if (path / "config.json").exists()}
    assert folders == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small_and_complete(name: str) -> None:
    assert sum(path.stat().st_size for path in (HERE / name).iterdir()) < 1_000_000
    golden = read_golden(name)
    assert golden.keys() - {"ids", "rows", "greedy"} == set(expected_taps(BY_NAME[name]))
    assert golden["ids"].shape == (BY_NAME[name].tokens,)
    assert golden["greedy"].shape == (24,)
    assert all(len(golden[tap]) == len(golden["rows"]) for tap in expected_taps(BY_NAME[name]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_taps_and_logits_agree_with_the_official_implementation(name: str, dtype: Any) -> None:
    golden = read_golden(name)
    taps: dict[str, Any] = {}
    forward(Model.open(HERE / name, dtype), golden["ids"], taps=taps)
    errors = tap_errors(golden, taps)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < REFERENCE_TOLERANCE, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuation(name: str) -> None:
    golden = read_golden(name)
    assert greedy(Model.open(HERE / name), golden["ids"], 24) == golden["greedy"].tolist()


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 16])
@pytest.mark.parametrize("name", SHORT)
def test_chunked_prefill_and_decode_equal_whole_prefill(name: str, chunk: int) -> None:
    golden = read_golden(name)
    model, cache = Model.open(HERE / name), Cache()
    ids = golden["ids"]
    parts = [forward(model, ids[at : at + chunk], cache) for at in range(0, len(ids), chunk)]
    error = np.abs(np.concatenate(parts) - golden["logits"]).max() / np.abs(golden["logits"]).max()
    assert error < REFERENCE_TOLERANCE


# --- Known mistakes -----------------------------------------------------------------------------------------
def logits_error(name: str, change: Callable[[Config], Config] = lambda config: config) -> float:
    golden, model = read_golden(name), Model.open(HERE / name)
    logits = forward(Model(change(model.config), model.weights), golden["ids"])[golden["rows"]]
    return float(np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max())


def per_layer(change: Callable[[Layer], dict[str, Any]]) -> Callable[[Config], Config]:
    return lambda config: replace(config, layers=tuple(replace(x, **change(x)) for x in config.layers))


def shifted(config: Config) -> Config:
    return replace(config, layers=config.layers[1:] + config.layers[:1])


def window(change: int) -> Callable[[Config], Config]:
    return per_layer(lambda x: {"sliding_window": x.sliding_window and x.sliding_window + change})


GEMMA2 = ["gemma2-2b", "gemma2-27b", "gemma2-resaved"]
GEMMA3 = [name for name in NAMES if name.startswith("gemma3")]
SCALED = ["gemma3-rope-parameters", "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b"]
MISTAKES: dict[str, tuple[list[str], Callable[[Config], Config]]] = {
    "no embedding scale": (list(NAMES), lambda c: replace(c, embedding_scale=1.0)),
    "norm weight w for 1 + w": (list(NAMES), lambda c: replace(c, norm_offset=0.0)),
    "rms_norm_eps not read": (["gemma1-7b", "gemma3-untied"], lambda c: replace(c, rms_norm_eps=1e-6)),
    "window one short": (GEMMA2 + GEMMA3, window(-1)),
    "window one long": (GEMMA2 + GEMMA3, window(+1)),
    "no sliding window": (GEMMA2 + GEMMA3, per_layer(lambda x: {"sliding_window": 0})),
    "layer pattern shifted": (GEMMA2 + GEMMA3, shifted),
    "scale from head_dim": (
        ["gemma2-27b", "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b"],
        per_layer(lambda x: {"query_scale": x.head_dim**-0.5}),
    ),
    "no attention softcap": (GEMMA2, per_layer(lambda x: {"attention_softcap": 0.0})),
    "no final softcap": (GEMMA2, lambda c: replace(c, final_softcap=0.0)),
    "no post norms": (GEMMA2 + GEMMA3, per_layer(lambda x: {"post_norms": False})),
    "no q/k norm": (GEMMA3, per_layer(lambda x: {"qk_norm": False})),
    "global theta on local layers": (GEMMA3, per_layer(lambda x: {"rope_theta": 1e6})),
    "local theta on global layers": (GEMMA3, per_layer(lambda x: {"rope_theta": 1e4})),
    "no linear rope scaling": (SCALED, per_layer(lambda x: {"rope_factor": 1.0})),
    "rope scaling on local layers": (SCALED, per_layer(lambda x: {"rope_factor": 8.0})),
}


@pytest.mark.parametrize(
    ("mistake", "name"), [(mistake, name) for mistake, (names, _) in MISTAKES.items() for name in names]
)
def test_a_misread_config_does_not_pass(mistake: str, name: str) -> None:
    assert logits_error(name, MISTAKES[mistake][1]) > 5 * TOLERANCE


def interleaved(x: Any, positions: Any, theta: float, factor: float) -> Any:
    """RoPE with neighbouring lanes paired, as the original paper numbers them."""
    order = np.concatenate([np.arange(0, x.shape[-1], 2), np.arange(1, x.shape[-1], 2)])
    turned = ROTATE(x[..., order], positions, theta, factor)
    result = np.empty_like(turned)
    result[..., order] = turned
    return result


def exact_gelu(x: Any) -> Any:
    # erf to 1.5e-7 (Abramowitz and Stegun 7.1.26): NumPy has none
    z = np.abs(x) / np.sqrt(2.0)
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return 0.5 * x * (1 + np.sign(x) * (1 - series * np.exp(-z * z)))


def looking_ahead(layer: Layer, positions: Any, keys: int) -> Any:
    following = np.eye(len(positions), keys, 1 + keys - len(positions), dtype=bool)
    return VISIBLE(layer, positions, keys) | following


ROTATE, VISIBLE = reference.rotate, reference.visible
PATCHES: dict[str, tuple[str, Callable[..., Any]]] = {
    "rope on neighbouring lanes": ("rotate", interleaved),
    "relu for gelu": ("gelu", lambda x: np.maximum(x, 0)),
    "erf gelu for tanh gelu": ("gelu", exact_gelu),
    "sees the next token": ("visible", looking_ahead),
}


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("mistake", PATCHES)
def test_a_wrong_formula_does_not_pass(mistake: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, *PATCHES[mistake])
    assert logits_error(name) > TOLERANCE


@pytest.mark.parametrize("name", [*GEMMA2, "gemma3-4b", "gemma3-4b-resaved", "gemma3-27b"])
def test_kv_heads_taken_in_turns_do_not_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query head j must read kv head j // (H / K), not j % K; the two differ where 1 < K < H."""
    in_turns = lambda x, layer: np.tile(x, (1, layer.num_heads // layer.num_kv_heads, 1))  # noqa: E731
    monkeypatch.setattr(reference, "spread", in_turns)
    assert logits_error(name) > 5 * TOLERANCE
