"""Writes checkpoints in the sizes of the published models with random weights. They have gigabytes, but are
written in seconds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gemlet.config import SHAPES, parse_config
from gemlet.weights.hf_names import PREFIXES, tensor_name
from gemlet.weights.slots import PER_LAYER_TABLE, expected_slots

_BLOCK = 1 << 26  # the size in bytes of a block of random weights, which the files repeat


def write_real_shape(folder: Path, shape: str) -> None:
    """Writes ``shape``, for example "gemma4-e2b", as a Hugging Face folder in bfloat16. The table of
    per-layer embeddings is a hole in the file except for its first row, so it takes almost no disk space."""
    header, start = _write_header(folder, shape)
    random = np.random.default_rng(0)
    # Values of both signs from 2^-8 to 2^-5, so that every activation stays finite.
    bits = random.integers(0x3B80, 0x3D00, _BLOCK // 2, dtype=np.uint16)
    block = memoryview((bits | (random.integers(0, 2, bits.size, dtype=np.uint16) << 15)).tobytes())
    with open(folder / "model.safetensors", "r+b") as file:
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            left = 2 * entry["shape"][1] if PER_LAYER_TABLE in name else end - begin
            file.seek(start + begin)
            while left > 0:
                left -= file.write(block[: min(left, _BLOCK)])


def write_real_shape_hole(folder: Path, shape: str) -> None:
    """Like :func:`write_real_shape`, but all weights are a hole in the file: zeros that take no disk
    space."""
    _write_header(folder, shape)


def _write_header(folder: Path, shape: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Writes a file of the full size with a header and a hole. Returns the header and the offset of the
    data."""
    config = parse_config(SHAPES[shape], where=shape)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
    prefix, head = PREFIXES[0]
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for slot, dims in expected_slots(config).items():
        begin, end = end, end + 2 * int(np.prod(dims, dtype=np.int64))
        name = tensor_name(slot, config.family, prefix, head)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + end)
    return header, start
