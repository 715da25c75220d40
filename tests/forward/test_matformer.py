"""MatFormer: a model that is cut while it loads has the bits of a model whose weights were cut and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.checkpoint.tensor_files import OpenFiles
from gemlet.cli import main
from gemlet.config import parse_config, shape_config
from gemlet.config.matformer import cut_config
from gemlet.errors import InvalidRequestError, UnsupportedError
from golden.folders import BY_NAME, HERE
from support.gguf_models import convert_tensors, metadata, typed, write_gguf
from support.tiny_models import CONFIGS, IDS, logits_of, weights_of, write_folder

pytestmark = pytest.mark.tier

GLOBAL, LOCAL = "full_attention", "sliding_attention"
# 8 layers, of which the last 4 read the keys of layers 2 (local) and 3 (global).
LARGE = CONFIGS["gemma3n_text"] | {
    "num_hidden_layers": 8,
    "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL] * 2,
    "num_kv_shared_layers": 4,
    "activation_sparsity_pattern": [0.95, 0.9, 0.5, 0, 0, 0, 0.5, 0],
}


def cut_and_save(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, NDArray[Any]],
    widths: list[int],
    skipped: list[int],
) -> Path:
    """Cuts the whole checkpoint in NumPy, as MatFormer Lab does (google-gemini/gemma-cookbook)."""
    layers = config["num_hidden_layers"]
    kept = [i for i in range(layers) if i not in skipped]
    cut: dict[str, NDArray[Any]] = {}
    for name, values in tensors.items():
        if ".layers." in name:
            before, _, rest = name.partition(".layers.")
            index, _, part = rest.partition(".")
            if int(index) not in kept:
                continue
            place = kept.index(int(index))
            name = f"{before}.layers.{place}.{part}"
            if part.startswith(("mlp.gate_proj", "mlp.up_proj")):
                values = values[: widths[place]]
            elif part.startswith("mlp.down_proj"):
                values = values[:, : widths[place]]
        elif name.endswith("per_layer_model_projection.weight"):
            values = values.reshape(layers, -1, values.shape[1])[kept].reshape(-1, values.shape[1])
        elif name.endswith("embed_tokens_per_layer.weight"):
            values = values.reshape(len(values), layers, -1)[:, kept].reshape(len(values), -1)
        cut[name] = np.ascontiguousarray(values)
    first = layers - config["num_kv_shared_layers"]
    small = config | {
        "num_hidden_layers": len(kept),
        "intermediate_size": widths,
        "layer_types": [config["layer_types"][i] for i in kept],
        "activation_sparsity_pattern": [config["activation_sparsity_pattern"][i] for i in kept],
        "num_kv_shared_layers": sum(i >= first for i in kept),
    }
    return write_folder(folder, small, tensors=cut)


CASES: list[tuple[Any, list[int], list[int]]] = [
    (48, [48] * 8, []),
    ([96, 95, 64, 33, 32, 17, 16, 1], [96, 95, 64, 33, 32, 17, 16, 1], []),
    ({"skip_layers": [4, 5, 6, 7]}, [96] * 4, [4, 5, 6, 7]),
    ({"skip_layers": (5,), "intermediate_size": 40}, [40] * 7, [5]),
    (
        {"skip_layers": range(0, 7, 6), "intermediate_size": [96, 20, 96, 80, 64, 7]},
        [96, 20, 96, 80, 64, 7],
        [0, 6],
    ),
    ({"skip_layers": [3, 7]}, [96] * 6, [3, 7]),
]


# Every case with f32 and with one format more.
@pytest.mark.parametrize(
    ("matformer", "widths", "skipped", "weights"),
    [(*case, "f32") for case in CASES]
    + [
        (*case, weights)
        for case, weights in zip(CASES, ("bf16", "bf12", "q8", "q4", "bf12", "q4"), strict=True)
    ],
)
def test_a_cut_model_equals_the_model_that_was_cut_and_saved(
    tmp_path: Path, matformer: Any, widths: list[int], skipped: list[int], weights: str
) -> None:
    tensors = weights_of(LARGE)
    large = write_folder(tmp_path / "large", LARGE, tensors=tensors)
    small = cut_and_save(tmp_path / "small", LARGE, tensors, widths, skipped)
    expected = logits_of(small, weights=weights)
    np.testing.assert_array_equal(logits_of(large, weights=weights, matformer=matformer), expected)
    assert not np.array_equal(logits_of(large, weights=weights), expected)
    with (
        gemlet.load(large, weights=weights, matformer=matformer) as one,
        gemlet.load(small, weights=weights) as two,
    ):
        assert one.config == two.config
        assert one.memory() == two.memory()
    packed = tmp_path / "packed"
    gemlet.convert(large, packed, weights=weights, matformer=matformer, threads=1)
    with gemlet.load(packed, threads=1) as loaded:
        assert loaded.config == one.config
        np.testing.assert_array_equal(loaded.logits(IDS), expected)


def test_cuts_of_other_files_are_converted(tmp_path: Path) -> None:
    """Keys in text_config or with default values, GGUF, a merged adapter, and a model that cannot be cut."""
    whole = LARGE | {"num_hidden_layers": 12, "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL] * 3}
    del whole["activation_sparsity_pattern"]
    tensors = weights_of(whole)
    matformer = {"skip_layers": [0, 1, 9], "intermediate_size": 40}
    text = {key: value for key, value in whole.items() if key != "model_type"}
    outer = {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", **text}}
    nested = write_folder(tmp_path / "nested", outer, tensors=weights_of(whole, "model.language_model."))
    gguf = write_gguf(tmp_path / "some.gguf", metadata(whole), typed(convert_tensors(whole, tensors), "BF16"))
    for source, weights in ((nested, "f32"), (nested, "q4"), (gguf, "q8")):
        expected = logits_of(source, weights=weights, matformer=matformer)
        made = tmp_path / f"{source.name}-{weights}"
        gemlet.convert(source, made, weights=weights, matformer=matformer, threads=1)
        np.testing.assert_array_equal(logits_of(made), expected)
        found, cut = gemlet.inspect(made), gemlet.inspect(source, weights=weights, matformer=matformer)
        assert found.config == cut.config
        assert (found.parameters, found.plan.on_disk) == (cut.parameters, cut.plan.on_disk)
        assert (made / "model.safetensors").stat().st_size < source_size(source)
    blocks = write_gguf(tmp_path / "q8.gguf", metadata(whole), typed(convert_tensors(whole, tensors), "Q8_0"))
    with pytest.raises(UnsupportedError, match="matformer: quantized weights cannot be cut"):
        gemlet.convert(blocks, tmp_path / "none", matformer=matformer, threads=1)
    with pytest.raises(InvalidRequestError, match="expected 'E2B', a width"):
        gemlet.convert(nested, tmp_path / "none", matformer="E5B", threads=1)
    assert sorted(path.name for path in tmp_path.iterdir() if "none" in path.name) == []


def source_size(source: Path) -> int:
    return (source / "model.safetensors" if source.is_dir() else source).stat().st_size


def test_the_command_line_converts_a_cut(tmp_path: Path) -> None:
    folder, made = HERE / "gemma3n-e4b", tmp_path / "small"
    assert main(["convert", str(folder), str(made), "--weights", "q8", "--matformer", "16"]) == 0
    expected = gemlet.inspect(folder, weights="q8", matformer=16)
    assert gemlet.inspect(made).config == expected.config


@pytest.mark.parametrize("block_bytes", [1, 6000])
def test_blocks_of_any_size_give_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    large = write_folder(tmp_path, LARGE)
    matformer = {"skip_layers": [5], "intermediate_size": [96, 33, 48, 70, 20, 17, 90]}
    whole = logits_of(large, matformer=matformer)
    monkeypatch.setattr("gemlet.packing.blocks._BLOCK_BYTES", block_bytes)
    np.testing.assert_array_equal(logits_of(large, matformer=matformer), whole)


def test_a_cut_checkpoint_agrees_with_the_official_implementation(tmp_path: Path) -> None:
    config = dict(BY_NAME["gemma3n-e4b"].config)
    with Checkpoint(HERE / "gemma3n-e4b") as checkpoint:
        tensors = {name: checkpoint.read(name)[0] for name in checkpoint.tensors}
    assert {values.dtype for values in tensors.values()} == {np.dtype(np.float32)}
    widths = [44, 40, 31, 16, 8]
    small = cut_and_save(tmp_path, config, tensors, widths, [2])
    matformer = {"intermediate_size": widths, "skip_layers": [2]}
    found = logits_of(HERE / "gemma3n-e4b", weights="f32", matformer=matformer)
    np.testing.assert_array_equal(found, logits_of(small, weights="f32"))


def test_parts_that_are_cut_away_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values beyond the cut may be anything. Rows beyond the cut are not read from the file."""
    tensors = weights_of(LARGE)
    clean = write_folder(tmp_path / "clean", LARGE, tensors=tensors)
    for name, values in tensors.items():
        if "layers.5." in name:
            values[...] = np.nan
        elif "mlp.gate_proj" in name or "mlp.up_proj" in name:
            values[48:] = np.nan
        elif "mlp.down_proj" in name:
            values[:, 48:] = np.nan
        elif "embed_tokens_per_layer" in name:
            values[:, 40:48] = np.nan
        elif "per_layer_model_projection" in name:
            values[40:48] = np.nan
    spoiled = write_folder(tmp_path / "spoiled", LARGE, tensors=tensors)
    matformer = {"intermediate_size": 48, "skip_layers": [5]}
    read: list[int] = []
    fill = OpenFiles.fill

    def counting(self: OpenFiles, file: str, begin: int, buffer: memoryview, what: str) -> None:
        read.append(len(buffer) if "gate_proj" in what else 0)
        fill(self, file, begin, buffer, what)

    monkeypatch.setattr(OpenFiles, "fill", counting)
    found = logits_of(spoiled, weights="f32", matformer=matformer)
    assert sum(read) == 7 * 48 * 64 * 4
    np.testing.assert_array_equal(found, logits_of(clean, weights="f32", matformer=matformer))


