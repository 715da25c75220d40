"""Small files that could take much memory or time: reading such a file costs a small multiple of its size."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

import gemlet
from gemlet import Tokenizer
from gemlet.base.strict_json import parse_json_object
from support.costs import refused

MB = 1 << 20


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def test_gguf_of_empty_arrays_in_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    path.write_bytes(header + struct.pack("<I", 9) + struct.pack("<IQ", 9, 350_000))
    os.truncate(path, path.stat().st_size + 12 * 350_000)
    refused(lambda: gemlet.load(path), 12 * 350_000, "more than 4096 arrays in arrays")


@pytest.mark.parametrize(
    ("record", "in_settings"),
    [
        (b"\x0a\x00", False),  # an empty piece
        (b"\x0a\x03\x0a\x01a", False),  # a piece without a score
        (b"\x98\x06\x00", False),  # an unknown field
        (b"\x98\x06\x00", True),
    ],
)
def test_tokenizer_models_of_tiny_records(tmp_path: Path, record: bytes, in_settings: bool) -> None:
    body = record * 500_000
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\x12" + varint(len(body)) + body if in_settings else body)
    refused(lambda: Tokenizer.from_file(path), 8 * MB, "records in an unusual layout")


@pytest.mark.parametrize("item", ["[]", "{}", '""', "[[[[1]]]]", '["a","b"]', '{"a":1}'])
def test_json_that_would_grow(item: str) -> None:
    data = ('{"a":[' + ",".join([item] * (8 * MB // (len(item) + 1))) + "]}").encode()
    refused(
        lambda: parse_json_object(data, where="x.json", error=gemlet.TokenizerError),
        len(data),
        "would take about .* bytes of memory",
    )


def test_json_with_many_short_keys() -> None:
    data = ("{" + ",".join(f'"{i:x}":1' for i in range(2_000_000)) + "}").encode()
    refused(
        lambda: parse_json_object(data, where="x.json", error=gemlet.TokenizerError), len(data), "would take"
    )


@pytest.mark.slow
def test_json_as_large_as_a_real_tokenizer_is_read() -> None:
    """Makes as many pieces and merges as Gemma 4 has, of the same average length, without white space."""
    vocab = ",".join(f'"piece{i}":{i}' for i in range(262_144))
    merges = ",".join(f'["pie{i}","ce"]' for i in range(514_906))
    data = f'{{"model":{{"vocab":{{{vocab}}},"merges":[{merges}]}}}}'.encode()
    assert len(data) < 20 * MB
    parsed = parse_json_object(data, where="x.json", error=gemlet.TokenizerError)
    assert len(parsed["model"]["vocab"]) == 262_144
