"""Checkpoints of published sizes with random weights, on disk: gigabytes, written in seconds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gemlet.config import SHAPES, parse_config
from gemlet.weights.hf_names import PREFIXES, tensor_name
from gemlet.weights.slots import PER_LAYER_TABLE, expected_slots

_BLOCK = 1 << 26  # bytes of random weights, which repeat


def write_real_shape(folder: Path, shape: str) -> None:
    """``shape`` ("gemma4-e2b") as a Hugging Face folder in bfloat16. The per-layer table is a hole in the
    file but for its first row: it takes no disk, and a read from it goes through the file all the same."""
    header, start = _write_header(folder, shape)
    random = np.random.default_rng(0)
    # Both signs of 2^-8 to 2^-5: every activation stays finite.
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
    """The same with a hole in the place of all weights: zeros that take no disk."""
    _write_header(folder, shape)


def _write_header(folder: Path, shape: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Writes a file of the full size with nothing but its header; also says where the data begins."""
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