def test_the_cut_named_e2b_has_the_published_shape() -> None:
    small, kept = cut_config(shape_config("gemma3n-e4b"), "E2B")
    assert small == shape_config("gemma3n-e2b")
    assert kept == (*range(20), *range(25, 35))


@pytest.mark.parametrize(
    ("matformer", "message"),
    [
        ("E3B", r"matformer is 'E3B'; expected 'E2B', a width"),
        ("E2B", r"cut from 35 layers of width 16384 \(E4B\); this model has 8 layers, the first 96 wide"),
        ({}, r"matformer is \{\}; expected 'E2B'"),
        ({"widths": 3}, r"matformer is \{'widths': 3\}; expected 'E2B'"),
        ([96] * 7, r"7 widths for the 8 layers that are kept"),
        ({"intermediate_size": [96] * 8, "skip_layers": [5]}, r"8 widths for the 7 layers that are kept"),
        ([], r"0 widths for the 8 layers"),
        (0, r"width 0 for layer 0; expected 1 to its own, 96"),
        ([96] * 7 + [97], r"width 97 for layer 7; expected 1 to its own, 96"),
        (48.0, r"intermediate_size is 48\.0; expected integers"),
        ([True] * 8, r"intermediate_size is \[True.*; expected integers"),
        ({"skip_layers": ["5"]}, r"skip_layers is \['5'\]; expected integers"),
        ({"skip_layers": [8]}, r"skip_layers has layer 8; expected 0 to 7"),
        ({"skip_layers": [-1]}, r"skip_layers has layer -1; expected 0 to 7"),
        ({"skip_layers": range(8)}, r"skip_layers leaves no layer"),
        ({"skip_layers": [2]}, r"skip_layers has layer 2, whose keys and values layer 4 reads"),
        ({"skip_layers": [3]}, r"skip_layers has layer 3, whose keys and values layer 7 reads"),
    ],
)
def test_impossible_cuts_are_refused(matformer: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        cut_config(parse_config(LARGE, where="config.json"), matformer)


@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "gemma4_text"])
def test_other_families_cannot_be_cut(tmp_path: Path, family: str) -> None:
    folder = write_folder(tmp_path, CONFIGS[family])
    with pytest.raises(
        UnsupportedError, match=r"matformer: a gemma\d? model is not a MatFormer; only Gemma 3n is"
    ):
        gemlet.load(folder, matformer=48)
