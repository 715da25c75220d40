"""LoRA adapters give the results of transformers + PEFT, and each request can have its own adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.adapters.terms import is_norm
from gemlet.checkpoint.tensor_files import numbers
from gemlet.sources.opening import open_model_files
from gemlet.weights.tower_slots import in_tower
from golden.folders import HERE, TOLERANCE, read_tensors
from support.adapters import (
    ADAPTERS,
    MERGED_ONLY,
    NAMES,
    ON_270M,
    Floats,
    base_of,
    read_golden,
    write_adapter,
)
from support.core_models import int32
from support.feeding import REORDERED, difference
from support.inside import context_of, core_adapter, core_of, testing

pytestmark = pytest.mark.tier


@pytest.fixture
def adapted() -> Iterator[gemlet.Model]:
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=1) as model:
        for name in ON_270M:
            model.load_adapter(ADAPTERS / name)
        yield model


# --- The official results -----------------------------------------------------------------------------------
def test_every_golden_adapter_is_there() -> None:
    assert len(NAMES) == 48
    assert len(ON_270M) == 25


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers_and_peft(name: str, tmp_path: Path) -> None:
    ids, expected = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        adapter = model.load_adapter(ADAPTERS / name)
        assert adapter.name == name
        beside = model.logits(ids, adapter=name)
        assert difference(beside, expected) < TOLERANCE
        assert (
            difference(model.logits(ids), expected) > 0.05
        )  # the model without the adapter gives other logits
    if name == "gemma3-bias":  # PEFT cannot merge it either
        with pytest.raises(gemlet.UnsupportedError, match=r"lora_bias.*load_adapter"):
            gemlet.load(base_of(name), threads=1, merge_adapter=ADAPTERS / name)
        return
    with merged_model(name, tmp_path) as merged:
        assert difference(merged.logits(ids), expected) < TOLERANCE
        assert difference(merged.logits(ids), beside) < REORDERED


def merged_model(name: str, folder: Path) -> gemlet.Model:
    """A model in f32 with the adapter merged. A table that stays in its file changes only in a new file."""
    base, path = base_of(name), ADAPTERS / name
    options: dict[str, Any] = {"weights": "f32", "threads": 1, "merge_adapter": path}
    if "-table-" not in name or name.startswith("gemma3-"):
        return gemlet.load(base, **options)
    for cache in (False, True):
        with pytest.raises(gemlet.UnsupportedError, match=r"per-layer embeddings.*gemlet\.convert"):
            gemlet.load(base, **options, cache=cache)
    gemlet.convert(base, folder / "packed", **options)
    return gemlet.load(folder / "packed", threads=1)


@pytest.mark.parametrize("name", MERGED_ONLY)
def test_an_adapter_that_can_only_be_merged(name: str, tmp_path: Path) -> None:
    ids, expected = read_golden(name)
    with merged_model(name, tmp_path) as merged:
        assert difference(merged.logits(ids), expected) < TOLERANCE
    reasons = {"gemma3-modules": r"k_proj\.weight' replaces", "gemma4-table-dora": "is DoRA on a table"}
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        with pytest.raises(gemlet.UnsupportedError, match=f"{reasons[name]}.*merge_adapter="):
            model.load_adapter(ADAPTERS / name)
        assert not model.adapters


@pytest.mark.parametrize("base", ["gemma3-270m", "gemma3n-e2b", "gemma4-e2b", "gemma4-26b-a4b"])
@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
def test_norms_are_balanced_as_those_of_the_model(base: str, kv_cache: str, tmp_path: Path) -> None:
    """With q4, some norms are divided by the vectors that multiply columns, and the norms of keys by factors.
    An adapter with the model's own norms changes no bit."""
    with open_model_files(HERE / base) as files:
        norms = {name: slot for name, slot in files.slots.items() if is_norm(slot) and not in_tower(slot)}
        tensors = {
            f"base_model.model.{name.removesuffix('weight')}ln_tuning_layers.weight": numbers(
                *files.checkpoint.read(name)
            ).astype(np.float32)
            for name in norms
        }
    modules = [name.removesuffix(".weight") for name in norms]
    path = write_adapter(tmp_path / "own", {"peft_type": "LN_TUNING", "target_modules": modules}, tensors)
    with gemlet.load(HERE / base, weights="q4", kv_cache=kv_cache, threads=1) as model:
        model.load_adapter(path)
        ids = [2, 5, 6, 20, *range(30, 43)]
        np.testing.assert_array_equal(model.logits(ids, adapter="own"), model.logits(ids))


