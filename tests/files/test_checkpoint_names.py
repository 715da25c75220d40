"""The names of a checkpoint's tensors, and the slot of the model that each tensor fills."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config import parse_config
from gemlet.errors import TensorError
from gemlet.weights.hf_names import map_tensors
from gemlet.weights.slots import expected_slots
from support.tiny_models import (
    CONFIGS,
    weights_of,
    write_folder,
)


def shapes_of(family: str, prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in weights_of(CONFIGS[family], prefix).items()}


def map_of(family: str, shapes: Mapping[str, tuple[int, ...]], **changes: Any) -> dict[str, str]:
    config = parse_config(CONFIGS[family] | changes, where="config.json")
    return map_tensors(shapes, config, where="folder").slots


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_every_slot_is_filled_once(family: str, prefix: str) -> None:
    slots = map_of(family, shapes_of(family, prefix))
    assert sorted(slots.values()) == sorted(expected_slots(parse_config(CONFIGS[family], where="x")))
    assert slots[f"{prefix}layers.2.self_attn.o_proj.weight"] == "layers.2.o_proj"


def test_one_name_of_a_norm_has_two_meanings() -> None:
    name = "model.layers.0.post_attention_layernorm.weight"
    assert map_of("gemma", shapes_of("gemma"))[name] == "layers.0.pre_mlp_norm"
    assert map_of("gemma2", shapes_of("gemma2"))[name] == "layers.0.post_attention_norm"
    assert map_of("gemma3_text", shapes_of("gemma3_text"))[name] == "layers.0.post_attention_norm"


@pytest.mark.parametrize("family", CONFIGS)
def test_each_missing_tensor_is_named(family: str) -> None:
    shapes = shapes_of(family)
    for name in shapes.keys() - {"model.embed_tokens.weight"}:
        with pytest.raises(TensorError, match=f"^folder: tensor '{name}' is missing; expected"):
            map_of(family, {other: shape for other, shape in shapes.items() if other != name})


def test_missing_embedding() -> None:
    with pytest.raises(
        TensorError, match=r"the embedding table is missing; expected one of 'model\.embed_tokens"
    ):
        map_of("gemma", {})


def test_missing_layer_says_how_many() -> None:
    shapes = {name: shape for name, shape in shapes_of("gemma").items() if ".layers.2." not in name}
    with pytest.raises(TensorError, match=r"is missing \(9 tensors are missing in all\)"):
        map_of("gemma", shapes)


@pytest.mark.parametrize("shape", [(64, 128), (128,), (128, 64, 1), (128, 65)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(TensorError, match=rf"tensor '{name}' has shape \[{shape[0]}.*expected \[128, 64\]"):
        map_of("gemma", shapes_of("gemma") | {name: shape})


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "model.layers.-1.input_layernorm.weight",
        "model.layers.\u0663.input_layernorm.weight",
        "layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "vision_tower.x",
    ],
)
def test_unexpected_tensor(name: str) -> None:
    with pytest.raises(TensorError, match=f"unexpected tensor '{name}' of shape"):
        map_of("gemma", shapes_of("gemma") | {name: (64,)})


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_beyond_the_configuration_are_passed_over_and_listed(family: str) -> None:
    shapes = shapes_of(family, "model.language_model.")
    of_last = {name: shape for name, shape in shapes.items() if ".layers.2." in name}
    more = {name.replace(".2.", f".{i}."): shape for name, shape in of_last.items() for i in (3, 12)}
    config = parse_config(CONFIGS[family], where="config.json")
    found = map_tensors(shapes | more, config, where="folder")
    assert found.slots == map_of(family, shapes)
    assert found.passed_over == (f"layers 3 to 12 ({len(more)} tensors, but num_hidden_layers is 3)",)
    one = map_tensors(
        shapes | {"model.language_model.layers.3.x.qweight": (2, 2)}, config, where="folder"
    ).passed_over
    assert one == ("layer 3 (1 tensors, but num_hidden_layers is 3)",)


def test_image_towers_of_gemma3_are_ignored() -> None:
    for prefix, tower in (("language_model.model.", ""), ("model.language_model.", "model.")):
        shapes = shapes_of("gemma3_text", prefix)
        extra = {f"{tower}vision_tower.a.weight": (3,), f"{tower}multi_modal_projector.b": (1, 2)}
        assert map_of("gemma3_text", shapes | extra) == map_of("gemma3_text", shapes)


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model."])
def test_output_matrix(prefix: str) -> None:
    head = "language_model.lm_head.weight" if prefix.startswith("language_model.") else "lm_head.weight"
    shapes = shapes_of("gemma3_text", prefix)
    assert head not in map_of(
        "gemma3_text", shapes | {head: (96, 64)}
    )  # tied: the head is a copy of the embedding
    untied = map_of("gemma3_text", shapes | {head: (96, 64)}, tie_word_embeddings=False)
    assert untied[head] == "lm_head"
    assert map_of("gemma3_text", shapes, tie_word_embeddings=False) == map_of("gemma3_text", shapes)
    with pytest.raises(TensorError, match=rf"'{head}' has shape \[96, 65\]; expected \[96, 64\]"):
        map_of("gemma3_text", shapes | {head: (96, 65)})


def test_a_written_folder_maps(tmp_path: Path) -> None:
    with Checkpoint(write_folder(tmp_path, CONFIGS["gemma2"], bf16=True)) as opened:
        slots = map_of("gemma2", {name: info.shape for name, info in opened.tensors.items()})
        assert {opened.read(name)[1] for name in slots} == {"bf16"}


# Other tools rename "model.layers.0...": (before, after, whether the head has the prefix too).
SPELLINGS = [
    "language_model.",
    "model.model.",
    "model.language_model.model.",
    "_orig_mod.model.",
    "model._orig_mod.",
    "module.model.",
    "_fsdp_wrapped_module.model.",
    "base_model.model.model.",
]


@pytest.mark.parametrize("prefix", SPELLINGS)
@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text"])
def test_other_prefixes(family: str, prefix: str) -> None:
    slots = map_of(family, shapes_of(family, prefix))
    assert sorted(slots.values()) == sorted(expected_slots(parse_config(CONFIGS[family], where="x")))
    assert slots[f"{prefix}layers.2.self_attn.o_proj.weight"] == "layers.2.o_proj"


def test_a_wrapper_inside_a_name() -> None:
    shapes = shapes_of("gemma")
    wrapped = {
        name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): shape
        for name, shape in shapes.items()
    }
    assert sorted(map_of("gemma", wrapped).values()) == sorted(map_of("gemma", shapes).values())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb_local.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.rotary_emb.sliding_attention_inv_freq",
        "model.rotary_emb.full_attention_original_inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.embeddings.position_ids",
        "model.embed_tokens.embed_scale",
        "model.layers.0.self_attn.k_proj.k_scale",
        "model.layers.0.self_attn.k_scale",
        "model.layers.1.self_attn.attn.v_scale",
        "model.layers.1.self_attn.kv_scale",
    ],
)
def test_constants_are_passed_over_and_listed(name: str) -> None:
    shapes = shapes_of("gemma3_text")
    config = parse_config(CONFIGS["gemma3_text"], where="config.json")
    found = map_tensors(shapes | {name: (1,)}, config, where="folder")
    assert found.slots == map_of("gemma3_text", shapes)
    assert found.passed_over == (name,)


@pytest.mark.parametrize("tower", ["vision_tower.x", "embed_vision.x", "audio_tower.x", "embed_audio.x"])
@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model."])
def test_towers_with_any_prefix(tower: str, prefix: str) -> None:
    shapes = shapes_of("gemma4_text", "model.language_model.")
    assert map_of("gemma4_text", shapes | {prefix + tower: (3,)}) == map_of("gemma4_text", shapes)


@pytest.mark.parametrize("name", ["lora_A.default.weight", "lora_B.weight", "base_layer.weight"])
def test_an_unmerged_adapter_is_named(name: str) -> None:
    at = f"base_model.model.model.layers.0.self_attn.q_proj.{name}"
    with pytest.raises(TensorError, match=r"unmerged PEFT state dict; merge it with merge_and_unload\(\)"):
        map_of("gemma", shapes_of("gemma", "base_model.model.model.") | {at: (4, 4)})


@pytest.mark.parametrize(
    ("ending", "tool"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("weight_scale", "FP8"),
        ("weight_scale_2", "NVFP4"),
        ("scales", "MLX"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_quantized_weights_are_named(ending: str, tool: str, kept: bool) -> None:
    shapes = shapes_of("gemma2")
    at = "model.layers.0.mlp.up_proj."
    if not kept:
        del shapes[f"{at}weight"]
    with pytest.raises(TensorError, match=f"quantized with .*{tool}.*; load the bf16 original"):
        map_of("gemma2", shapes | {at + ending: (4,)})


def test_two_tensors_for_one_weight_are_refused() -> None:
    name = "model.norm.weight"
    with pytest.raises(TensorError, match="are the same weight"):
        map_of("gemma", shapes_of("gemma") | {f"_orig_mod.{name}": (64,)})


def test_two_text_models_are_refused() -> None:
    shapes = shapes_of("gemma") | {"language_model.model.embed_tokens.weight": (96, 64)}
    with pytest.raises(TensorError, match="several text models"):
        map_of("gemma", shapes)


def test_a_value_head_is_ignored_and_a_classification_head_is_refused() -> None:
    shapes = shapes_of("gemma2")
    found = map_tensors(
        {**shapes, "v_head.summary.weight": (1, 64), "v_head.summary.bias": (1,)},
        parse_config(CONFIGS["gemma2"], where="config.json"),
        where="folder",
    )
    assert found.passed_over == ("v_head.summary.bias", "v_head.summary.weight")
    assert len(found.slots) == len(shapes)
    with pytest.raises(
        TensorError, match=r"'score\.weight'.*classifier or reward.*run this model with trans"
    ):
        map_of("gemma2", {**shapes, "score.weight": (1, 64)})
    with pytest.raises(TensorError, match=r"'surprise' .*save the model again without it"):
        map_of("gemma2", {**shapes, "surprise": (1,)})
