"""config.json: both spellings, files with few keys, and the errors for refused values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemlet.config import SHAPES, embedding_scale, parse_config, read_config, read_end_ids, shape_config
from gemlet.errors import ConfigError, GemletError, InvalidRequestError, ModelFileError
from support.tiny_models import CONFIGS, SIZES

# The keys of published files of each family, with smaller values, in the old spelling (transformers 4).
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma": {
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_act": "gelu",
        "hidden_activation": None,
        "initializer_range": 0.02,
        "model_type": "gemma",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.0.dev0",
        "use_cache": True,
        **SIZES,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 7],
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "model_type": "gemma2",
        "pad_token_id": 0,
        "query_pre_attn_scalar": 144,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 16,
        "sliding_window_size": 16,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.4",
        "use_cache": True,
        **SIZES,
    },
    "gemma3_text": {
        "_sliding_window_pattern": 2,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 6],
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "model_type": "gemma3_text",
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "use_bidirectional_attention": False,
        "use_cache": True,
        **SIZES,
    },
}
# The same models in the new spelling (transformers 5).
NEW_ROPE = {
    "gemma": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma2": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma3_text": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    },
}
MULTIMODAL: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "anything": [1]},
}


def parse(raw: dict[str, Any], **changes: Any) -> Any:
    return parse_config(raw | changes, where="config.json")


def without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def test_gemma1_old_spelling() -> None:
    config = parse(PUBLISHED["gemma"])
    assert (config.family, config.num_layers, config.hidden_size, config.vocab_size) == ("gemma", 3, 64, 96)
    assert config.norm_offset == 1.0
    assert config.final_softcap == 0.0
    assert config.eos_token_ids == (1,)
    for layer in config.layers:
        assert layer.query_scale == 32**-0.5
        assert (layer.sliding_window, layer.attention_softcap) == (0, 0.0)
        assert (layer.rope_theta, layer.rope_scaling_factor) == (10000.0, 1.0)
        assert not layer.qk_norm
        assert not layer.post_norms


def test_gemma2_old_spelling() -> None:
    config = parse(PUBLISHED["gemma2"])
    assert [layer.sliding_window for layer in config.layers] == [16, 0, 16]
    assert config.final_softcap == 30.0
    assert config.eos_token_ids == (1, 7)
    for layer in config.layers:
        assert layer.query_scale == pytest.approx(1 / 12)
        assert layer.attention_softcap == 50.0
        assert layer.rope_theta == 10000.0
        assert layer.post_norms
        assert not layer.qk_norm


def test_gemma3_old_spelling() -> None:
    config = parse(PUBLISHED["gemma3_text"])
    assert [layer.sliding_window for layer in config.layers] == [16, 0, 16]
    assert [layer.rope_theta for layer in config.layers] == [1e4, 1e6, 1e4]
    assert [layer.rope_scaling_factor for layer in config.layers] == [1.0, 8.0, 1.0]
    for layer in config.layers:
        assert layer.query_scale == 1 / 16
        assert layer.attention_softcap == 0.0
        assert layer.post_norms
        assert layer.qk_norm


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_new_spelling_gives_the_same_config(family: str) -> None:
    old = PUBLISHED[family]
    new = without(old, "rope_theta", "rope_scaling", "rope_local_base_freq", "torch_dtype")
    assert parse(new, rope_parameters=NEW_ROPE[family], dtype="bfloat16") == parse(old)


@pytest.mark.parametrize("family", PUBLISHED)
def test_both_spellings_in_one_file_must_agree(family: str) -> None:
    assert parse(PUBLISHED[family], rope_parameters=NEW_ROPE[family]) == parse(PUBLISHED[family])


def test_multimodal_text_part_is_sparse() -> None:
    config = parse(MULTIMODAL)
    assert (config.family, config.model_type) == ("gemma3", "gemma3")
    assert (config.vocab_size, config.max_position_embeddings) == (262208, 131072)
    assert config.eos_token_ids == (1, 106)
    layer = config.layers[0]
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (8, 4, 256)
    assert [i for i, layer in enumerate(config.layers) if layer.sliding_window == 0] == [5, 11, 17, 23, 29]
    assert {layer.rope_scaling_factor for layer in config.layers if layer.sliding_window} == {1.0}
    assert config.layers[5].rope_scaling_factor == 8.0


def test_multimodal_equals_the_text_model_of_the_same_shape() -> None:
    assert parse(MULTIMODAL).layers == shape_config("gemma3-4b").layers


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("gemma", (256000, 3072, 24576, 28, 16, 16, 256, 8192)),
        ("gemma2", (256000, 2304, 9216, 26, 8, 4, 256, 8192)),
        ("gemma3_text", (262208, 2304, 9216, 26, 8, 4, 256, 131072)),
    ],
)
def test_defaults_of_an_empty_file(model_type: str, expected: tuple[int, ...]) -> None:
    config = parse({"model_type": model_type})
    layer = config.layers[0]
    assert expected == (
        config.vocab_size,
        config.hidden_size,
        layer.intermediate_size,
        config.num_layers,
        layer.num_heads,
        layer.num_kv_heads,
        layer.head_dim,
        config.max_position_embeddings,
    )
    assert config.tie_word_embeddings


def test_null_softcaps_mean_none() -> None:
    config = parse(PUBLISHED["gemma2"], attn_logit_softcapping=None, final_logit_softcapping=None)
    assert config.final_softcap == 0.0
    assert config.layers[0].attention_softcap == 0.0


def test_layer_types_win_over_the_pattern() -> None:
    config = parse(PUBLISHED["gemma2"], layer_types=["full_attention", "full_attention", "sliding_attention"])
    assert [layer.sliding_window for layer in config.layers] == [0, 0, 16]


def test_the_layer_pattern_has_several_names() -> None:
    raw = without(
        PUBLISHED["gemma3_text"], "layer_types", "sliding_window_pattern", "_sliding_window_pattern"
    )
    assert parse(raw, _sliding_window_pattern=6) == parse(raw)
    assert [layer.sliding_window for layer in parse(raw, sliding_window_pattern=1).layers] == [0, 0, 0]


# Refused configurations: the family, the changed keys, and a pattern for the message.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"model_type": "llama"}, "model_type is 'llama'"),
    ("gemma", {"model_type": None}, "model_type is missing"),
    ("gemma", {"model_type": ["gemma"]}, "unknown architecture"),
    ("gemma", {"surprise": 3}, "unknown key 'surprise'"),
    ("gemma", {"query_pre_attn_scalar": 256}, "unknown key 'query_pre_attn_scalar'"),
    ("gemma", {"sliding_window": 16}, "unknown key 'sliding_window'"),
    ("gemma2", {"rope_local_base_freq": 1e4}, "unknown key 'rope_local_base_freq'"),
    ("gemma", {"\x1b[31m": 1}, r"unknown key '\\x1b\[31m'"),
    ("gemma", {"attention_bias": True}, "attention_bias is True; expected False"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    (
        "gemma2",
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "quantized with bitsandbytes; load the",
    ),
    (
        "gemma2",
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantized with AWQ; load the bf16",
    ),
    ("gemma2", {"quantization_config": {"load_in_4bit": True}}, "quantized with bitsandbytes"),
    ("gemma2", {"quantization_config": {"bits": 4, "group_size": 64}}, "quantized with MLX or GPTQ"),
    ("gemma2", {"quantization": {"bits": 4, "group_size": 64}}, "quantized with MLX or GPTQ"),
    ("gemma2", {"quantization_config": {"quant_method": "xyz"}}, "quantized with 'xyz'"),
    ("gemma2", {"quantization_config": {"surprise": 1}}, "a method gemlet does not know"),
    ("gemma2", {"quantization_config": True}, "a method gemlet does not know"),
    ("gemma", {"surprise": 0}, "unknown key 'surprise'"),
    ("gemma", {"surprise": {"deep": [0]}}, "unknown key 'surprise'"),
    ("gemma", {"hidden_size": 64.5}, "hidden_size is 64.5"),
    ("gemma", {"pad_token_id": -2}, "pad_token_id is -2"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ("gemma", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("gemma", {"is_encoder_decoder": 0}, "is_encoder_decoder is 0"),
    ("gemma", {"hidden_size": 0}, "hidden_size is 0; expected an integer from 1 to 65536"),
    ("gemma", {"hidden_size": -64}, "hidden_size is -64"),
    ("gemma", {"hidden_size": 1 << 62}, "hidden_size is 4611686018427387904"),
    ("gemma", {"hidden_size": True}, "hidden_size is True"),
    ("gemma", {"hidden_size": "64"}, "hidden_size is '64'"),
    ("gemma", {"hidden_size": None}, "hidden_size is None"),
    ("gemma", {"vocab_size": 1 << 31}, "vocab_size is 2147483648"),
    ("gemma", {"intermediate_size": 1 << 40}, "intermediate_size"),
    ("gemma", {"num_hidden_layers": 100000}, "num_hidden_layers is 100000"),
    ("gemma", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    ("gemma", {"num_key_value_heads": 3}, r"num_key_value_heads is 3; expected a divisor of .* \(4\)"),
    ("gemma", {"head_dim": 31}, "head_dim is 31; expected an even number"),
    ("gemma", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ("gemma", {"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ("gemma", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("gemma", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    ("gemma", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ("gemma", {"eos_token_id": -96}, "eos_token_id is -96; expected up to 64 token ids from 0 to 95"),
    ("gemma", {"eos_token_id": [1, -2]}, "eos_token_id"),
    ("gemma", {"eos_token_id": [True]}, "eos_token_id"),
    ("gemma", {"eos_token_id": [1] * 65}, "eos_token_id"),
    ("gemma", {"bos_token_id": 1.5}, "bos_token_id is 1.5"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ("gemma2", {"query_pre_attn_scalar": float("inf")}, "query_pre_attn_scalar is inf"),
    ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0"),
    ("gemma2", {"final_logit_softcapping": -30.0}, "final_logit_softcapping is -30.0"),
    ("gemma2", {"sliding_window": None}, "sliding_window is None"),
    ("gemma2", {"sliding_window": 0}, "sliding_window is 0"),
    ("gemma2", {"sliding_window_size": 32}, "sliding_window_size is 32"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types .* expected a list of 3"),
    ("gemma2", {"layer_types": "full_attention"}, "layer_types"),
    (
        "gemma2",
        {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
        r"layer_types\[1\]",
    ),
    ("gemma2", {"layer_types": [[], {}, None]}, r"layer_types\[0\]"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ("gemma3_text", {"_sliding_window_pattern": 3}, "_sliding_window_pattern is 3; expected the value of"),
    ("gemma", {"rope_theta": 0.0}, "rope_theta is 0.0"),
    ("gemma", {"rope_theta": float("inf")}, "rope_theta is inf"),
    ("gemma", {"rope_theta": "10000"}, "rope_theta is '10000'"),
    ("gemma", {"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object or null"),
    ("gemma", {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope'"),
    ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "Write rope_type in its place"),
    ("gemma", {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.type is 'su'"),
    ("gemma", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
    ("gemma", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor is 0"),
    ("gemma", {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2}}, "rope_scaling.type"),
    ("gemma", {"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor is 2.0; expected no factor"),
    ("gemma", {"rope_scaling": {"rope_type": "linear", "factor": 2, "mscale": 1}}, "'rope_scaling.mscale'"),
    ("gemma", {"rope_parameters": {"rope_theta": 5000.0}}, "rope_parameters.rope_theta = 5000, .*contradict"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "'rope_parameters.rope_theta'"),
    ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention is 3"),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
        "rope_parameters.full_attention.factor = 4, .*rope_scaling.factor = 8: .*contradict",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "proportional"}}},
        "rope_parameters.sliding_attention.rope_type is 'proportional'",
    ),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{message}"):
        parse(PUBLISHED[family], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "text_config is None; expected an object"),
        ({"text_config": [1]}, r"text_config is \[1\]"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
        ({"text_config": {"hidden_size": 0}}, "text_config.hidden_size is 0"),
        ({"text_config": {"surprise": 0}}, "unknown key 'text_config.surprise'"),
        (
            {"text_config": {"rope_scaling": {"rope_type": "su"}}},
            "text_config.rope_scaling.rope_type is 'su'",
        ),
        ({"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": 1}, "tie_word_embeddings"),
    ],
)
def test_refused_multimodal(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(MULTIMODAL, **changes)


def test_messages_stay_short() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(PUBLISHED["gemma"], **{"k" * 100000: ["v" * 100000] * 1000})
    assert len(str(caught.value)) < 1000


HOSTILE_JSON: list[tuple[str, bytes, str]] = [
    ("empty", b"", "not valid JSON"),
    ("cut", b'{"model_type": "gem', "not valid JSON"),
    ("array", b"[]", "a JSON list; expected an object"),
    ("number", b"12", "a JSON int"),
    ("NaN", b'{"rms_norm_eps": NaN}', "holds NaN"),
    ("infinity", b'{"rms_norm_eps": -Infinity}', "holds -Infinity"),
    ("overflow", b'{"model_type": "gemma", "rms_norm_eps": 1e999}', "rms_norm_eps is inf"),
    ("digits", b'{"hidden_size": ' + b"9" * 5000 + b"}", "more than 4300 digits|hidden_size"),
    ("deep", b'{"a":' * 50000 + b"1" + b"}" * 50000, "nested too deeply"),
    ("deep list", b'{"a":' + b"[" * 100000, "nested too deeply"),
    ("twice", b'{"model_type": "gemma", "head_dim": 2, "head_dim": 4}', "'head_dim' appears twice"),
    ("latin", b'{"model_type": "\xe9"}', "not UTF-8 at byte 16"),
    ("surrogate", b'{"model_type": "gemma", "\\ud800": 1}', r"unknown key '\\ud800'"),
]


@pytest.mark.parametrize(
    ("data", "message"), [case[1:] for case in HOSTILE_JSON], ids=[c[0] for c in HOSTILE_JSON]
)
def test_hostile_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(tmp_path)
    assert "config.json" in str(caught.value)
    str(caught.value).encode()  # the message can be printed


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json: missing"):
        read_config(tmp_path)


def test_config_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelFileError, match=r"config\.json: (cannot be read|not a regular file)"):
        read_config(tmp_path)


def test_config_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (10 * 1024 * 1024 + 1))
    with pytest.raises(ModelFileError, match=r"config\.json: has more than 10485760 bytes"):
        read_config(tmp_path)


def test_end_ids_come_from_both_files(tmp_path: Path) -> None:
    config = parse(CONFIGS["gemma"])
    assert read_end_ids(tmp_path, config) == {1}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "top_k": 64}))
    assert read_end_ids(tmp_path, config) == {1, 7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert read_end_ids(tmp_path, config) == {1, 5}
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    assert read_end_ids(tmp_path, config) == {1}


@pytest.mark.parametrize(
    "text", ['{"eos_token_id": -96}', '{"eos_token_id": "1"}', '{"eos_token_id": NaN}', "[]"]
)
def test_bad_generation_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        read_end_ids(tmp_path, parse(CONFIGS["gemma"]))


# For every published hidden size, the scale that the reference computes in bfloat16.
BF16_SCALES = {
    512: 22.625,
    640: 25.25,
    768: 27.75,
    1152: 34.0,
    1536: 39.25,
    2048: 45.25,
    2304: 48.0,
    2560: 50.5,
    2816: 53.0,
    3072: 55.5,
    3584: 59.75,
    3840: 62.0,
    4608: 68.0,
    5376: 73.5,
}


@pytest.mark.parametrize(("hidden_size", "expected"), BF16_SCALES.items())
def test_embedding_scale(hidden_size: int, expected: float) -> None:
    for weights in ("bf16", "bf12", "q8", "q4"):
        assert embedding_scale(hidden_size, weights) == expected
    assert embedding_scale(hidden_size, "f32") == hidden_size**0.5


# Parameters of the text model in thousands, from the published counts, without image towers.
@pytest.mark.parametrize(
    ("name", "thousands"),
    [
        ("gemma-2b", 2506172),
        ("gemma-7b", 8537681),
        ("gemma2-2b", 2614342),
        ("gemma2-9b", 9241706),
        ("gemma2-27b", 27227128),
        ("gemma3-270m", 268098),
        ("gemma3-1b", 999886),
        ("gemma3-4b", 3880263),
    ],
)
def test_shapes_have_the_published_parameters(name: str, thousands: int) -> None:
    import math

    from gemlet.weights.slots import expected_slots

    assert round(sum(map(math.prod, expected_slots(shape_config(name)).values())) / 1000) == thousands


def test_every_shape_parses() -> None:
    for name in SHAPES:
        assert shape_config(name).num_layers >= 18


def test_unknown_shape() -> None:
    with pytest.raises(InvalidRequestError, match=r"'gemma9-1t'; .* Known are gemma-2b, "):
        shape_config("gemma9-1t")


def test_errors_are_gemlet_errors() -> None:
    assert issubclass(ConfigError, GemletError)
    assert issubclass(ConfigError, ValueError)
