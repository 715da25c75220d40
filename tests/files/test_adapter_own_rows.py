"""Parts of an adapter besides its low-rank terms: DoRA's magnitudes, and rows of the embedding table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet import _core
from golden.folders import HERE, read_tensors
from support.adapter_checks import check, refuse
from support.adapters import ADAPTERS, CONFIG, adapter_tensors, base_of
from support.adapters import write_adapter as write
from support.inside import core_of
from support.tiny_models import CONFIGS, write_folder

pytestmark = pytest.mark.tier

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
END = "base_model.model.model.embed_tokens.{}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_folder(tmp_path_factory.mktemp("model"), CONFIGS["gemma3_text"])
    with gemlet.load(folder, weights="f32", threads=1) as loaded:
        yield loaded


def test_dora_has_magnitudes_that_are_finite_and_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "use_dora": True, "target_modules": "model.layers.0.self_attn.q_proj"}
    pair = {Q.format(factor): adapter_tensors()[Q.format(factor)] for factor in "AB"}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    refuse(write(tmp_path / "a", config, pair), model, gemlet.TensorError, name, "missing")
    ones = np.ones(128, np.float32)
    check(write(tmp_path / "b", config, {**pair, name: ones}), model)
    plain = {**config, "use_dora": False}
    refuse(write(tmp_path / "c", plain, {**pair, name: ones}), model, gemlet.TensorError, name, "use_dora")
    refuse(write(tmp_path / "d", config, {**pair, name: ones[1:]}), model, gemlet.TensorError, name, "127")
    wrong = {**pair, name: np.full(128, np.nan, np.float32)}
    refuse(write(tmp_path / "e", config, wrong), model, gemlet.TensorError, name, "NaN")


def test_the_rows_that_an_adapter_has_itself_must_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "modules_to_save": ["embed_tokens"]}
    name = END.format("weight")
    refuse(write(tmp_path / "a", config), model, gemlet.TensorError, name, "missing")
    rows = np.ones((96, 64), np.float32)
    check(write(tmp_path / "b", config, {**adapter_tensors(), name: rows}), model)
    more = {**adapter_tensors(), name: np.ones((99, 64), np.float32)}
    refuse(
        write(tmp_path / "c", config, more), model, gemlet.TensorError, name, "96 tokens", "merge_and_unload"
    )
    rows[95, 3] = np.nan
    path = write(tmp_path / "d", config, {**adapter_tensors(), name: rows})
    refuse(path, model, gemlet.TensorError, name, "NaN")


def test_the_tokens_that_an_adapter_has_itself_must_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "trainable_token_indices": [7, 3]}
    name = END.format("token_adapter.trainable_tokens_delta")
    refuse(write(tmp_path / "a", config), model, gemlet.TensorError, name, "missing")
    tensors = {**adapter_tensors(), name: np.ones((2, 64), np.float32)}
    check(write(tmp_path / "b", config, tensors), model)
    far = {**config, "trainable_token_indices": [7, 96]}
    refuse(
        write(tmp_path / "c", far, tensors), model, gemlet.ConfigError, "trainable_token_indices", "below 96"
    )
    more = {**config, "trainable_token_indices": [7, 3, 4]}
    refuse(write(tmp_path / "d", more, tensors), model, gemlet.TensorError, name, "[3, 64]")
    both = {**tensors, END.format("weight"): np.ones((96, 64), np.float32)}
    refuse(write(tmp_path / "e", config, both), model, gemlet.TensorError, name)


def test_rows_of_tokens_have_the_order_of_the_file(tmp_path: Path, model: gemlet.Model) -> None:
    name = END.format("token_adapter.trainable_tokens_delta")
    rows = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    found = []
    for ids, order in (([7, 3], [0, 1]), ([3, 7], [1, 0])):
        config = {**CONFIG, "trainable_token_indices": ids}
        tensors = {**adapter_tensors(), name: rows[order]}
        model.load_adapter(write(tmp_path / f"{ids[0]}", config, tensors), "own")
        found.append(model.logits([2, 7, 3, 9], adapter="own"))
        model.unload_adapter("own")
    np.testing.assert_array_equal(found[0], found[1])


# --- Tokens of the table of per-layer embeddings ------------------------------------------------------------
def test_the_tokens_of_the_table_must_fit(tmp_path: Path) -> None:
    name = "gemma4-table-tokens"
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    tensors = dict(read_tensors(ADAPTERS / name / "adapter_model.safetensors"))
    rows = next(tensor for tensor in tensors if "embed_tokens_per_layer" in tensor)
    with gemlet.load(base_of(name), weights="f32", threads=1) as base:
        less = {**tensors, rows: tensors[rows][1:]}
        wrong_shape = str(list(less[rows].shape))
        refuse(write(tmp_path / "a", config, less), base, gemlet.TensorError, "okens_per_layer", wrong_shape)
        wrong = tensors[rows].copy()
        wrong[1, 2] = np.inf
        path = write(tmp_path / "b", config, {**tensors, rows: wrong})
        base.load_adapter(path, "wrong")  # a row is read when a text has its token
        ids = config["token_indices"]
        with pytest.raises(gemlet.TensorError, match="NaN or infinity"):
            base.logits([2, ids[1]], adapter="wrong")
        base.logits([2, ids[0]], adapter="wrong")


def test_a_model_without_the_table_is_named(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "trainable_token_indices": {"embed_tokens_per_layer": [7, 3]}}
    refuse(
        write(tmp_path / "a", config), model, gemlet.ConfigError, "embed_tokens_per_layer", "does not have"
    )


def test_the_core_takes_rows_of_the_table_for_tokens_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(4096))
    with gemlet.load(HERE / "gemma4-e2b", threads=1) as base, open(tmp_path / "rows", "rb") as file:
        builder = _core.AdapterBuilder(core_of(base))
        for ids in ([-1, 2], [3, 3], [3, 1 << 30], [3]):
            with pytest.raises(gemlet.TensorError, match="embed_tokens_per_layer"):
                builder.set_per_layer_table(
                    descriptor=file.fileno(), path="rows", offset=0, rows=2, cols=36, dtype="f32", ids=ids
                )


# --- QA-LoRA ------------------------------------------------------------------------------------------------
def test_an_adapter_of_qa_lora_for_a_model_in_gptq_is_named(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "use_qalora": True, "qalora_group_size": 4}
    tensors = {**adapter_tensors(), Q.format("A"): np.ones((2, 16), np.float32)}
    path = write(tmp_path / "a", config, tensors)
    refuse(path, model, gemlet.TensorError, Q.format("A"), "[2, 16]", "QA-LoRA", "GPTQ", "run it with PEFT")


def test_the_flag_of_qa_lora_is_passed_over_and_logged(
    tmp_path: Path, model: gemlet.Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    check(write(tmp_path / "a", {**CONFIG, "use_qalora": True}), model)
    assert caplog.text.count("use_qalora is passed over") == 1


# --- Biases, and adapters with only tokens
# -------------------------------------------------------------------
def test_a_bias_of_b_must_be_there_and_fit(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "lora_bias": True, "target_modules": "model.layers.0.self_attn.q_proj"}
    pair = {Q.format(factor): adapter_tensors()[Q.format(factor)] for factor in "AB"}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    refuse(write(tmp_path / "a", config, pair), model, gemlet.TensorError, name, "missing")
    ones = np.ones(128, np.float32)
    check(write(tmp_path / "b", config, {**pair, name: ones}), model)
    plain = {**config, "lora_bias": False}
    refuse(write(tmp_path / "c", plain, {**pair, name: ones}), model, gemlet.TensorError, name, "lora_bias")
    refuse(write(tmp_path / "d", config, {**pair, name: ones[1:]}), model, gemlet.TensorError, name, "127")
    wrong = {**pair, name: np.full(128, np.inf, np.float32)}
    refuse(write(tmp_path / "e", config, wrong), model, gemlet.TensorError, name, "infinity")
    table = {**config, "target_modules": ["embed_tokens"]}
    end = {
        END.format("lora_embedding_A"): np.ones((2, 96), np.float32),
        END.format("lora_embedding_B"): np.ones((64, 2), np.float32),
    }
    refuse(write(tmp_path / "f", table, end), model, gemlet.ConfigError, "lora_bias", "embed_tokens")


TOKENS = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [7, 3], "target_modules": "model.embed_tokens"}
ROWS = np.ones((2, 64), np.float32)


@pytest.mark.parametrize("target", ["model.embed_tokens", "embed_tokens", ["embed_tokens"], None])
def test_an_adapter_may_change_only_some_tokens(target: object, tmp_path: Path, model: gemlet.Model) -> None:
    name = END.format("trainable_tokens_delta")
    path = write(tmp_path / "a", {**TOKENS, "target_modules": target}, {name: ROWS})
    adapter = model.load_adapter(path, "tokens")
    try:
        assert adapter.targets == ("embed_tokens", "lm_head")  # both name the same matrix
        assert adapter.ranks == ()
    finally:
        model.unload_adapter("tokens")


def test_an_adapter_of_tokens_alone_must_fit(tmp_path: Path, model: gemlet.Model) -> None:
    name = END.format("trainable_tokens_delta")
    refuse(write(tmp_path / "a", TOKENS, {name: ROWS[:1]}), model, gemlet.TensorError, name, "[2, 64]")
    head = "base_model.model.lm_head.trainable_tokens_delta"
    both = {name: ROWS, head: 2 * ROWS}
    refuse(write(tmp_path / "b", TOKENS, both), model, gemlet.TensorError, name, head, "differ")
    check(write(tmp_path / "c", TOKENS, {name: ROWS, head: ROWS}), model)
    far = {**TOKENS, "token_indices": [7, 96]}
    refuse(write(tmp_path / "d", far, {name: ROWS}), model, gemlet.ConfigError, "below 96")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token_indices", None),
        ("token_indices", []),
        ("token_indices", [3, 3]),
        ("token_indices", [True, 3]),
        ("token_indices", "7"),
        ("target_modules", ["q_proj"]),
        ("target_modules", ["embed_tokens", "q_proj"]),
        ("target_modules", "(embed"),
        ("target_modules", 5),
        ("a_key_of_the_future", 1),
    ],
)
def test_a_wrong_key_of_tokens_alone_is_named(
    key: str, value: object, tmp_path: Path, model: gemlet.Model
) -> None:
    tensors = {END.format("trainable_tokens_delta"): ROWS}
    refuse(write(tmp_path / "a", {**TOKENS, key: value}, tensors), model, gemlet.ConfigError, key)


# --- Experts ------------------------------------------------------------------------------------------------
def test_stacks_of_experts_must_fit(tmp_path: Path) -> None:
    config = json.loads((ADAPTERS / "gemma4-routed" / "adapter_config.json").read_text())
    tensors = dict(read_tensors(ADAPTERS / "gemma4-routed" / "adapter_model.safetensors"))
    inner, outer = (f"base_model.model.model.layers.1.experts.{w}lora_A.weight" for w in ("base_layer.", ""))
    with gemlet.load(base_of("gemma4-routed"), weights="f32", threads=1) as experts:
        for name, wrong in ((inner, tensors[inner][1:]), (outer, tensors[outer][:, 1:])):
            path = write(tmp_path / "a", config, {**tensors, name: wrong})
            refuse(path, experts, gemlet.TensorError, name, "rank 2", str(list(wrong.shape)))
        less = {name: t for name, t in tensors.items() if name != inner}
        refuse(write(tmp_path / "a", config, less), experts, gemlet.TensorError, inner, "missing")
        one = {**config, "target_parameters": ["experts.down_proj"]}  # then nothing is wrapped twice
        refuse(write(tmp_path / "a", one, tensors), experts, gemlet.TensorError, "base_layer", "unexpected")
        wrong = tensors[outer].copy()
        wrong[-1, -1] = np.nan
        path = write(tmp_path / "a", config, {**tensors, outer: wrong})
        refuse(path, experts, gemlet.TensorError, outer, "experts.8.down", "NaN")
        alone = {name: t for name, t in tensors.items() if ".experts." in name}
        for key in ("use_dora", "lora_bias"):
            path = write(tmp_path / "a", {**config, "target_modules": [], key: True}, alone)
            refuse(path, experts, gemlet.GemletError, key)
