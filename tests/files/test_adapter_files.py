"""Adapters that are damaged, hostile, or of a kind that gemlet does not compute. Each gets a typed error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemlet
from gemlet import _core
from gemlet.adapters.opening import open_adapter
from gemlet.config import parse_config
from gemlet.sources.opening import open_model_files
from support.adapter_checks import check, refuse
from support.adapters import CONFIG, TARGETS, adapter_tensors
from support.adapters import write_adapter as write
from support.inside import core_of
from support.tiny_models import CONFIGS, safetensors_bytes, write_folder

GEMMA4 = parse_config(CONFIGS["gemma4_text"], where="config.json")
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemlet.Model]:
    folder = write_folder(tmp_path_factory.mktemp("model"), CONFIGS["gemma3_text"])
    with gemlet.load(folder, weights="f32", threads=1) as loaded:
        yield loaded


# --- What is read -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_names_of_every_wrapper_are_read(prefix: str, tmp_path: Path, model: gemlet.Model) -> None:
    path = write(tmp_path / "a", tensors=adapter_tensors(prefix=prefix))
    with open_adapter(path, model.config) as files:
        assert len(files.terms.low_rank) == 7 * model.config.num_layers
        assert files.terms.low_rank["layers.1.up_proj"].scale == 2.0


def test_tensors_of_image_and_audio_towers_are_passed_over_and_named(
    tmp_path: Path, model: gemlet.Model, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = adapter_tensors(prefix="model.language_model.")
    for factor in "AB":
        at = f"base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_{factor}.weight"
        tensors[at] = np.zeros((3, 3), np.float32)
    tower = "model.vision_tower.encoder.layers.0.self_attn.q_proj"
    path = write(tmp_path / "a", tensors=tensors)
    assert model.load_adapter(path, "seen").passed_over == (tower,)
    model.unload_adapter("seen")
    assert f"gemlet does not change (1, the first is {tower})" in caplog.text


def test_keys_that_change_nothing_of_a_text_model_are_accepted(tmp_path: Path, model: gemlet.Model) -> None:
    """PEFT itself sets fan_in_fan_out to false for the modules that Gemma has, and these have no biases."""
    check(write(tmp_path / "a", {**CONFIG, "fan_in_fan_out": True, "bias": "all"}), model)
    tensors = {
        **adapter_tensors(),
        "base_model.model.model.layers.0.self_attn.q_proj.bias": np.ones(128, np.float32),
    }
    refuse(
        write(tmp_path / "b", {**CONFIG, "bias": "all"}, tensors), model, gemlet.TensorError, "q_proj.bias"
    )


def test_names_with_the_adapter_in_them_are_read(tmp_path: Path, model: gemlet.Model) -> None:
    tensors = {name.replace(".weight", ".default.weight"): t for name, t in adapter_tensors().items()}
    check(write(tmp_path / "a", tensors=tensors), model)
    wrapped = {name.replace(".layers.0.", ".layers.0._orig_mod."): t for name, t in adapter_tensors().items()}
    check(write(tmp_path / "b", tensors=wrapped), model)


def test_all_linear_accepts_any_set_that_is_the_same_in_every_layer(
    tmp_path: Path, model: gemlet.Model
) -> None:
    config = {**CONFIG, "target_modules": "all-linear"}
    some = {name: t for name, t in adapter_tensors().items() if "self_attn" in name}
    check(write(tmp_path / "a", config, some), model)
    del some[Q.format("A")], some[Q.format("B")]
    refuse(write(tmp_path / "b", config, some), model, gemlet.TensorError, Q.format("A"), "missing")


def test_whole_towers_in_an_adapter_are_listed(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "modules_to_save": ["multi_modal_projector", "model.vision_tower"]}
    name = "base_model.model.model.multi_modal_projector.mm_input_projection_weight"
    path = write(tmp_path / "a", config, {**adapter_tensors(), name: np.ones((4, 4), np.float32)})
    with open_adapter(path, model.config) as files:
        assert len(files.terms.passed_over) == 1


def test_keys_with_their_default_values_are_accepted(tmp_path: Path, model: gemlet.Model) -> None:
    unset = {
        "use_dora": False,
        "modules_to_save": None,
        "loftq_config": {},
        "a_key_of_the_future": None,
        "bias": "none",
    }
    check(write(tmp_path / "a", {**CONFIG, **unset, "target_parameters": []}), model)


def test_the_tensors_must_match_a_list_with_an_exclusion(tmp_path: Path, model: gemlet.Model) -> None:
    tensors = {name: t for name, t in adapter_tensors().items() if ".1.mlp.up_proj" not in name}
    refuse(
        write(tmp_path / "a", tensors=tensors),
        model,
        gemlet.TensorError,
        "layers.1.mlp.up_proj.lora_A",
        "missing",
    )
    config = {**CONFIG, "exclude_modules": ["layers.1.mlp.up_proj"]}
    check(write(tmp_path / "b", config, tensors), model)
    check(write(tmp_path / "c", {**CONFIG, "exclude_modules": r".*\.1\.mlp\.u.*"}, tensors), model)


# --- Kinds of adapter that are not computed -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
        ("bias", "some"),
        ("lora_bias", "yes"),
        ("modules_to_save", ["embed_tokens", 5]),
        ("modules_to_save", "embed_tokens"),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"embed_tokens": []}),
        ("trainable_token_indices", {"q_proj": [1]}),
        ("trainable_token_indices", 5),
        ("ensure_weight_tying", "yes"),
        ("target_parameters", "experts.gate_up_proj"),
        ("target_parameters", [1]),
        ("kasa_config", {"a": 1}),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("use_qalora", "yes"),
        ("alora_invocation_tokens", [5]),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", 1),
        ("a_key_of_the_future", "on"),
        ("r", 0),
        ("r", -4),
        ("r", 2.5),
        ("r", True),
        ("r", 1 << 40),
        ("r", "8"),
        ("lora_alpha", "16"),
        ("lora_alpha", 1e300),
        ("lora_alpha", True),
        ("use_rslora", "yes"),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", 5),
        ("target_modules", ["q_proj", 5]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", "(q_proj"),
        ("target_modules", r"(.*)\1"),
        ("exclude_modules", 3),
        ("layers_to_transform", [0, -1]),
        ("layers_to_transform", ["0"]),
        ("layers_to_transform", 1.5),
        ("layers_pattern", 7),
        ("rank_pattern", [4]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": "4"}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"q_(proj": 4}),
    ],
)
def test_an_unsupported_key_is_named(key: str, value: Any, tmp_path: Path, model: gemlet.Model) -> None:
    refuse(
        write(tmp_path / "a", {**CONFIG, key: value}),
        model,
        gemlet.ConfigError,
        key,
        "adapter_config.json",
    )


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"peft_type": "LOHA"}, "merge_and_unload()"),
        ({"peft_type": "IA3"}, "merge_and_unload()"),
        ({"peft_type": "VERA"}, "merge_and_unload()"),
        ({"peft_type": "PROMPT_TUNING", "target_modules": None}, "only PEFT can run it"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"kasa_config": {"a": 1}}, "merge_and_unload()"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "merge_and_unload()"),
        (
            {"qalora_group_size": 1, "use_qalora": True},
            "cannot merge it; run it with PEFT, or train a plain LoRA",
        ),
        ({"alora_invocation_tokens": [5]}, "run it with PEFT, or train a plain LoRA"),
    ],
)
def test_a_refusal_says_what_to_do(
    changes: dict[str, Any], way_out: str, tmp_path: Path, model: gemlet.Model
) -> None:
    path = write(tmp_path / "a", {**CONFIG, **changes})
    refuse(path, model, gemlet.ConfigError, next(iter(changes)), way_out)


def test_patterns_that_would_hang_are_refused_in_time(tmp_path: Path, model: gemlet.Model) -> None:
    bomb = r"((((.?){30}){30}){30}){30}(((.?){30}){30}){30}="
    refuse(
        write(tmp_path / "a", {**CONFIG, "target_modules": f"{bomb}|{bomb}"}),
        model,
        gemlet.GemletError,
    )
    patterns = {f"{bomb}{number}": 2 for number in range(500)}
    refuse(
        write(tmp_path / "b", {**CONFIG, "rank_pattern": patterns}),
        model,
        gemlet.ConfigError,
        "too long",
    )


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.lm_head.lora_embedding_A",
        "base_model.model.lm_head.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.input_layernorm.weight",
        "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight",
        "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.../../../q_proj.lora_A.weight",
        "",
    ],
)
def test_every_tensor_is_used_or_named(name: str, tmp_path: Path, model: gemlet.Model) -> None:
    tensors = {**adapter_tensors(), name: np.ones((2, 64), np.float32)}
    refuse(
        write(tmp_path / "a", tensors=tensors),
        model,
        gemlet.TensorError,
        repr(name),
        "adapter_model.safetensors",
    )


def test_tensors_that_the_config_does_not_name_are_refused(tmp_path: Path, model: gemlet.Model) -> None:
    config = {**CONFIG, "target_modules": list(TARGETS[1:])}
    refuse(write(tmp_path / "a", config), model, gemlet.TensorError, Q.format("A"), "target_modules")
    config = {**CONFIG, "layers_to_transform": [1, 2]}
    refuse(write(tmp_path / "b", config), model, gemlet.TensorError, "layers.0.", "target_modules")


def test_an_adapter_with_nothing_for_a_text_model_is_refused(tmp_path: Path, model: gemlet.Model) -> None:
    refuse(write(tmp_path / "a", tensors={}), model, gemlet.TensorError, "expected one of")
    other = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.ones((2, 64), np.float32)}
    refuse(write(tmp_path / "b", tensors=other), model, gemlet.TensorError, "c_attn")


# --- Another model ------------------------------------------------------------------------------------------
def test_the_error_for_an_adapter_of_another_model_names_that_model(
    tmp_path: Path, model: gemlet.Model
) -> None:
    config = {**CONFIG, "base_model_name_or_path": "google/gemma-4-E2B-it"}
    path = write(tmp_path / "a", config, adapter_tensors(GEMMA4))
    refuse(path, model, gemlet.TensorError, "made for 'google/gemma-4-E2B-it'")


@pytest.mark.parametrize(
    ("factor", "shape"),
    [("A", (2, 63)), ("A", (3, 64)), ("A", (2,)), ("A", (0, 64)), ("B", (127, 2)), ("B", (2, 128))],
)
def test_shapes_must_be_those_of_the_model(
    factor: str, shape: tuple[int, ...], tmp_path: Path, model: gemlet.Model
) -> None:
    tensors = {**adapter_tensors(), Q.format(factor): np.ones(shape, np.float32)}
    refuse(
        write(tmp_path / "a", tensors=tensors),
        model,
        gemlet.TensorError,
        Q.format(factor),
        str(list(shape)),
    )


@pytest.mark.parametrize("factor", ["A", "B"])
def test_one_factor_without_the_other_is_refused(factor: str, tmp_path: Path, model: gemlet.Model) -> None:
    tensors = adapter_tensors()
    del tensors[Q.format(factor)]
    refuse(write(tmp_path / "a", tensors=tensors), model, gemlet.TensorError, Q.format(factor), "missing")


# --- Values -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_values_must_be_finite(value: float, factor: str, tmp_path: Path, model: gemlet.Model) -> None:
    tensors = adapter_tensors()
    tensors[Q.format(factor)][-1, -1] = value
    path = write(tmp_path / "a", tensors=tensors)
    refuse(path, model, gemlet.TensorError, Q.format("A"), "NaN")
    base = write_folder(tmp_path / "base", CONFIGS["gemma3_text"])
    with pytest.raises(gemlet.TensorError, match="NaN"):
        gemlet.load(base, threads=1, merge_adapter=path)


def test_other_types_are_refused(tmp_path: Path, model: gemlet.Model) -> None:
    tensors = {**adapter_tensors(), Q.format("A"): np.ones((2, 64), np.int64)}
    refuse(write(tmp_path / "a", tensors=tensors), model, gemlet.TensorError, Q.format("A"), "I64")


def test_a_rank_larger_than_the_matrix_works(tmp_path: Path, model: gemlet.Model) -> None:
    path = write(tmp_path / "a", {**CONFIG, "r": 300}, adapter_tensors(rank=300))
    adapter = model.load_adapter(path, "wide")
    try:
        assert adapter.ranks == (300,)
        assert np.isfinite(model.logits([1, 2, 3], adapter="wide")).all()
    finally:
        model.unload_adapter("wide")


# --- Files --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"r": NaN}', '{"r": 1, "r": 2}', "\ud800", "[" * 100_000, "null", "7" * 9000]
)
def test_the_config_must_be_json(text: str, tmp_path: Path, model: gemlet.Model) -> None:
    path = write(tmp_path / "a")
    (path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refuse(path, model, gemlet.ConfigError, "adapter_config.json")


def test_missing_files_are_named(tmp_path: Path, model: gemlet.Model) -> None:
    refuse(tmp_path / "none", model, gemlet.ModelFileError, "no such folder")
    path = write(tmp_path / "a")
    refuse(path / "adapter_config.json", model, gemlet.ModelFileError, "not a folder")
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    refuse(path, model, gemlet.ModelFileError, "adapter_model.safetensors", "safetensors")
    (path / "adapter_config.json").unlink()
    refuse(path, model, gemlet.ModelFileError, "adapter_config.json")
    for wrong in ("", "a\0b", 5, None):
        with pytest.raises(gemlet.InvalidRequestError):
            open_adapter(wrong, model.config)  # type: ignore[arg-type]
        with pytest.raises((gemlet.InvalidRequestError, TypeError)):
            model.load_adapter(wrong)  # type: ignore[arg-type]


def test_an_index_or_a_file_of_a_model_in_the_folder_changes_nothing(
    tmp_path: Path, model: gemlet.Model
) -> None:
    path = write(tmp_path / "a")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    (path / "model.safetensors").write_bytes(b"nothing")
    check(path, model)


SMALL = parse_config({**CONFIGS["gemma"], "num_hidden_layers": 1}, where="config.json")
SMALL_CONFIG = {**CONFIG, "target_modules": ["q_proj"], "r": 1}
SMALL_TENSORS = {n: t for n, t in adapter_tensors(SMALL, 1).items() if ".q_proj." in n}


def test_cut_short_at_every_byte(tmp_path: Path) -> None:
    data = safetensors_bytes(SMALL_TENSORS)
    for length in [*range(0, 600, 3), *range(600, len(data), 41), len(data) - 1]:
        path = write(tmp_path / "a", SMALL_CONFIG, data[:length])
        with pytest.raises(gemlet.GemletError):
            open_adapter(path, SMALL)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(safetensors_bytes(SMALL_TENSORS))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("a") / "a", SMALL_CONFIG, bytes(whole))
    with contextlib.suppress(gemlet.GemletError):
        open_adapter(path, SMALL).close()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=9),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        *CONFIG,
        "use_rslora",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "use_dora",
    ]
)


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_any_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.mktemp("a") / "a", {**SMALL_CONFIG, **changes}, SMALL_TENSORS)
    with contextlib.suppress(gemlet.GemletError):
        open_adapter(path, SMALL).close()


# --- The core's own checks ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("layers.0.k_norm", "not a matrix"),
        ("layers.3.q_proj", "not a matrix"),
        ("layers.-1.q_proj", "not a matrix"),
        ("layers.99999999999999999999.q_proj", "not a matrix"),
        ("layers..q_proj", "not a matrix"),
        ("q_proj", "not a matrix"),
        ("", "not a matrix"),
        ("layers.0.o_proj", "have shapes"),
    ],
)
def test_the_core_takes_only_tensors_that_fit(slot: str, message: str, model: gemlet.Model) -> None:
    builder = _core.AdapterBuilder(core_of(model))
    a, b = np.ones((2, 64), np.float32), np.ones((128, 2), np.float32)
    with pytest.raises(gemlet.TensorError, match=message):
        builder.add(slot, a=a, a_dtype="f32", b=b, b_dtype="f32", scale=1.0)
    builder.add("layers.0.q_proj", a=a, a_dtype="f32", b=b, b_dtype="f32", scale=1.0)
    rows = np.ones((32, 64), np.float32)
    for slot, data, ids in (
        ("layers.0.q_proj", rows, []),
        ("lm_head", rows[:, 1:].copy(), []),
        ("lm_head", rows[:7], []),
        ("lm_head", rows[:2], [5, 5]),
        ("lm_head", rows[:2], [5, 96]),
    ):
        with pytest.raises(gemlet.TensorError, match=slot):
            builder.add_rows(slot, data, "f32", ids=ids)
    with pytest.raises(gemlet.TensorError, match="twice"):
        builder.add("layers.0.q_proj", a=a, a_dtype="f32", b=b, b_dtype="f32", scale=1.0)
    with pytest.raises(gemlet.TensorError, match="scale"):
        builder.add("layers.1.q_proj", a=a, a_dtype="f32", b=b, b_dtype="f32", scale=float("inf"))
    assert builder.finish().bytes > 0
    with pytest.raises(gemlet.InvalidRequestError, match="already"):
        builder.finish()


# --- Merging ------------------------------------------------------------------------------------------------
def test_a_wrong_adapter_closes_the_files_of_the_model(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", CONFIGS["gemma3_text"])
    path = write(tmp_path / "a", {**CONFIG, "layer_replication": [[0, 2]]})
    with pytest.raises(gemlet.ConfigError, match="layer_replication"):
        open_model_files(base, merge_adapter=path)
    with pytest.raises(gemlet.ModelFileError, match="no such folder"):
        gemlet.load(base, merge_adapter=tmp_path / "none")


def test_sums_beyond_float32_are_refused(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", CONFIGS["gemma3_text"])
    tensors = adapter_tensors()
    for factor in "AB":
        tensors[Q.format(factor)][:] = 3e38
    path = write(tmp_path / "a", tensors=tensors)
    with pytest.raises(gemlet.TensorError, match=r"layers\.0\.self_attn\.q_proj"):
        gemlet.load(base, weights="f32", threads=1, merge_adapter=path)