@pytest.mark.parametrize(("weights", "bound"), [("bf16", 0.05), ("q8", 0.2)])
def test_adapters_beside_rounded_weights(weights: str, bound: float) -> None:
    """The error is about as large as without the adapter, from rounded weights. The adapter changes the
    logits by 139 %."""
    ids, expected = read_golden("gemma3-plain")
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=1) as exact:
        plain = exact.logits(ids)
    path = ADAPTERS / "gemma3-plain"
    with gemlet.load(HERE / "gemma3-270m", weights=weights, threads=1) as model:
        model.load_adapter(path)
        alone = difference(model.logits(ids), plain)
        assert difference(model.logits(ids, adapter=path.name), expected) < min(2 * alone, bound)
    with gemlet.load(HERE / "gemma3-270m", weights=weights, threads=1, merge_adapter=path) as merged:
        assert merged.weights == weights
        assert difference(merged.logits(ids), expected) < min(2 * alone, bound)


# --- Several adapters, each request with its own ------------------------------------------------------------
def test_interleaved_sequences_keep_their_adapters(adapted: gemlet.Model) -> None:
    """The sequences are fed alternately. Each sequence has the same bits as when it runs alone."""
    ids, _ = read_golden("gemma3-plain")
    names = [*ON_270M, None]
    sequences = [context_of(adapted, name) for name in names]
    rows: list[list[Floats]] = [[] for _ in names]
    at = 0
    for piece in (7, 1, 1, 9, 1, 5):
        for sequence, found in zip(sequences, rows, strict=True):
            sequence.extend(int32(*ids[at : at + piece]), logits="all")
            found.append(sequence.logits())
        at += piece
    for name, found in zip(names, rows, strict=True):
        alone = adapted.logits(ids, adapter=name)
        np.testing.assert_array_equal(np.concatenate(found), alone, err_msg=str(name))
        if name is not None:
            assert difference(alone, read_golden(name)[1]) < TOLERANCE or ids != read_golden(name)[0]


# Fewer than 16 rows in all, or at least 16 rows of each request. From 16 rows on, other kernels are used.
@pytest.mark.parametrize("counts", [(4, 3, 1, 2, 1, 4), (17, 16, 24, 16, 20, 24)], ids=["few", "many"])
@pytest.mark.parametrize("base", ["gemma3-270m", "gemma3n-e2b", "gemma4-e2b"])
@pytest.mark.parametrize("weights", ["f32", "q4"])
def test_one_forward_pass_serves_several_adapters(base: str, weights: str, counts: tuple[int, ...]) -> None:
    names = [name for name in NAMES if base_of(name).name == base][:2]
    with gemlet.load(HERE / base, weights=weights, threads=2, exact_batches=True) as model:
        for name in names:
            model.load_adapter(ADAPTERS / name)
        ids, _ = read_golden(names[0])
        # Requests without an adapter are in between, so that the rows of one adapter are not consecutive.
        adapters = [names[0], None, names[-1], names[0], None, names[-1]]
        together = testing.batch_logits(
            core_of(model),
            [ids[:count] for count in counts],
            [core_adapter(model, name) for name in adapters],
        )
        for name, count, logits in zip(adapters, counts, together, strict=True):
            np.testing.assert_array_equal(logits, model.logits(ids[:count], adapter=name), err_msg=f"{name}")


