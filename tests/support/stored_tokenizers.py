"""Changes the tokenizer of a packed model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from support.tiny_models import read_header, with_header


def rewrite_stored(path: Path, changes: dict[str, bytes]) -> None:
    """Replaces tensors of ``tokenizer.safetensors``. The file has the SHA-256 of its new content."""
    old, data = read_header(path)
    metadata = old.pop("__metadata__")
    tensors = {name: bytes(data[slice(*entry["data_offsets"])]) for name, entry in old.items()} | changes
    digest = hashlib.sha256(metadata["vocabulary"].encode())
    for name in sorted(tensors):
        digest.update(f"{name} {len(tensors[name])} ".encode() + tensors[name])
    header: dict[str, Any] = {"__metadata__": metadata | {"sha256": digest.hexdigest()}}
    at = 0
    for name, content in tensors.items():
        dtype, size = ("U32", 4) if name == "ends" else ("U8", 1)
        entry = {"dtype": dtype, "shape": [len(content) // size], "data_offsets": [at, at + len(content)]}
        header[name] = entry
        at += len(content)
    path.write_bytes(with_header(json.dumps(header).encode(), b"".join(tensors.values())))
