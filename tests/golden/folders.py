"""Where the golden folders are and what is in them, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .variants import VARIANTS, Variant

HERE = Path(__file__).parent
BY_NAME = {variant.name: variant for variant in VARIANTS}
NAMES = tuple(BY_NAME)
TOLERANCE = 2e-4  # of a tap's largest magnitude, float32
NOT_TAPS = ("ids", "rows", "greedy")


def read_golden(name: str) -> dict[str, NDArray[Any]]:
    """golden.safetensors of one variant; `rows` is filled in where the file keeps every row.

    Written out here, as only two dtypes occur and the tests should not rest on the reader they test.
    """
    blob = (HERE / name / "golden.safetensors").read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    golden: dict[str, NDArray[Any]] = {}
    for key, entry in json.loads(blob[8:start]).items():
        begin, end = entry["data_offsets"]
        dtype = {"F32": "<f4", "I64": "<i8"}[entry["dtype"]]
        golden[key] = np.frombuffer(blob[start + begin : start + end], dtype).reshape(entry["shape"])
    golden.setdefault("rows", np.arange(len(golden["ids"])))
    return golden


def tap_errors(golden: dict[str, NDArray[Any]], taps: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Tap -> largest difference relative to the golden tap's largest magnitude."""
    rows, errors = golden["rows"], {}
    for name in golden.keys() - set(NOT_TAPS):
        expected = golden[name]
        errors[name] = float(np.abs(taps[name][rows] - expected).max() / np.abs(expected).max())
    return errors


def expected_taps(variant: Variant) -> tuple[str, ...]:
    """The tap names csrc/MODEL.md asks of a variant's model, in order of computation."""
    text = variant.config.get("text_config", variant.config)
    layers = range(text["num_hidden_layers"])
    inside = (f"layers.{index}.{tap}" for index in layers for tap in ("attention", "mlp", "output"))
    return ("embed", *inside, "final_norm", "logits")
