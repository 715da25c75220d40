"""Tests with a trained model, the Gemma 3 270M of the README: token ids and greedy text must equal those of
llama.cpp, and the quality of each weight format has bounds.

These tests have the marker ``real`` and run if GEMLET_REAL_MODEL names the file. tests/data/make_real_ids.py
wrote llama.cpp's results. The bounds are above the figures in benchmarks/README.md.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import gemlet
from support.inside import core_of
from support.paths import DATA
from support.quality import quality

pytestmark = pytest.mark.real

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENS, EVERY = 512, 4
# The largest allowed mean KL divergence. If q4 rounded like llama.cpp's Q4_0, it would have 0.33.
KL = {
    "bf16": 3e-4,
    "bf12": 3e-4,
    "q8": 4e-3,
    "q4": 0.25,
    "q4k": 0.12,
    "auto": 3e-3,
}
WORST = {"bf16": 0.03, "bf12": 0.03, "q8": 0.1, "q4": 6.0, "q4k": 1.5, "auto": 0.1}


@pytest.fixture(scope="module")
def path() -> Path:
    file = Path(os.environ["GEMLET_REAL_MODEL"])
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, (
        f"GEMLET_REAL_MODEL: {file} is not the README's file"
    )
    return file


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    with lzma.open(DATA / "real_ids.json.xz", "rt", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


@pytest.fixture(scope="module")
def models(path: Path) -> Iterator[dict[str, gemlet.Model]]:
    with ExitStack() as stack:
        found = {name: stack.enter_context(gemlet.load(path, weights=name)) for name in ("f32", *KL)}
        int8 = gemlet.load(path, weights="f32", kv_cache="int8")
        yield {**found, "int8 cache": stack.enter_context(int8)}


@pytest.fixture(scope="module")
def measured(path: Path, models: dict[str, gemlet.Model]) -> dict[str, Any]:
    chunks = quality.read_chunks(path, quality.HELD_OUT, TOKENS, 1)
    cores = {name: core_of(model) for name, model in models.items()}
    found: dict[str, Any] = quality.measure(cores["f32"], cores, chunks, EVERY)
    return found


def test_token_ids_equal_those_of_llama_cpp(path: Path, expected: dict[str, Any]) -> None:
    tokenizer = gemlet.Tokenizer.from_file(path)
    for text, ids in expected["texts"]:
        assert tokenizer.encode(text) == ids, text
    heldout = tokenizer.encode(quality.HELD_OUT.read_text("utf-8"))
    assert heldout[: len(expected["heldout"])] == expected["heldout"]


def test_greedy_text_equals_that_of_llama_cpp(
    models: dict[str, gemlet.Model], expected: dict[str, Any]
) -> None:
    greedy = models["f32"].generate(
        expected["prompt"], max_tokens=len(expected["greedy"]), temperature=0, repetition_penalty=1
    )
    assert greedy.token_ids == expected["greedy"]


def test_perplexity_of_f32(measured: dict[str, Any]) -> None:
    assert measured["f32"].tokens == TOKENS // EVERY
    assert measured["f32"].perplexity == pytest.approx(29.89, rel=2e-3)


@pytest.mark.parametrize("weights", KL)
def test_divergence_from_f32(measured: dict[str, Any], weights: str) -> None:
    row = measured[weights]
    assert 0 < row.kl < KL[weights], row
    assert row.kl_worst < WORST[weights], row
    assert row.perplexity < measured["f32"].perplexity * (1 + KL[weights]) * 1.05, row


def test_a_decode_step_reads_as_many_bytes_as_the_file_has(
    path: Path, models: dict[str, gemlet.Model]
) -> None:
    """With ``weights="auto"``, the weights keep the formats of the file. The two sizes differ only by the row
    of the embedding table that a token reads, and by vectors."""
    assert core_of(models["auto"]).bytes_per_token() < 1.02 * path.stat().st_size


def test_divergence_with_an_int8_cache(measured: dict[str, Any]) -> None:
    row = measured["int8 cache"]
    assert 0 < row.kl < 3e-3, row
    assert row.kl_worst < 0.05, row
