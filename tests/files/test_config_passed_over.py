"""Keys of config.json that change nothing are ignored and listed, whatever their names are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemlet.config import parse_config, read_config, read_end_ids
from gemlet.config.generation_defaults import read_recommended
from gemlet.errors import ConfigError
from support.tiny_models import CONFIGS


def parse(raw: dict[str, Any], **changes: Any) -> Any:
    return parse_config(raw | changes, where="config.json")


# Keys that change nothing, and the names under which they are listed.
PASSED_OVER: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "gemma",
        {"surprise": None, "more": False, "empty": [], "nested": {"a": None}},
        ["surprise", "more", "empty", "nested"],
    ),
    ("gemma3_text", {"expert_intermediate_size": None}, ["expert_intermediate_size"]),
    ("gemma2", {"chunk_size_feed_forward": None}, ["chunk_size_feed_forward"]),
    ("gemma3_text", {"is_encoder_decoder": None}, ["is_encoder_decoder"]),
    ("gemma2", {"quantization_config": {}}, ["quantization_config"]),
    ("gemma2", {"quantization_config": {"quant_method": None, "bits": None}}, ["quantization_config"]),
    (
        "gemma2",
        {"quantization_config": {"load_in_4bit": False, "load_in_8bit": False, "llm_int8_threshold": 6.0}},
        ["quantization_config"],
    ),
    ("gemma", {"rope_scaling": {"rope_type": "default", "factor": 8.0}}, ["rope_scaling.factor"]),
    ("gemma", {"rope_parameters": {"full_attention": {}}}, ["rope_parameters.full_attention"]),
    ("gemma", {"ignore_index": -100, "auto_map": {"AutoModel": "custom.py"}}, []),
    ("gemma", {"quantization_config": None}, []),
    ("gemma", {"hidden_act": "gelu_new"}, []),
    ("gemma3_text", {"hidden_activation": "gelu_fast"}, []),
    ("gemma2", {"hidden_activation": "gelu_accurate", "_attn_implementation_internal": "sdpa"}, []),
    ("gemma4_text", {"hidden_activation": "gelu_python_tanh", "_experts_implementation": "eager"}, []),
    ("gemma2", {"pretraining_tp": 1, "num_local_experts": 0, "classifier_dropout": 0.1}, []),
    ("gemma4_text", {"transformers.js_config": {"dtype": "q4"}, "router_aux_loss_coef": 0.001}, []),
    ("gemma3_text", {"tie_word_embeddings": None, "attn_logit_softcapping": 0.0}, []),
    (
        "gemma4_text",
        {"attn_logit_softcapping": 0.0, "activation_sparsity_pattern": 0, "partial_rotary_factor": 1.0},
        ["attn_logit_softcapping", "activation_sparsity_pattern", "partial_rotary_factor"],
    ),
    (
        "gemma3_text",
        {"num_experts": 0, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        ["num_experts", "num_kv_shared_layers", "hidden_size_per_layer_input"],
    ),
    ("gemma", {"pad_token_id": -1, "hidden_size": 64.0, "eos_token_id": [1, -1]}, []),
    ("gemma", {"bos_token_id": 4000, "eos_token_id": [1, 96]}, ["bos_token_id", "eos_token_id"]),
]


@pytest.mark.parametrize(("family", "changes", "keys"), PASSED_OVER)
def test_unknown_keys_without_an_effect_are_listed(
    family: str, changes: dict[str, Any], keys: list[str]
) -> None:
    """A key without an effect is accepted, and listed if gemlet does not know it."""
    config = parse(CONFIGS[family], **changes)
    assert list(config.passed_over) == keys
    without = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"))
    same = [
        replace(c, pad_token_id=None, bos_token_id=None, eos_token_ids=())
        for c in (config, parse(CONFIGS[family], **without))
    ]
    assert same[0] == same[1]
    if "pad_token_id" in changes:
        assert config.pad_token_id is None
        assert config.eos_token_ids == (1,)


def test_ends_that_no_model_writes(tmp_path: Path) -> None:
    config = parse(CONFIGS["gemma"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [96, 5]}))
    assert read_end_ids(tmp_path, config) == {1, 5}  # 96 is beyond the vocabulary
    assert read_recommended(tmp_path, config.vocab_size).passed_over == ("eos_token_id",)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    text = json.dumps(CONFIGS["gemma"])
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_config(tmp_path) == parse(CONFIGS["gemma"])


def test_keys_of_other_families_are_refused_unless_they_mean_none() -> None:
    for changes in ({"num_experts": 4}, {"num_experts": True}, {"partial_rotary_factor": 0.5}):
        with pytest.raises(ConfigError, match="unknown key"):
            parse(CONFIGS["gemma2"], **changes)


def test_the_text_part_of_a_multimodal_model_is_always_gemma3() -> None:
    """The reference treats every text part as a Gemma 3, and does not cap the logits."""
    whole = {"model_type": "gemma3", "text_config": CONFIGS["gemma3_text"]}
    unnamed = {"model_type": "gemma3", "text_config": CONFIGS["gemma3_text"] | {"model_type": None}}
    assert parse(unnamed) == parse(whole)
    capped = CONFIGS["gemma3_text"] | {"final_logit_softcapping": 20.0}
    with pytest.raises(ConfigError, match=r"text_config.final_logit_softcapping is 20.0; expected null"):
        parse({"model_type": "gemma3", "text_config": capped})


def test_a_pattern_that_the_reference_ignores_must_be_the_default() -> None:
    raw = {key: value for key, value in CONFIGS["gemma3_text"].items() if key != "sliding_window_pattern"}
    with pytest.raises(ConfigError, match="_sliding_window_pattern is 2; expected 6, or layer_types beside"):
        parse(raw, _sliding_window_pattern=2)
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert parse(raw, _sliding_window_pattern=2, layer_types=types) == parse(raw, layer_types=types)
