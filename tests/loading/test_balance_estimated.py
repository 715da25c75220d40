"""The vectors that balance the channels of weights in q4: how they are estimated, and which matrices stay
unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.errors import TensorError
from support.gguf_cases import model_of
from support.gguf_models import metadata, typed, write_gguf
from support.tiny_models import CONFIGS, logits_of, read_header, weights_of, write_folder

pytestmark = pytest.mark.tier

LAYER = "model.layers.{}.{}.weight"


def vectors_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The vectors of a packed folder."""
    header, data = read_header(folder / "model.safetensors")
    found = {}
    for name, entry in header.items():
        if name.endswith("_balance"):
            begin, _ = entry["data_offsets"]
            found[name] = np.frombuffer(data, np.float32, entry["shape"][0] // 4, begin)
    return found


def packed(folder: Path, source: Path, **arguments: Any) -> Path:
    gemlet.convert(source, folder, threads=1, **arguments)
    return folder


def expected(tensors: dict[str, NDArray[Any]], layers: int, offset: float) -> dict[str, NDArray[np.float64]]:
    """The residual is a sum of squares: 1, and the squares of the norms after every branch."""

    def square(layer: int, norm: str) -> NDArray[np.float64]:
        return (tensors[LAYER.format(layer, norm)].astype(np.float64) + offset) ** 2

    found, residual = {}, np.ones(64)
    for i in range(layers):
        found[f"layers.{i}.attention_balance"] = residual * square(i, "input_layernorm")
        residual = residual + square(i, "post_attention_layernorm")
        found[f"layers.{i}.mlp_balance"] = residual * square(i, "pre_feedforward_layernorm")
        if LAYER.format(i, "pre_feedforward_layernorm_2") in tensors:
            found[f"layers.{i}.moe_balance"] = residual * square(i, "pre_feedforward_layernorm_2")
        residual = residual + square(i, "post_feedforward_layernorm")
        if LAYER.format(i, "post_per_layer_input_norm") in tensors:
            residual = residual + square(i, "post_per_layer_input_norm")
        if f"model.layers.{i}.layer_scalar" in tensors:
            residual = residual * tensors[f"model.layers.{i}.layer_scalar"].astype(np.float64) ** 2
    return {name: values**0.25 / np.exp(np.log(values).mean() / 4) for name, values in found.items()}


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gemma4_text", "gemma4_experts"])
def test_the_vectors_follow_from_the_norms(tmp_path: Path, family: str) -> None:
    tensors = weights_of(CONFIGS[family])
    random = np.random.default_rng(1)
    offset = 0.0 if family.startswith("gemma4") else 1.0
    for name, values in tensors.items():
        if "norm" in name or "scalar" in name:
            tensors[name] = (random.uniform(0.2, 3, values.shape) - offset).astype(np.float32)
    source = write_folder(tmp_path / "source", CONFIGS[family], tensors=tensors)
    found = vectors_of(packed(tmp_path / "packed", source, weights="q4"))
    wanted = expected(tensors, len(found) // (3 if "experts" in family else 2), offset)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], rtol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "gemma3n_text"])
def test_nothing_is_estimated_without_post_norms_or_over_several_streams(tmp_path: Path, family: str) -> None:
    source = write_folder(tmp_path / "source", CONFIGS[family])
    found = vectors_of(packed(tmp_path / "packed", source, weights="q4"))
    assert found
    assert all((values == 1).all() for values in found.values())


def test_other_formats_are_not_balanced(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"])
    for weights in ("f32", "bf16", "bf12", "q8"):
        assert vectors_of(packed(tmp_path / weights, source, weights=weights, embedding="q4")) == {}


def test_matrices_that_q4_holds_exactly_are_kept(tmp_path: Path) -> None:
    """In layer 0 one matrix of each group is Q4_0 in the file; in layers 1 and 2 all are Q8_0."""
    config, tensors = model_of("gemma3_text")
    kinds = typed(tensors, "Q8_0")
    exact = {"blk.0.attn_v.weight", "blk.0.ffn_up.weight", "blk.0.attn_output.weight"}
    kinds |= {name: typed({name: tensors[name]}, "Q4_0")[name] for name in exact}
    path = write_gguf(tmp_path / "model.gguf", metadata(config), kinds)
    for weights, rounded in (("q4", {"layers.1", "layers.2"}), ("auto", set())):
        found = vectors_of(packed(tmp_path / weights, path, weights=weights))
        changed = {name.rpartition(".")[0] for name, values in found.items() if (values != 1).any()}
        assert changed == rounded
        assert len(found) == (6 if weights == "q4" else 2)


def test_channels_that_matter_lose_less(tmp_path: Path) -> None:
    """A few channels are a hundred times as large as the others, as the norm before the matrices shows."""
    tensors = weights_of(CONFIGS["gemma3_text"])
    for name, values in tensors.items():
        if "input_layernorm" in name or "pre_feedforward" in name:
            values[:] = -0.9
            values[::16] = 9
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"], tensors=tensors)
    exact, balanced = (logits_of(source, weights=weights) for weights in ("f32", "q4"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemlet.packing.fill.balance_blocks", lambda files, builder: ())
        plain = logits_of(source, weights="q4")
    loss, before = (float(np.square(found - exact).mean()) for found in (balanced, plain))
    assert loss < 0.6 * before


def test_a_norm_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma3_text"])
    tensors[LAYER.format(1, "pre_feedforward_layernorm")][5] = np.nan
    source = write_folder(tmp_path / "source", CONFIGS["gemma3_text"], tensors=tensors)
    with pytest.raises(TensorError, match=r"pre_feedforward_layernorm.*NaN"):
        gemlet.load(source, weights="q4", threads=1)


def test_zeros_and_large_numbers_in_norms_do_no_harm(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma4_text"])
    for name, values in tensors.items():
        if "norm" in name:
            values[::3], values[1::3] = 0, 1e4
    source = write_folder(tmp_path / "source", CONFIGS["gemma4_text"], tensors=tensors)
    assert np.isfinite(logits_of(source, weights="q4")).all()
    for values in vectors_of(packed(tmp_path / "packed", source, weights="q4")).values():
        assert values.min() >= 1 / 16
        assert values.max() <= 16
