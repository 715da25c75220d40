"""The places and contents of the golden folders, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .variants import VARIANTS, Variant
from .variants_embedding import EMBEDDING
from .variants_gemma3n import GEMMA3N
from .variants_gemma4 import GEMMA4

HERE = Path(__file__).parent
BY_NAME = {variant.name: variant for variant in (*VARIANTS, *GEMMA3N, *GEMMA4, *EMBEDDING)}
EMBEDDING_NAMES = tuple(variant.name for variant in EMBEDDING)
ALL_NAMES = tuple(name for name in BY_NAME if name not in EMBEDDING_NAMES)  # all models that write text
TOLERANCE = 2e-4  # the bound for float32, relative to a tap's largest magnitude
# Checkpoints whose logits with the exact GELU are in exact_gelu.safetensors.
EXACT_GELU = ("gemma2-2b", "gemma3n-e2b", "gemma4-e2b", "gemma4-26b-a4b")
NOT_TAPS = ("ids", "rows", "greedy", "embedding")


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a golden file.

    Only three dtypes occur. Tests should not use the reader that they test, so this function is separate.
    """
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    tensors: dict[str, NDArray[Any]] = {}
    for key, entry in json.loads(blob[8:start]).items():
        if key == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = {"F32": "<f4", "I64": "<i8", "U8": "u1"}[entry["dtype"]]
        tensors[key] = np.frombuffer(blob[start + begin : start + end], dtype).reshape(entry["shape"])
    return tensors


def with_exact_gelu(config: dict[str, Any]) -> dict[str, Any]:
    """A config that asks for the GELU with erf."""
    key = {"hidden_activation": "gelu"}
    if "text_config" in config:
        return {**config, "text_config": config["text_config"] | key}
    return config | key


def read_golden(name: str) -> dict[str, NDArray[Any]]:
    """golden.safetensors of one variant. If the file has every row, `rows` lists all of them."""
    golden = read_tensors(HERE / name / "golden.safetensors")
    golden.setdefault("rows", np.arange(len(golden["ids"])))
    return golden


def tap_errors(golden: dict[str, NDArray[Any]], taps: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Tap -> the largest difference, relative to the golden tap's largest magnitude."""
    rows, errors = golden["rows"], {}
    for name in golden.keys() - set(NOT_TAPS):
        expected = golden[name]
        errors[name] = float(np.abs(taps[name][rows] - expected).max() / np.abs(expected).max())
    return errors


def expected_taps(variant: Variant) -> tuple[str, ...]:
    """The names of the taps that csrc/MODEL.md defines for a variant's model, in order of computation."""
    text = variant.config.get("text_config", variant.config)
    streams = range(1, text.get("altup_num_inputs", 4) if text["model_type"] == "gemma3n_text" else 1)
    inside = ["attention", "mlp"]
    inside += ["moe"] if text.get("enable_moe_block") else []
    inside += ["output", *(f"stream.{k}" for k in streams)]
    before = ["per_layer_inputs"] if text.get("hidden_size_per_layer_input") else []
    before += [f"stream.{k}" for k in streams]
    layers = (f"layers.{index}.{tap}" for index in range(text["num_hidden_layers"]) for tap in inside)
    after = ["final_norm"] + (["logits"] if variant.dense is None else [])
    return ("embed", *before, *layers, *after)
