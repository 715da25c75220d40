"""Draft models that read the states, keys and values of the target model (`gemma4_assistant`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemlet
from gemlet import _core
from gemlet.errors import ConfigError, GemletError, InvalidRequestError, TensorError, UnsupportedError
from golden.variants_gemma4 import DRAFTERS
from support.core_models import sampler
from support.engine_reader import Reader
from support.inside import core_adapter, core_of, drafter_of, testing
from support.paths import TESTS
from support.processes import in_fork

GOLDEN = TESTS / "golden"
NAMES = [one.name for one in DRAFTERS]
TARGET = GOLDEN / "gemma4-e2b"


def pair(name: str, **options: Any) -> gemlet.Model:
    return gemlet.load(TARGET, threads=1, drafter=GOLDEN / "drafters" / name, **options)


@pytest.mark.tier
@pytest.mark.parametrize("name", NAMES)
def test_draft_tokens_are_those_of_the_reference(name: str) -> None:
    golden = load_file(GOLDEN / "drafters" / name / "golden.safetensors")
    with pair(name, weights="f32") as model:
        for i in range(4):
            known, drafts, logits = (golden[f"{kind}.{i}"] for kind in ("known", "drafts", "logits"))
            ids, found = testing.assistant_logits(
                core_of(model), drafter_of(model), known.tolist(), len(drafts)
            )
            assert ids == drafts.tolist()
            np.testing.assert_allclose(found, logits, atol=2e-4 * np.abs(logits).max())
        prompt = golden["prompt"].tolist()
        count = len(golden["greedy"])
        text = model.generate(prompt, max_tokens=count, temperature=0, ignore_eos=True)
        assert text.token_ids == golden["greedy"].tolist()


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
def test_a_rounded_cache_hardly_changes_the_draft_tokens(kv_cache: str) -> None:
    """The keys in the cache are divided by factors, and the drafter's queries are multiplied by them. Keys in
    int4 are also rotated."""
    golden = load_file(GOLDEN / "drafters" / "e2b-plain" / "golden.safetensors")
    with pair("e2b-plain", weights="f32", kv_cache=kv_cache) as model:
        known, logits = golden["known.3"], golden["logits.3"]
        _, found = testing.assistant_logits(core_of(model), drafter_of(model), known.tolist(), 1)
    error = np.linalg.norm(found[0] - logits[0]) / np.linalg.norm(logits[0])  # 1.4 for the other queries
    assert error < {"f32": 2e-4, "bf16": 0.02, "int8": 0.05, "int4": 0.9}[kv_cache]


@pytest.mark.tier
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{"weights": "f32"}, {"weights": "q4", "kv_cache": "int8", "exact_batches": True}]
)
def test_texts_are_the_same(name: str, options: dict[str, Any]) -> None:
    prompts = [[5, 9, 17, 80, 33], [7] * 40, list(range(5, 130))]
    with gemlet.load(TARGET, threads=1, **options) as plain, pair(name, **options) as model:
        for settings in ({"temperature": 0.0}, {"seed": 4}, {"seed": 5, "repetition_penalty": 1.2}):
            asked = {"max_tokens": 90, "ignore_eos": True, **settings}
            expected = [one.token_ids for one in plain.generate(prompts, **asked)]
            found = model.generate(prompts, **asked)
            assert [one.token_ids for one in found] == expected
            alone = model.generate(prompts[0], n=2, **asked)
            assert alone[0].token_ids == expected[0]
        core, drafter = core_of(model), drafter_of(model)
        assert core.memory()["kv_cache_used"] == model.stats()["prefix_cache_bytes"]
        assert drafter.memory()["kv_cache_used"] == 0


@pytest.mark.tier
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [{"weights": "f32"}, pytest.param({"weights": "q8", "kv_cache": "int4"}, marks=pytest.mark.slow)],
)
def test_texts_are_the_same_if_every_step_drafts(name: str, options: dict[str, Any]) -> None:
    """Requests run at the same time, with and without an adapter, at temperature 0 and above, also from the
    prefix cache."""
    random = np.random.default_rng(5)
    prompts = [random.integers(5, 140, n).astype(np.int32) for n in (3, 9, 63, 64, 65, 130)]
    with pair(name, **options) as model:
        model.load_adapter(GOLDEN / "adapters" / "gemma4-shared", name="own")
        core, drafter, adapter = core_of(model), drafter_of(model), core_adapter(model, "own")

        def texts_of(**how: Any) -> tuple[list[tuple[list[int], str | None]], dict[str, Any]]:
            reader = Reader(_core.Engine(core, prefix_cache_bytes=1 << 24, **how))
            found = []
            for temperature in (0.0, 1.0):
                requests = [
                    reader.submit(
                        ids,
                        sampler=sampler(temperature=temperature, seed=i),
                        adapter=adapter if i % 2 else None,
                        max_tokens=80,
                        most_unread=100,
                    )
                    for i, ids in enumerate(prompts)
                ]
                found += reader.read(*requests)
            stats = dict(reader.engine.stats())
            reader.engine.close()
            assert core.memory()["kv_cache_used"] == 0
            return found, stats

        expected, _ = texts_of(drafts="never")
        for count in (1, 4, 14):
            found, stats = texts_of(drafts="always", drafter=drafter, draft_tokens=count)
            if "amx" not in core.tier:
                assert found == expected
            assert stats["drafted_tokens"] > stats["accepted_tokens"] > 0


def test_a_forked_child_drafts_too() -> None:
    with pair("e2b", weights="f32") as model:
        reader = Reader(_core.Engine(core_of(model), drafts="always", drafter=drafter_of(model)))
        plain = Reader(_core.Engine(core_of(model), drafts="never"))
        ids = np.arange(5, 15, dtype=np.int32)
        expected = plain.read(plain.submit(ids, max_tokens=60))[0][0]
        request = reader.submit(ids, max_tokens=60, most_unread=8)
        begun = reader.first(request, 8)
        in_fork(lambda: begun + reader.read(request)[0][0] == expected)
        assert begun + reader.read(request)[0][0] == expected


def test_an_assistant_drafts_for_requests_with_adapters() -> None:
    adapter = GOLDEN / "adapters" / "gemma4-shared"
    with gemlet.load(TARGET, threads=1) as plain, pair("e2b") as model:
        for one in (plain, model):
            one.load_adapter(adapter, name="own")
        for name in ("own", None):
            asked = {"max_tokens": 60, "ignore_eos": True, "adapter": name, "seed": 1}
            assert (
                model.generate([5, 6, 7], **asked).token_ids == plain.generate([5, 6, 7], **asked).token_ids
            )


def test_an_assistant_cannot_write_without_its_target() -> None:
    with pytest.raises(UnsupportedError, match="drafter="):
        gemlet.load(GOLDEN / "drafters" / "e2b")
    with pytest.raises(UnsupportedError, match="without embedding_on_disk"), pytest.MonkeyPatch.context():
        pair("e2b", embedding_on_disk=True, cache=True)


def copied(to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    folder = to / "drafter"
    shutil.copytree(GOLDEN / "drafters" / "e2b", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbone_hidden_size": 40}, TensorError, "pre_projection"),
        ({"num_centroids": 7}, ConfigError, "num_centroids"),
        ({"centroid_intermediate_top_k": 19}, ConfigError, "centroid_intermediate_top_k"),
        ({"tie_word_embeddings": False}, ConfigError, "tie_word_embeddings"),
        ({"text_config.hidden_size_per_layer_input": 8}, ConfigError, "hidden_size_per_layer_input"),
        ({"text_config.num_kv_shared_layers": 2}, ConfigError, "num_kv_shared_layers"),
        ({"text_config.enable_moe_block": True}, ConfigError, "enable_moe_block"),
        ({"text_config.vocab_size": 126}, (TensorError, InvalidRequestError), "126|vocab"),
        ({"text_config": None}, ConfigError, "text_config"),
        ({"mystery": 3}, ConfigError, "mystery"),
    ],
)
def test_configurations_that_cannot_be(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        for key, value in changes.items():
            outer, _, inner = key.partition(".")
            if inner:
                config[outer][inner] = value
            else:
                config[outer] = value

    with pytest.raises(error, match=message):
        gemlet.load(TARGET, drafter=copied(tmp_path, change))


@pytest.mark.parametrize("target", ["gemma4-e4b", "gemma4-31b", "gemma3-1b", "embeddinggemma"])
def test_another_target_is_refused(target: str) -> None:
    with pytest.raises(GemletError, match="drafter"):
        gemlet.load(GOLDEN / target, drafter=GOLDEN / "drafters" / "e2b")


@pytest.mark.parametrize("order", ["missing", "twice", "beyond", "floats"])
def test_an_order_of_tokens_that_cannot_be(tmp_path: Path, order: str) -> None:
    folder = copied(tmp_path, lambda config: None)
    tensors = load_file(folder / "model.safetensors")
    name = "masked_embedding.token_ordering"
    ids = tensors.pop(name).copy()
    if order == "twice":
        ids[0] = ids[1]
    elif order == "beyond":
        ids[0] = 1 << 40
    if order != "missing":
        tensors[name] = ids.astype(np.float32) if order == "floats" else ids
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TensorError, match="token_ordering"):
        gemlet.load(TARGET, drafter=folder)
