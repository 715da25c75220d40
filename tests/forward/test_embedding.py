"""Embedding models: reference and product, compared with the official implementation, and embed()."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.config import parse_config, read_config
from golden.folders import BY_NAME, EMBEDDING_NAMES, HERE, TOLERANCE, expected_taps, read_golden, tap_errors
from reference import attention as reference_attention
from reference.forward import embedding
from reference.model import Model
from support.gguf_models import convert_folder, convert_tensors, metadata, read_folder, typed, write_gguf
from support.inside import context_of, core_of, taps_of, testing
from support.tiny_models import safetensors_bytes, write_text_embedder
from support.tokenizer_files import BOOL, U32

pytestmark = pytest.mark.tier

Golden = dict[str, NDArray[Any]]
FOLDER = HERE / "embeddinggemma"
REFERENCE_TOLERANCE = 5e-5


@pytest.fixture(params=EMBEDDING_NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(FOLDER, weights="f32", threads=1) as loaded:
        yield loaded


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


# --- The official results -----------------------------------------------------------------------------------
def test_folder_is_small_and_complete(name: str) -> None:
    assert sum(path.stat().st_size for path in (HERE / name).rglob("*")) < 1_000_000
    golden = read_golden(name)
    assert golden.keys() - {"rows"} == {"ids", "embedding", *expected_taps(BY_NAME[name])}
    assert abs(np.linalg.norm(golden["embedding"]) - 1) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_agrees_with_the_official_implementation(name: str, dtype: Any) -> None:
    golden = read_golden(name)
    taps: Golden = {}
    vector = embedding(Model.open(HERE / name, dtype), golden["ids"], taps)
    errors = tap_errors(golden, taps) | {"embedding": error(vector, golden["embedding"])}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < REFERENCE_TOLERANCE, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("threads", [1, 2])
def test_product_agrees_with_the_official_implementation(name: str, threads: int) -> None:
    golden = read_golden(name)
    with gemlet.load(HERE / name, weights="f32", threads=threads) as model:
        taps = taps_of(model, golden["ids"])
        vector = model.embed([golden["ids"].tolist()])
    errors = tap_errors(golden, taps)
    for tap in expected_taps(BY_NAME[name]):  # the taps are in the order of computation
        assert errors[tap] < TOLERANCE, f"{tap}: {errors[tap]:.1e}"
    assert vector.dtype == np.float32
    assert error(vector[0], golden["embedding"]) < TOLERANCE


@pytest.mark.parametrize("mistake", ["causal", "window", "wider", "narrower", "no window", "no dense layers"])
def test_golden_notices_a_mistake(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    golden, model = read_golden("embeddinggemma"), Model.open(FOLDER)
    change = {
        "causal": {"bidirectional": False},
        "window": {"sliding_window": 12},
        "wider": {"sliding_window": 8},
        "narrower": {"sliding_window": 6},
        "no window": {"sliding_window": 0},
    }.get(mistake)
    if change is None:
        model.config = replace(model.config, dense_layers=1)
        assert embedding(model, golden["ids"]).shape != golden["embedding"].shape
        return
    seen = reference_attention.visible

    def visible(layer: Any, positions: Any, keys: int, spans: Any) -> Any:
        return seen(replace(layer, **change) if layer.sliding_window else layer, positions, keys, spans)

    monkeypatch.setattr(reference_attention, "visible", visible)
    assert error(embedding(model, golden["ids"]), golden["embedding"]) > 50 * TOLERANCE


# --- Configuration ------------------------------------------------------------------------------------------
def test_the_window_in_the_file_counts_both_sides() -> None:
    config = read_config(FOLDER)
    assert config.bidirectional
    assert {layer.sliding_window for layer in config.layers} == {7, 0}
    causal = dict(BY_NAME["embeddinggemma"].config) | {"use_bidirectional_attention": False}
    assert {layer.sliding_window for layer in parse_config(causal, where="").layers} == {12, 0}


@pytest.mark.parametrize("place", ["outer", "inner"])
def test_a_model_with_images_cannot_be_an_embedding_model(place: str) -> None:
    config = dict(BY_NAME["gemma3-4b-resaved"].config)
    flag = {"use_bidirectional_attention": True}
    config |= flag if place == "outer" else {"text_config": config["text_config"] | flag}
    with pytest.raises(gemlet.ConfigError, match=r"use_bidirectional_attention is True; expected false"):
        parse_config(config, where="config.json")


# --- Formats, batches ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "kv_cache", "least"),
    [
        ("f32", "bf16", 0.9999),
        ("f32", "int8", 0.999),
        ("f32", "int4", 0.98),
        ("bf16", None, 0.999),
        ("q8", None, 0.998),
        ("q4", None, 0.9),
    ],
)
def test_vectors_of_every_format_point_the_same_way(
    name: str, weights: str, kv_cache: str | None, least: float
) -> None:
    golden = read_golden(name)
    with gemlet.load(HERE / name, weights=weights, kv_cache=kv_cache, threads=1) as model:
        vector = model.embed([golden["ids"].tolist()])[0]
    assert float(vector @ golden["embedding"]) > least


def test_bf12_has_the_bits_of_bf16(name: str) -> None:
    ids = read_golden(name)["ids"].tolist()
    vectors = []
    for weights in ("bf16", "bf12"):
        with gemlet.load(HERE / name, weights=weights, threads=1) as model:
            vectors.append(model.embed([ids, ids[:3]]))
    np.testing.assert_array_equal(*vectors)


def test_a_text_has_the_same_vector_beside_others(model: gemlet.Model) -> None:
    random = np.random.default_rng(5)
    texts = [random.integers(4, 139, n).tolist() for n in (1, 2, 64, 3, 300, 65, 700, 5, *[7] * 40)]
    together = model.embed(texts)
    assert together.shape == (48, 40)
    for i in (0, 1, 2, 4, 5, 6, 7, 47):
        np.testing.assert_array_equal(together[i], model.embed([texts[i]])[0])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert model.embed([]).shape == (0, 40)


def test_dimensions_gives_the_first_ones_at_length_one(model: gemlet.Model) -> None:
    ids = [[2, 5, 6, 7, 1]]
    whole, part = model.embed(ids), model.embed(ids, dimensions=16)
    np.testing.assert_allclose(part, whole[:, :16] / np.linalg.norm(whole[:, :16]), atol=1e-6)


@pytest.mark.parametrize("kept", ["beside", "merged"])
def test_an_adapter_changes_the_vector(tmp_path: Path, model: gemlet.Model, kept: str) -> None:
    random = np.random.default_rng(3)
    at = "base_model.model.layers.2.self_attn.q_proj."
    low_rank = {"lora_A": (2, 48), "lora_B": (72, 2)}
    tensors = {
        f"{at}{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in low_rank.items()
    }
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(config | {"layers_to_transform": [2], "layers_pattern": "layers"})
    )
    reference = Model.open(FOLDER)
    slot, (a, b) = "layers.2.q_proj", tensors.values()
    reference.weights[slot] = reference.weights[slot] + 2 * b @ a
    ids = read_golden("embeddinggemma")["ids"]
    expected = embedding(reference, ids)
    if kept == "beside":
        plain = model.embed([ids.tolist()])
        model.load_adapter(tmp_path, "low-rank")
        vector = model.embed([ids.tolist()], adapter="low-rank")
        np.testing.assert_array_equal(model.embed([ids.tolist()]), plain)
        model.unload_adapter("low-rank")
    else:
        with gemlet.load(FOLDER, weights="f32", threads=1, merge_adapter=tmp_path) as merged:
            vector = merged.embed([ids.tolist()])
    assert error(vector[0], expected) < TOLERANCE
    assert error(vector[0], read_golden("embeddinggemma")["embedding"]) > 50 * TOLERANCE


def test_packed_model_gives_the_same_bits(
    tmp_path: Path, model: gemlet.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "packed"
    gemlet.convert(FOLDER, packed, weights="f32", threads=1)
    assert {path.name for path in packed.iterdir()} == {
        *("config.json", "model.safetensors", "modules.json"),
        *("1_Pooling", "2_Dense", "3_Dense"),
    }
    ids = [read_golden("embeddinggemma")["ids"].tolist()]
    with gemlet.load(packed, threads=1) as loaded:
        np.testing.assert_array_equal(loaded.embed(ids), model.embed(ids))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):  # first written to the cache, then found there
        with gemlet.load(FOLDER, weights="f32", threads=1, cache=True) as cached:
            np.testing.assert_array_equal(cached.embed(ids), model.embed(ids))


# --- Folders of sentence-transformers -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    """A random embedding model with a tokenizer and prompts."""
    folder = write_text_embedder(tmp_path_factory.mktemp("reader") / "model")
    prompts = {"prompts": {"note": "a note: ", "plain": ""}, "default_prompt_name": "plain"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with gemlet.load(folder, threads=1) as loaded:
        yield loaded


def test_texts_become_tokens(reader: gemlet.Model) -> None:
    assert reader.prompts == {"note": "a note: ", "plain": ""}
    assert reader.chat_format is None
    assert reader.tokenizer is not None

    def ids(text: str) -> list[int]:
        return [*reader.tokenizer.encode(text), 1]  # type: ignore[union-attr]

    assert ids("x")[0] == 2
    texts = ["The door opened.", "  a line \n", "<eos>"]
    plain = reader.embed([ids(text.strip()) for text in texts])
    np.testing.assert_array_equal(reader.embed(texts), plain)
    np.testing.assert_array_equal(reader.embed(texts[0]), plain[:1])
    noted = reader.embed([ids("a note: " + text.strip()) for text in texts])
    np.testing.assert_array_equal(reader.embed(texts, prompt="note"), noted)
    assert np.abs(noted - plain).max() > 1e-3
    with pytest.raises(gemlet.InvalidRequestError, match=r"texts\[1\]: it is empty"):
        reader.embed(["text", " "], prompt="note")
    with pytest.raises(gemlet.ContextLengthError, match=r"texts\[0\]: .* tokens, but the context holds 64"):
        reader.embed("word " * 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": {"query": 3}}, "prompts is .*; expected an object of up to"),
        ({"prompts": ["query"]}, "prompts is"),
        ({"default_prompt_name": "document"}, "default_prompt_name is 'document'"),
    ],
)
def test_wrong_prompts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts | changes))
    with pytest.raises(gemlet.ConfigError, match=message):
        gemlet.load(folder)


def test_inspect_describes_an_embedding_model() -> None:
    found = gemlet.inspect(FOLDER)
    text = str(found)
    assert "embedding  40 numbers; dense layers 88, 40; prompts 'query', 'document'" in text
    assert "layers 0-4, 6: 6 tokens to either side, 3 heads of 24" in text
    assert "layer 5: all tokens, 3 heads of 24" in text
    assert found.problem is None
    described = json.loads(json.dumps(found.as_dict()))
    assert described["config"]["dense_sizes"] == [88, 40]
    assert described["prompts"]["query"] == "task: search result | query: "


def test_the_plan_counts_a_pass_over_the_longest_text() -> None:
    short, long = (gemlet.inspect(FOLDER, max_context=tokens).plan for tokens in (512, 2048))
    rows = (long.activations - short.activations) / (2048 - 512)
    assert rows > 4 * 48 * 4
    # One layer of each kind at a time: keys and values of 32 texts with 512 tokens together, in blocks of 64.
    # There is one head of 24, whose values are padded to 32.
    assert long.kv_cache == short.kv_cache == 2 * (32 + 8) * 64 * (24 + 32) * 4


@pytest.mark.parametrize("context", [1, 64, 65, 500, 2048])
def test_passes_stay_within_the_memory_plan(context: int) -> None:
    random = np.random.default_rng(context)
    texts = [[5] * int(random.integers(1, 1 + min(context, 90))) for _ in range(200)] + [[5] * context]
    planned = gemlet.inspect(FOLDER, max_context=context).plan.total + 2**22
    with gemlet.load(FOLDER, max_context=context, max_memory=planned, threads=1) as model:
        vectors = model.embed(texts)
        for index in (0, 57, 200):
            np.testing.assert_allclose(vectors[index], model.embed([texts[index]])[0], atol=1e-5)


# --- GGUF ---------------------------------------------------------------------------------------------------
def test_gguf_agrees_with_the_official_implementation(tmp_path: Path, name: str) -> None:
    golden = read_golden(name)
    path = convert_folder(HERE / name, tmp_path / "model.gguf")
    with gemlet.load(path, weights="f32", threads=1) as model:
        assert model.config.bidirectional
        assert model.prompts.keys() == {"query", "document"}
        assert error(model.embed([golden["ids"].tolist()])[0], golden["embedding"]) < TOLERANCE


def test_gguf_metadata_about_dense_layers_is_checked(tmp_path: Path) -> None:
    sizes = {"dense_2_feat_in": 48, "dense_2_feat_out": 88, "dense_3_feat_in": 88, "dense_3_feat_out": 40}
    given = {key: (U32, value) for key, value in sizes.items()} | {"attention__causal": (BOOL, False)}
    with gemlet.load(convert_folder(FOLDER, tmp_path / "model.gguf", **given), threads=1) as model:
        assert model.config.dense_sizes == (88, 40)
    for key, value, message in (
        ("dense_3_feat_out", (U32, 41), "dense_3_feat_out is 41; expected 40"),
        ("pooling_type", (U32, 3), "pooling_type is 3; expected 1"),
        ("attention__causal", (BOOL, True), "attention.causal is True; expected False"),
    ):
        path = convert_folder(FOLDER, tmp_path / "wrong.gguf", **given | {key: value})
        with pytest.raises(gemlet.ConfigError, match=message):
            gemlet.load(path)


def test_gguf_without_dense_layers_gives_the_mean(tmp_path: Path) -> None:
    golden = read_golden("embeddinggemma")
    config, tensors = read_folder(FOLDER)
    trunk = {tensor: values for tensor, values in tensors.items() if "_Dense" not in tensor}
    converted = typed(convert_tensors(config, trunk), "F32")
    path = write_gguf(tmp_path / "model.gguf", metadata(config), converted)
    mean = golden["final_norm"].mean(axis=0)
    with gemlet.load(path, weights="f32", threads=1) as model:
        vector = model.embed([golden["ids"].tolist()])[0]
    assert error(vector, mean / np.linalg.norm(mean)) < TOLERANCE


# --- Requests -----------------------------------------------------------------------------------------------
def test_an_embedding_model_writes_no_text(model: gemlet.Model) -> None:
    for call in (
        lambda: model.generate([2, 5]),
        lambda: model.stream([2, 5]),
        lambda: model.chat([{"role": "user", "content": "x"}]),
        lambda: model.logits([2, 5]),
    ):
        with pytest.raises(
            gemlet.UnsupportedError, match=r"makes embeddings and writes no text; use embed\(\)"
        ):
            call()
    with pytest.raises(gemlet.UnsupportedError, match="makes embeddings"):
        context_of(model)
    with pytest.raises(gemlet.InvalidRequestError, match="makes embeddings of texts and cannot continue one"):
        testing.batch_logits(core_of(model), [[2, 5]], [None])


def test_a_model_that_writes_text_makes_no_embeddings() -> None:
    with gemlet.load(threads=1) as model:
        with pytest.raises(
            gemlet.UnsupportedError, match=r"use generate\(\), or load a model like EmbeddingGemma"
        ):
            model.embed("text")
        with pytest.raises(gemlet.UnsupportedError, match="makes no embeddings"):
            core_of(model).embed([[2, 5]])
        assert model.prompts == {}


@pytest.mark.parametrize(
    ("texts", "options", "kind", "message"),
    [
        ([[2, 5], []], {}, gemlet.InvalidRequestError, r"texts\[1\]"),
        ([[2, 139]], {}, gemlet.InvalidRequestError, r"texts\[0\].*139"),
        ([[2] * 2049], {}, gemlet.ContextLengthError, r"texts\[0\]: 2049 tokens"),
        (["text"], {}, gemlet.InvalidRequestError, "has no tokenizer"),
        ([[2, 5]], {"dimensions": 0}, gemlet.InvalidRequestError, "expected an integer from 1 to 40"),
        ([[2, 5]], {"dimensions": 41}, gemlet.InvalidRequestError, "expected an integer from 1 to 40"),
        ([[2, 5]], {"dimensions": True}, gemlet.InvalidRequestError, "expected an integer from 1 to 40"),
        ([[2, 5]], {"prompt": "qurey"}, gemlet.InvalidRequestError, "got 'qurey'.*'query', 'document'"),
        ([[2, 5]], {"adapter": "none"}, gemlet.InvalidRequestError, "adapter"),
        (5, {}, gemlet.InvalidRequestError, "texts: got 5"),
    ],
)
def test_wrong_requests(
    model: gemlet.Model, texts: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        model.embed(texts, **options)
    with pytest.raises(kind, match=message):
        asyncio.run(model.aembed(texts, **options))


def test_an_event_loop_goes_on_meanwhile(model: gemlet.Model) -> None:
    """Many tasks embed at the same time, without threads, and a cancelled task does not delay the others."""
    texts = [[[2, 5 + i, *range(10, 10 + 20 * j), 1] for j in range(4)] for i in range(8)]

    async def main() -> list[Any]:
        threads = threading.active_count()
        tasks = [asyncio.create_task(model.aembed(some)) for some in texts]
        cancelled = asyncio.create_task(model.aembed([[2, *range(5, 100), 1]] * 200))
        await asyncio.sleep(0)
        assert threading.active_count() <= threads
        cancelled.cancel()
        found = await asyncio.gather(*tasks)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        return found

    for some, found in zip(texts, asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(found, model.embed(some))
    assert asyncio.run(model.aembed([])).shape == (0, 40)