@pytest.mark.parametrize("weights", ["f32", "q8"])
@pytest.mark.parametrize("count", [2, 17], ids=["few", "many"])
def test_one_forward_pass_serves_adapters_with_ends_of_their_own(weights: str, count: int) -> None:
    """Each adapter changes the embedding table and the output head in another way: as a whole, by row, or by
    a low-rank term."""
    names = ["gemma3-saved", None, "gemma3-ends", "gemma3-tokens", None, "gemma3-tied", "gemma3-dora"]
    names += ["gemma3-bias", "gemma3-dora-table", "gemma3-only-tokens", "gemma3-norms", "gemma3-only-norms"]
    names += ["gemma3-pissa"]
    if count == 2:
        names = names[:5]  # fewer than 16 rows in all
    with gemlet.load(HERE / "gemma3-270m", weights=weights, threads=2, exact_batches=True) as model:
        for name in filter(None, names):
            model.load_adapter(ADAPTERS / name)
        ids = [2, 5, 6, 20, *range(30, 43)][:count]  # these include the ids that gemma3-tokens changes
        together = testing.batch_logits(
            core_of(model), [ids] * len(names), [core_adapter(model, name) for name in names]
        )
        for name, logits in zip(names, together, strict=True):
            np.testing.assert_array_equal(logits, model.logits(ids, adapter=name), err_msg=str(name))


@pytest.mark.parametrize("weights", ["f32", "q4"])
@pytest.mark.parametrize("count", [3, 17], ids=["few", "many"])
def test_one_forward_pass_serves_adapters_of_experts(weights: str, count: int) -> None:
    """Each expert gets rows of several adapters, and more rows than fit into the buffers at a time."""
    names = ["gemma4-routed", None, "gemma4-routed-down", "gemma4-experts", "gemma4-routed"]
    with gemlet.load(HERE / "gemma4-26b-a4b", weights=weights, threads=2, exact_batches=True) as model:
        for name in {*names} - {None}:
            model.load_adapter(ADAPTERS / str(name))
        texts = [[2, *range(30 + i, 29 + i + count)] for i in range(len(names))]
        adapters = [core_adapter(model, name) for name in names]
        together = testing.batch_logits(core_of(model), texts, adapters)
        for name, text, logits in zip(names, texts, together, strict=True):
            np.testing.assert_array_equal(logits, model.logits(text, adapter=name), err_msg=str(name))


def test_adapters_may_replace_an_embedding_on_disk(tmp_path: Path) -> None:
    names = [
        "gemma3-saved",
        "gemma3-ends",
        "gemma3-tokens",
        "gemma3-plain",
        "gemma3-dora-table",
        "gemma3-bias",
    ]
    gemlet.convert(HERE / "gemma3-270m", tmp_path / "packed", weights="q8", threads=1)
    found = []
    for on_disk in (False, True):
        with gemlet.load(tmp_path / "packed", threads=1, embedding_on_disk=on_disk) as model:
            for name in names:
                model.load_adapter(ADAPTERS / name)
            found.append([model.logits([2, 5, 6, 20, 30], adapter=name) for name in names])
    for name, in_memory, on_disk_logits in zip(names, *found, strict=True):
        np.testing.assert_array_equal(in_memory, on_disk_logits, err_msg=name)


