"""gemlet.load: the folders, files and arguments that it accepts or refuses, and the models it gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet import _core
from gemlet.config import parse_config, read_sampling, shapes
from gemlet.errors import (
    ConfigError,
    GemletError,
    InvalidRequestError,
    ModelFileError,
    TensorError,
    UnsupportedError,
)
from gemlet.loading.options import LoadOptions
from gemlet.loading.random_model import random_model
from gemlet.weights.formats import PRESETS
from gemlet.weights.slots import PER_LAYER_TABLE, core_slots, expected_slots
from support.inside import testing
from support.processes import run_program
from support.programs.load import cancel_loading
from support.real_shapes import write_real_shape_hole
from support.tiny_models import CONFIGS, IDS, logits_of, weights_of, write_folder, write_shards

pytestmark = pytest.mark.tier

FAMILIES = list(CONFIGS)


# --- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", PRESETS)
def test_every_family_in_every_format(tmp_path: Path, family: str, weights: str) -> None:
    folder = write_folder(tmp_path, CONFIGS[family])
    with gemlet.load(folder, weights=weights, threads=1) as model:
        assert model.weights == weights
        assert model.threads == 1
        assert model.config == parse_config(CONFIGS[family], where="config.json")
        assert model.tokenizer is None
        assert model.end_ids == {1}
        assert model.load_seconds > 0
        assert model.source == str(folder)
        logits = model.logits(IDS)
    assert logits.shape == (len(IDS), 96)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_python_and_the_core_have_the_same_slots(family: str) -> None:
    config = parse_config(CONFIGS[family] | {"tie_word_embeddings": False}, where="config.json")
    builder = _core.ModelBuilder(
        config=config.to_core(weights="f32"), weights="f32", embedding="f32", kv_cache="f32", threads=1
    )
    expected = {
        part: shape if entry is None else shape[1:]
        for slot, shape in expected_slots(config).items()
        if slot != PER_LAYER_TABLE
        for part, entry in core_slots(slot, shape)
    }
    assert {slot: tuple(shape) for slot, shape in builder.tensors().items()} == expected


def test_auto_keeps_the_stored_type(tmp_path: Path) -> None:
    config, tensors = CONFIGS["gemma2"], weights_of(CONFIGS["gemma2"])
    half = {name: values.astype(np.float16) for name, values in tensors.items()}
    for name, arguments, expected in (
        ("f32", {}, "f32"),
        ("bf16", {"bf16": True}, "bf16"),
        ("f16", {"tensors": half}, "f32"),
    ):
        folder = write_folder(tmp_path / name, config, **arguments)
        with gemlet.load(folder, threads=1) as model:
            assert model.weights == expected, name


def test_float16_weights_are_read(tmp_path: Path) -> None:
    tensors = {name: v.astype(np.float16) for name, v in weights_of(CONFIGS["gemma3_text"]).items()}
    exact = {name: v.astype(np.float32) for name, v in tensors.items()}
    half = write_folder(tmp_path / "half", CONFIGS["gemma3_text"], tensors=tensors)
    full = write_folder(tmp_path / "full", CONFIGS["gemma3_text"], tensors=exact)
    np.testing.assert_array_equal(logits_of(half), logits_of(full))


def test_shards_equal_the_single_file(tmp_path: Path) -> None:
    config, tensors = CONFIGS["gemma3_text"], weights_of(CONFIGS["gemma3_text"])
    single = write_folder(tmp_path / "single", config)
    names = sorted(tensors)
    shards = {
        f"model-0000{i + 1}-of-00003.safetensors": {name: tensors[name] for name in names[i::3]}
        for i in range(3)
    }
    sharded = write_shards(tmp_path / "sharded", shards)
    (sharded / "config.json").write_text(json.dumps(config))
    for path in (sharded, sharded / "model-00002-of-00003.safetensors"):
        np.testing.assert_array_equal(logits_of(single), logits_of(path))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_model(tmp_path: Path, prefix: str) -> None:
    text = CONFIGS["gemma3_text"]
    plain = write_folder(tmp_path / "plain", text)
    tower = "model." if prefix.startswith("model.") else ""
    tensors = weights_of(text, prefix) | {
        f"{tower}vision_tower.embeddings.weight": np.zeros((3, 5), np.float32),
        f"{tower}multi_modal_projector.mm_soft_emb_norm.weight": np.zeros(5, np.float32),
    }
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "eos_token_id": [1, 6]}
    multimodal = write_folder(tmp_path / "multimodal", config, tensors=tensors)
    np.testing.assert_array_equal(logits_of(plain), logits_of(multimodal))
    with gemlet.load(multimodal, threads=1) as model:
        assert model.end_ids == {1, 6}


def test_a_separate_output_matrix(tmp_path: Path) -> None:
    config, tensors = CONFIGS["gemma2"], weights_of(CONFIGS["gemma2"])
    table = tensors["model.embed_tokens.weight"]
    tied = write_folder(tmp_path / "tied", config, tensors=tensors | {"lm_head.weight": table})
    untied_config = config | {"tie_word_embeddings": False}
    same = write_folder(tmp_path / "same", untied_config, tensors=tensors | {"lm_head.weight": table})
    other = write_folder(tmp_path / "other", untied_config, tensors=tensors | {"lm_head.weight": -table})
    np.testing.assert_array_equal(logits_of(tied), logits_of(same))
    np.testing.assert_allclose(logits_of(tied), -logits_of(other), rtol=1e-5, atol=2e-5)


def test_weights_change_the_logits_a_little(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma3_text"])
    exact = logits_of(folder)
    for weights, bound in (("bf16", 0.02), ("q8", 0.06), ("q4", 0.6)):
        difference = np.abs(logits_of(folder, weights=weights) - exact).max() / np.abs(exact).max()
        assert 0 < difference < bound, weights


def test_generation_config_adds_end_ids(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    with gemlet.load(folder, threads=1) as model:
        assert model.end_ids == {1, 7}


def test_max_context(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma"])
    with gemlet.load(folder, threads=1) as model:
        assert model.context_length == 64
    with gemlet.load(folder, threads=1, max_context=12) as model:
        assert model.context_length == 12
        assert model.logits(IDS).shape == (12, 96)
        with pytest.raises(gemlet.ContextLengthError):
            model.logits([*IDS, 4])


def test_demo_model() -> None:
    with gemlet.load(threads=1) as model:
        assert model.config.family == "gemma3"
        assert model.tokenizer is not None
        assert model.chat_format is not None
        assert {1, model.tokenizer.end_of_turn_id} <= model.end_ids
        assert model.source == "demo"


def test_random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", CONFIGS["gemma3_text"])
    with random_model("tiny", LoadOptions(threads=1), seed=1) as model:
        assert (model.weights, model.source, model.tokenizer) == ("bf16", "tiny", None)
        first = model.logits(IDS)
    assert np.isfinite(first).all()
    with random_model("tiny", LoadOptions(threads=1), seed=1) as model:
        np.testing.assert_array_equal(model.logits(IDS), first)
    with random_model("tiny", LoadOptions(threads=1, weights="q4", max_context=20), seed=2) as model:
        assert (model.weights, model.context_length) == ("q4", 20)
        assert not np.array_equal(model.logits(IDS), first)


def test_random_model_of_an_unknown_shape() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"'gemma3-1t'; did you mean gemma3-\w+\? Known are gemma-2b, .*"
    ):
        random_model("gemma3-1t")


@pytest.mark.parametrize("option", [{"cache": True}, {"matformer": "E2B"}, {"embedding_on_disk": True}])
def test_random_model_is_in_no_file(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=f"{next(iter(option))} needs a model in files"):
        random_model("gemma3-270m", LoadOptions(**option))


# --- what is refused: arguments -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"weights": "fp16"},
            InvalidRequestError,
            "weights is 'fp16'; expected one of 'auto', 'f32', 'bf16', ",
        ),
        ({"weights": ["q4"]}, InvalidRequestError, "weights is"),
        ({"threads": 0}, InvalidRequestError, "threads is 0; expected 1 to 1024"),
        ({"threads": 1025}, InvalidRequestError, "threads is 1025"),
        ({"threads": True}, InvalidRequestError, "threads is True"),
        ({"threads": 2.0}, InvalidRequestError, "threads is 2.0"),
        ({"decode_threads": 0}, InvalidRequestError, "decode_threads is 0; expected 1 to 1024"),
        (
            {"kv_cache": "q8"},
            InvalidRequestError,
            "kv_cache is 'q8'; expected one of 'f32', 'bf16', 'int8', 'int4'",
        ),
        ({"max_context": 0}, InvalidRequestError, "max_context is 0; expected 1 token or more"),
        ({"max_context": 65}, InvalidRequestError, "max_context is 65; expected 1 to 64 tokens"),
        ({"max_context": True}, InvalidRequestError, "max_context is True"),
        ({"device": "cuda"}, UnsupportedError, "built without CUDA"),
        ({"device": "tpu"}, UnsupportedError, "device is 'tpu'"),
        ({"cache": "no"}, InvalidRequestError, "cache is 'no'; expected True or False"),
        ({"cache": 1}, InvalidRequestError, "cache is 1"),
        ({"revision": 3}, InvalidRequestError, "revision is 3; expected a branch"),
        ({"token": 3}, InvalidRequestError, "token: expected an access token"),
    ],
)
def test_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[GemletError], message: str) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma"])
    with pytest.raises(error, match=message):
        gemlet.load(folder, **arguments)


def test_sources(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, error, message in (
        (tmp_path / "nowhere", ModelFileError, "nowhere: no such file or folder; expected a GGUF file"),
        (file, ModelFileError, r"weights\.bin: is neither a folder nor a GGUF file"),
        (tmp_path / "model.gguf", ModelFileError, r"model\.gguf: has 4 bytes; expected at least 24"),
        (empty, ModelFileError, r"config\.json: missing"),
        ("", InvalidRequestError, "source is ''"),
        ("a\0b", InvalidRequestError, "source is"),
        (b"folder", InvalidRequestError, "source is b'folder'"),
        (3, InvalidRequestError, "source is 3"),
    ):
        with pytest.raises(error, match=message):
            gemlet.load(source)  # type: ignore[arg-type]


# --- what is refused: files -----------------------------------------------------------------------


def test_bad_config_is_found_before_the_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma"])
    (folder / "model.safetensors").unlink()
    for changes, message in (
        ({"model_type": "llama"}, "unknown architecture"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"hidden_size": 1 << 60}, "hidden_size is"),
    ):
        (folder / "config.json").write_text(json.dumps(CONFIGS["gemma"] | changes))
        with pytest.raises(ConfigError, match=message):
            gemlet.load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["gemma"]))
    with pytest.raises(ModelFileError, match="has no weights that"):
        gemlet.load(folder)


def test_bad_tensors(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = weights_of(CONFIGS["gemma"])
    missing = {other: values for other, values in tensors.items() if other != name}
    for case, found, message in (
        ("missing", missing, rf"tensor '{name}' is missing; expected \[96, 64\]"),
        (
            "extra",
            tensors | {"model.layers.0.surprise": tensors[name]},
            "unexpected tensor 'model.layers.0.surp",
        ),
        ("shape", tensors | {name: tensors[name].T}, rf"'{name}' has shape \[64, 96\]; expected \[96, 64\]"),
        (
            "type",
            tensors | {name: np.zeros((96, 64), np.int64)},
            rf"'{name}' is I64; expected F32, BF16, F16 or F64",
        ),
    ):
        folder = write_folder(tmp_path / case, CONFIGS["gemma"], tensors=found)
        with pytest.raises(TensorError, match=message) as caught:
            gemlet.load(folder)
        assert case in str(caught.value)  # the message also names the folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.self_attn.k_norm.weight",
        "model.layers.2.self_attn.v_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    ],
)
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    tensors = weights_of(CONFIGS["gemma3_text"])
    tensors[name].reshape(-1)[-1] = value
    for bf16 in (False, True):
        folder = write_folder(tmp_path, CONFIGS["gemma3_text"], tensors=tensors, bf16=bf16)
        for weights in PRESETS:
            with pytest.raises(TensorError, match=rf"model\.safetensors: tensor '{name}'"):
                gemlet.load(folder, weights=weights, threads=1)


def test_broken_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIGS["gemma"])
    (folder / "tokenizer.model").write_bytes(b"\xff\xfe not a tokenizer")
    with pytest.raises(gemlet.TokenizerError, match=r"tokenizer\.model"):
        gemlet.load(folder)


def test_a_failed_load_leaves_no_file_open(tmp_path: Path) -> None:
    tensors = weights_of(CONFIGS["gemma"])
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    folder = write_folder(tmp_path, CONFIGS["gemma"], tensors=tensors)
    gemlet.load(write_folder(tmp_path / "good", CONFIGS["gemma"]), threads=1).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(TensorError):
            gemlet.load(folder, threads=1)
    assert len(os.listdir("/proc/self/fd")) == before


# --- cache and threads ----------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [False, True])
def test_loading_can_be_cancelled(tmp_path: Path, cache: bool) -> None:
    """An exception from ``progress`` and Ctrl-C cancel it and reach the caller unchanged. Threads, files and
    memory are as before."""
    write_real_shape_hole(tmp_path / "model", "gemma3-270m")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    run_program(cancel_loading, tmp_path / "model", cache, environment=environment)
    left = [path for path in tmp_path.rglob("*") if path.is_file() or path.suffix == ".tmp"]
    assert sorted(path.name for path in left) == ["config.json", "model.safetensors"]


def test_the_format_of_the_cache() -> None:
    sizes = {}
    for kv_cache in ("f32", "bf16", "int8", "int4"):
        with gemlet.load(kv_cache=kv_cache, threads=1) as model:
            assert model.kv_cache == kv_cache
            sizes[kv_cache] = model.memory()["kv_cache_per_token"]
            ids = model.tokenizer.encode("The sea was calm and the wind had turned to the south.")
            logits = model.logits(ids)
            if kv_cache == "f32":
                exact = logits
            bound = 0.2 if kv_cache == "int4" else 0.05
            assert np.abs(logits - exact).max() < bound * np.abs(exact).max()
    assert sizes["f32"] == 2 * sizes["bf16"]
    head_dim = model.config.layers[0].head_dim  # an int8 or int4 head also has a scale
    assert sizes["int8"] * 2 * head_dim == sizes["bf16"] * (head_dim + 4)
    assert sizes["int4"] * 2 * head_dim == sizes["bf16"] * (head_dim // 2 + 4)
    with gemlet.load(weights="f32", threads=1) as model:
        assert model.kv_cache == "f32"


@pytest.mark.parametrize(("threads", "decode_threads"), [(1, None), (2, 1), (1, 3), (3, 2)])
def test_decoding_has_its_own_number_of_threads(threads: int, decode_threads: int | None) -> None:
    with gemlet.load(threads=1) as model:
        expected = model.generate("The door opened", max_tokens=24, seed=7).text
    with gemlet.load(threads=threads, decode_threads=decode_threads) as model:
        assert (model.threads, model.decode_threads) == (threads, decode_threads or threads)
        for _ in range(3):  # changes from prefill to decoding and back
            assert model.generate("The door opened", max_tokens=24, seed=7).text == expected


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("0", 1), ("0-1", 3), ("0-2,5", 39), ("63", 1 << 63), ("", 0), ("x", 0), ("0-99", 2**64 - 1)],
)
def test_lists_of_memory_nodes(text: str, nodes: int) -> None:
    assert testing.parse_nodes(text) == nodes


# --- other files, and sampling --------------------------------------------------------------------


def test_a_weights_file_means_its_folder() -> None:
    folder = Path(gemlet.__file__).parent / "demo"
    with gemlet.load(folder / "model.safetensors", threads=1) as model:
        assert model.generate("The door", max_tokens=3, temperature=0).completion_tokens == 3


def test_another_file_does_not_mean_its_folder(tmp_path: Path) -> None:
    """gemlet loads the named file, or raises an error."""
    folder = write_folder(tmp_path, CONFIGS["gemma3_text"])
    for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(
            ModelFileError, match=rf"{name}: in this folder, gemlet reads model\.safetensors and not"
        ):
            gemlet.load(folder / name)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="is a LoRA adapter; expected a model"):
        gemlet.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", "hot"), ("top_p", -1), ("top_k", 1.5), ("do_sample", 1), ("min_p", 1)]
)
def test_impossible_sampling_values_of_a_checkpoint(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(gemlet.ConfigError, match=key):
        read_sampling(tmp_path)


def test_the_sampling_of_a_checkpoint_is_the_default_of_its_model(tmp_path: Path) -> None:
    wanted = {"do_sample": False, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.1}
    (tmp_path / "generation_config.json").write_text(
        json.dumps(wanted | {"eos_token_id": 1, "max_length": 20})
    )
    assert read_sampling(tmp_path) == wanted
    with gemlet.load(threads=1) as model:  # the demo's file asks for a temperature of 0.8
        assert model.generation_config == gemlet.GenerationConfig(temperature=0.8, top_k=64, top_p=0.95)
        said = model.generate("The door", max_tokens=20, seed=1, temperature=0.8).text
        assert model.generate("The door", max_tokens=20, seed=1).text == said
        assert model.generate("The door", gemlet.GenerationConfig(max_tokens=20, seed=1)).text != said
