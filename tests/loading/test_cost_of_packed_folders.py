"""Packed folders that could take much memory or time: refusing one costs a small multiple of its size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gemlet
from support.costs import refused
from support.stored_tokenizers import rewrite_stored
from support.tiny_models import read_header, with_header

MB = 1 << 20
BRACKETS = '{"a":[' + "[]," * (2 * MB // 3) + "[]]}"

STORED: dict[str, tuple[dict[str, bytes], str]] = {
    "empty pieces": ({"model": b"\x0a\x00" * MB}, "records in an unusual layout"),
    "pieces without scores": ({"model": b"\x0a\x03\x0a\x01a" * (MB // 4)}, "records in an unusual layout"),
    "unknown fields": ({"model": b"\x98\x06\x00" * MB}, "records in an unusual layout"),
    "one endless number": ({"model": b"\xff" * MB}, "broken protocol buffer"),
    "merges in brackets": ({"merges": BRACKETS.encode()}, "would take about"),
    "ids without ends": ({"types": b"\x01" * MB}, "ends has"),
    "ends that do not rise": ({"types": b"\x01" * MB, "ends": b"\xff" * 4 * MB}, "do not rise"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The packed demo model."""
    gemlet.convert(None, tmp_path / "packed", weights="q4", threads=1)
    return tmp_path / "packed"


def size_of(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names)


@pytest.mark.parametrize(("tensors", "message"), STORED.values(), ids=STORED)
def test_stored_tokenizers(folder: Path, tensors: dict[str, bytes], message: str) -> None:
    """The file has the right SHA-256, which anybody can compute."""
    rewrite_stored(folder / "tokenizer.safetensors", tensors)
    size = size_of(folder, "tokenizer.safetensors", "config.json")
    refused(lambda: gemlet.load(folder, threads=1), size, message)


def test_a_tokenizer_in_a_hole(folder: Path) -> None:
    path = folder / "tokenizer.safetensors"
    header, _ = read_header(path)
    sizes = {"pieces": 200 * MB, "ends": 16 * MB, "types": 4 * MB, "model": 30 * MB}
    text = with_header(json.dumps(described(header["__metadata__"], sizes)).encode(), b"")
    path.write_bytes(text)
    os.truncate(path, len(text) + sum(sizes.values()))
    refused(lambda: gemlet.load(folder, threads=1), len(text), "is larger than a tokenizer")


def described(metadata: Any, sizes: dict[str, int]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    return header


Change = Callable[[dict[str, Any]], object]
HEADERS: dict[str, tuple[Change, str]] = {
    "formats in brackets": (
        lambda header: header["__metadata__"].update(gemlet_tensors=BRACKETS),
        "would take about",
    ),
    "many short keys": (
        lambda header: header["__metadata__"].update({f"{i:x}": "" for i in range(300_000)}),
        "would take about",
    ),
    "many empty tensors": (
        lambda header: header.update(
            {f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}
        ),
        "tensors",
    ),
    "a shape of many ones": (
        lambda header: header["final_norm"].update(shape=[1] * 1_000_000),
        "would take about|dimensions|shape",
    ),
}


@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_headers(folder: Path, change: Change, message: str) -> None:
    path = folder / "model.safetensors"
    header, data = read_header(path)
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(with_header(text + b" " * (-(8 + len(text)) % 64), data))
    refused(lambda: gemlet.load(folder, threads=1), len(text), message)


def test_weights_in_a_hole(folder: Path) -> None:
    """A config and a header that promise hundreds of gigabytes, in a file that takes no room on the disk."""
    config = json.loads((folder / "config.json").read_text())
    wide = config | {"intermediate_size": 1 << 19}
    (folder / "config.json").write_text(json.dumps(wide))
    header, _ = read_header(folder / "model.safetensors")
    names = [name for name in header if name != "__metadata__"]
    text = json.dumps(described(header["__metadata__"], dict.fromkeys(names, 1 << 33))).encode()
    path = folder / "model.safetensors"
    path.write_bytes(with_header(text + b" " * (-(8 + len(text)) % 64), b""))
    os.truncate(path, path.stat().st_size + len(names) * (1 << 33))
    refused(lambda: gemlet.load(folder, threads=1), len(text), "has shape|bytes, expected")
