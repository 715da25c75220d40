"""Packed models with false contents. They are refused or do no harm."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.errors import ModelFileError, TensorError
from support.tiny_models import CONFIGS, IDS, read_header, with_header, write_folder

Change = Callable[[dict[str, Any], bytearray], object]


def describe(header: dict[str, Any], **entries: Any) -> None:
    described = json.loads(header["__metadata__"]["gemlet_tensors"])
    described |= entries
    kept = {name: entry for name, entry in described.items() if entry is not None}
    header["__metadata__"]["gemlet_tensors"] = json.dumps(kept)


def shorten(header: dict[str, Any], data: bytearray) -> None:
    """The last tensor loses its last 64 bytes."""
    name = list(header)[-1]
    begin, end = header[name]["data_offsets"]
    header[name] |= {"data_offsets": [begin, end - 64], "shape": [end - 64 - begin]}
    del data[-64:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda header, data: header["__metadata__"].update(gemlet_format="3"),
            ModelFileError,
            "packed model of format '3', written by gemlet '.*reads. Convert the original again",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_layout="99"),
            ModelFileError,
            "of layout '99'",
        ),
        (
            lambda header, data: header["__metadata__"].pop("gemlet_layout"),
            ModelFileError,
            "of layout None",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_weights="q3"),
            ModelFileError,
            "gemlet_weights is 'q3'",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_tensors="[" * 100_000),
            ModelFileError,
            "gemlet_tensors is .*expected an object that maps",
        ),
        (
            lambda header, data: header["__metadata__"].update(gemlet_tensors='{"a": 1}'),
            ModelFileError,
            "gemlet_tensors is .*expected an object that maps",
        ),
        (
            lambda header, data: describe(header, final_norm=["q9", [64]]),
            ModelFileError,
            "gives 'final_norm' the format 'q9'",
        ),
        (
            lambda header, data: describe(header, **{"layers.0.q_proj": ["q4", [64, 128]]}),
            TensorError,
            r"'layers.0.q_proj' has shape \[64, 128\]; expected \[128, 64\]",
        ),
        (
            lambda header, data: describe(header, **{"layers.0.q_proj": ["q8", [128, 64]]}),
            TensorError,
            r"'layers.0.q_proj' has 4608 bytes, expected 8704: \[128, 64\] as packed q8",
        ),
        (
            lambda header, data: describe(header, final_norm=None),
            TensorError,
            r"'final_norm' has shape \[\]; expected \[64\]",
        ),
        (
            lambda header, data: header.update(surprise=header.pop("final_norm")),
            TensorError,
            "'final_norm' is missing",
        ),
        (
            lambda header, data: header.update(
                surprise={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
            ),
            TensorError,
            "unexpected tensor 'surprise'",
        ),
        (
            lambda header, data: header["final_norm"].update(dtype="I8"),
            TensorError,
            "'final_norm' is I8 .*expected U8 at a multiple of 64",
        ),
        (shorten, TensorError, r"has \d+ bytes, expected \d+: \["),
        (
            lambda header, data: data.pop(),
            ModelFileError,
            "The file is cut short, or its header is wrong",
        ),
    ],
)
def test_wrong_headers_are_refused(
    packed: Path, tmp_path: Path, change: Change, error: type[Exception], message: str
) -> None:
    header, data = read_header(packed / "model.safetensors")
    changed = bytearray(data)
    change(header, changed)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(with_header(text, bytes(changed)))
    with pytest.raises(error, match=message):
        gemlet.load(tmp_path, threads=1)


def test_data_that_is_not_aligned(packed: Path, tmp_path: Path) -> None:
    header, data = read_header(packed / "model.safetensors")
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64 + 4)
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(with_header(text, data))
    with pytest.raises(TensorError, match=r"is U8 at byte \d+; expected U8 at a multiple of 64"):
        gemlet.load(tmp_path, threads=1)


def test_a_config_that_does_not_fit_the_tensors_is_refused(packed: Path, tmp_path: Path) -> None:
    for name, changes, message in (
        ("layers", {"num_hidden_layers": 4}, r"tensor 'layers\.3\.pre_attention_norm' is missing"),
        ("fewer", {"num_hidden_layers": 2}, r"unexpected tensor 'layers\.2\."),
        ("wider", {"intermediate_size": 128}, r"'layers\.0\.gate_proj' has shape \[96, 64\]"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        os.link(packed / "model.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIGS["gemma3_text"] | changes))
        with pytest.raises(TensorError, match=message):
            gemlet.load(folder, threads=1)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma3n_text", "gemma4_experts"])
@pytest.mark.parametrize("weights", ["bf16", "bf12", "q8", "q4"])
def test_any_bits_as_weights_do_no_harm(tmp_path: Path, family: str, weights: str) -> None:
    """When a packed file is mapped, only the vectors that balance channels are checked. The other values may
    be anything, and NaN ends in an error.
    """
    source = write_folder(tmp_path / "source", CONFIGS[family], bf16=True)
    gemlet.convert(source, tmp_path / "packed", weights=weights, threads=1)
    path = tmp_path / "packed" / "model.safetensors"
    _, data = read_header(path)
    begin = path.stat().st_size - len(data)
    random = np.random.default_rng(0)
    for fill in (b"\xff", b"\x7f", None):
        with open(path, "r+b") as file:
            file.seek(begin)
            file.write(random.bytes(len(data)) if fill is None else fill * len(data))
        with contextlib.suppress(TensorError), gemlet.load(tmp_path / "packed", threads=1) as model:
            finite = np.isfinite(
                model.logits(IDS)[-1]
            ).all()  # rows of the per-layer table are checked when they are read
            with contextlib.nullcontext() if finite else pytest.raises(gemlet.GemletError, match="NaN"):
                model.generate(IDS, max_tokens=2)