def test_an_embedding_model_with_an_adapter_of_its_table(tmp_path: Path) -> None:
    """There is no official result; the merged adapter and the separate adapter have to agree."""
    random = np.random.default_rng(0)
    folder = HERE / "embeddinggemma"
    with gemlet.load(folder, weights="f32", threads=1) as model:
        vocab, hidden = model.vocab_size, model.config.hidden_size
        shapes = {
            "embed_tokens.lora_embedding_A": (2, vocab),
            "embed_tokens.lora_embedding_B": (hidden, 2),
            "layers.0.self_attn.o_proj.lora_A.weight": (
                2,
                model.config.layers[0].num_heads * model.config.layers[0].head_dim,
            ),
            "layers.0.self_attn.o_proj.lora_B.weight": (hidden, 2),
        }
        tensors = {
            f"base_model.model.{name}": random.normal(0, 0.2, shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        config = {
            "peft_type": "LORA",
            "r": 2,
            "target_modules": ["embed_tokens", "layers.0.self_attn.o_proj"],
        }
        path = write_adapter(tmp_path / "a", config, tensors)
        model.load_adapter(path, "mine")
        texts = [[2, 5, 7, 1], [2, 9, 4, 3, 1]]
        beside, plain = model.embed(texts, adapter="mine"), model.embed(texts)
    with gemlet.load(folder, weights="f32", threads=1, merge_adapter=path) as merged:
        np.testing.assert_allclose(merged.embed(texts), beside, atol=1e-5)
    assert np.abs(beside - plain).max() > 0.01


def test_threads_and_pieces_change_no_bit(adapted: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    whole = adapted.logits(ids, adapter="gemma3-plain")
    sequence = context_of(adapted, "gemma3-plain")
    for at, token in enumerate(ids):
        sequence.extend(int32(token))
        np.testing.assert_array_equal(sequence.logits()[0], whole[at])
    with gemlet.load(HERE / "gemma3-270m", weights="f32", threads=2) as two:
        two.load_adapter(ADAPTERS / "gemma3-plain")
        np.testing.assert_array_equal(two.logits(ids, adapter="gemma3-plain"), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_prefill_without_logits_leaves_the_same_cache(name: str) -> None:
    """The adapter changes keys and values of tokens that the last layers do not compute."""
    ids, _ = read_golden(name)
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(ADAPTERS / name)
        expected = model.logits(ids, adapter=name)
        sequence = context_of(model, name)
        sequence.extend(int32(*ids[:9]), logits="none")
        sequence.extend(int32(*ids[9:-2]), logits="last")
        assert difference(sequence.logits(), expected[-3:-2]) < REORDERED
        sequence.extend(int32(*ids[-2:]), logits="all")
        assert difference(sequence.logits(), expected[-2:]) < REORDERED


def test_generations_choose_their_adapter(adapted: gemlet.Model) -> None:
    ids, _ = read_golden("gemma3-plain")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    alone = {
        name: adapted.generate(ids, adapter=name, **options).token_ids
        for name in (None, "gemma3-plain", "gemma3-rslora")
    }
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    streams = {name: adapted.stream(ids, adapter=name, **options) for name in alone}
    for _ in range(8):
        for stream in streams.values():
            next(stream)
    assert {name: stream.result.token_ids for name, stream in streams.items()} == alone


def test_layers_that_share_keys_ignore_projections_of_their_own(tmp_path: Path) -> None:
    """Older versions of transformers wrote a k_proj and a v_proj for such layers. Nothing reads them."""
    name = "gemma3n-shared"
    ids, expected = read_golden(name)
    tensors = dict(read_tensors(ADAPTERS / name / "adapter_model.safetensors"))
    layers = {int(tensor.split(".")[4]) for tensor in tensors}
    with_keys = {int(tensor.split(".")[4]) for tensor in tensors if ".k_proj." in tensor}
    assert with_keys < layers
    for tensor in list(tensors):
        if ".layers.0.self_attn.k_proj" in tensor or ".layers.0.self_attn.v_proj" in tensor:
            tensors[tensor.replace(".layers.0.", f".layers.{max(layers)}.")] = tensors[tensor]
    write_adapter(
        tmp_path / "old", json.loads((ADAPTERS / name / "adapter_config.json").read_text()), tensors
    )
    with gemlet.load(base_of(name), weights="f32", threads=1) as model:
        model.load_adapter(tmp_path / "old")
        assert difference(model.logits(ids, adapter="old"), expected) < TOLERANCE


def test_an_adapter_of_another_model_is_refused(adapted: gemlet.Model) -> None:
    adapter = core_adapter(adapted, "gemma3-plain")
    with gemlet.load(threads=1) as other:
        with pytest.raises(gemlet.InvalidRequestError, match="another model; load it with this one"):
            testing.batch_logits(core_of(other), [[2]], [adapter])
        with pytest.raises(gemlet.InvalidRequestError, match="another model; load it with this one"):
            _core.TokenSequence(core_of(other), adapter)
