"""config.json of Gemma 3n, Gemma 4 and fine-tunes: the values of each layer, and refused values."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest

from gemlet.config import SHAPES, TextConfig, parse_config, shape_config
from gemlet.errors import ConfigError
from golden.variants_gemma3n import gemma3n_causal, gemma3n_multimodal, gemma3n_text
from golden.variants_gemma4 import gemma4_causal, gemma4_multimodal, gemma4_text
from support.tiny_models import CONFIGS

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def parse(raw: dict[str, Any], **changes: Any) -> TextConfig:
    return parse_config(raw | changes, where="config.json")


def without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def each(config: TextConfig, field: str) -> list[Any]:
    return [getattr(layer, field) for layer in config.layers]


def globals_of(config: TextConfig) -> list[int]:
    return [i for i, layer in enumerate(config.layers) if layer.sliding_window == 0]


# --- Gemma 3n ---------------------------------------------------------------------------------------------


def test_gemma3n_as_published() -> None:
    shares = [0.95, 0.95, 0.8, 0.0, 0.0, 0.0, 0.0]
    config = parse(gemma3n_multimodal(activation_sparsity_pattern=shares))
    assert (config.family, config.model_type) == ("gemma3n", "gemma3n")
    assert (config.norm_offset, config.final_softcap, config.tie_word_embeddings) == (0.0, 30.0, True)
    assert (config.per_layer_input_size, config.per_layer_vocab_size) == (6, 139)
    assert (config.altup_streams, config.laurel_rank) == (4, 5)
    assert config.eos_token_ids == (1, 106)
    assert each(config, "sliding_window") == [8, 8, 8, 0, 8, 8, 0]
    assert each(config, "kv_source") == [-1, -1, -1, -1, 2, 2, 3]
    assert each(config, "rope_theta") == [1e4, 1e4, 1e4, 1e6, 1e4, 1e4, 1e6]
    cutoffs = [NormalDist().inv_cdf(share) for share in shares[:3]]
    assert each(config, "activation_sparsity") == [*cutoffs, None, None, None, None]
    assert cutoffs[0] == pytest.approx(1.6448536)
    for layer in config.layers:
        assert layer.query_scale == 1.0  # the file has query_pre_attn_scalar, but it has no effect
        assert layer.qk_norm
        assert layer.v_norm
        assert layer.post_norms
        assert layer.rope_partial_factor == 1.0
        assert not layer.key_is_value
        assert not layer.layer_scalar
        assert layer.num_experts == 0


def test_gemma3n_text_alone_is_the_same_model() -> None:
    assert parse(gemma3n_causal()).layers == parse(gemma3n_multimodal()).layers
    assert parse(gemma3n_causal()).model_type == "gemma3n_text"


def test_gemma3n_new_rope_spelling() -> None:
    old = gemma3n_causal(rope_scaling={"rope_type": "linear", "factor": 4.0})
    new = without(old, "rope_scaling", "rope_theta", "rope_local_base_freq")
    rope = {
        LOCAL: {"rope_type": "default", "rope_theta": 1e4},
        GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    }
    assert parse(new, rope_parameters=rope) == parse(old)
    assert each(parse(old), "rope_scaling_factor") == [1, 1, 1, 4, 1, 1, 4]


def test_gemma3n_defaults() -> None:
    config = parse({"model_type": "gemma3n_text"})
    assert config == shape_config("gemma3n-e4b")
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (262400, 2048, 35)
    assert globals_of(config) == [4, 9, 14, 19, 24, 29, 34]
    assert each(config, "kv_source")[18:25] == [-1, -1, 18, 18, 18, 18, 19]
    assert [cut is not None for cut in each(config, "activation_sparsity")] == [True] * 10 + [False] * 25
    small = parse({"model_type": "gemma3n_text", "num_hidden_layers": 10, "num_kv_shared_layers": 0})
    assert each(small, "activation_sparsity") == [None] * 10


def test_gemma3n_width_per_layer() -> None:
    widths = [10, 20, 30, 40, 50, 60, 70]
    assert each(parse(gemma3n_text(intermediate_size=widths)), "intermediate_size") == widths
    assert each(parse(gemma3n_text(intermediate_size=48)), "intermediate_size") == [48] * 7


def test_a_sparsity_of_one_half_still_has_a_cutoff() -> None:
    """A cutoff of 0 deviations above the mean is not the same as no cutoff."""
    shares = [0.5, 0.0, 0.25, 0.0, 0.0, 0.0, 0]
    cutoffs = each(parse(gemma3n_text(activation_sparsity_pattern=shares)), "activation_sparsity")
    assert cutoffs == [0.0, None, pytest.approx(-0.6744898), None, None, None, None]
    core = parse(gemma3n_text(activation_sparsity_pattern=shares)).to_core(weights="f32")
    assert [layer.activation_sparsity for layer in core.layers] == cutoffs


# --- Gemma 4 ----------------------------------------------------------------------------------------------


def test_gemma4_dense() -> None:
    text = gemma4_text([LOCAL, GLOBAL] * 2, attention_k_eq_v=True, num_global_key_value_heads=1)
    config = parse(gemma4_multimodal(text))
    assert (config.family, config.model_type) == ("gemma4", "gemma4")
    assert (config.norm_offset, config.final_softcap) == (0.0, 30.0)
    assert (config.per_layer_input_size, config.altup_streams) == (0, 1)
    assert each(config, "head_dim") == [16, 32] * 2
    assert each(config, "num_kv_heads") == [2, 1] * 2
    assert each(config, "key_is_value") == [False, True] * 2
    assert each(config, "rope_theta") == [1e4, 1e6] * 2
    assert each(config, "rope_partial_factor") == [1.0, 0.25] * 2
    for layer in config.layers:
        assert layer.query_scale == 1.0
        assert layer.v_norm
        assert layer.layer_scalar
        assert layer.kv_source == -1


def test_kv_heads_of_global_layers_count_only_if_k_equals_v() -> None:
    for changes, expected in (
        ({"num_global_key_value_heads": 1}, [2, 2]),
        ({"attention_k_eq_v": True}, [2, 2]),
        ({"attention_k_eq_v": True, "num_global_key_value_heads": 1}, [2, 1]),
        ({"attention_k_eq_v": True, "num_global_key_value_heads": 4}, [2, 4]),
    ):
        assert each(parse(gemma4_text([LOCAL, GLOBAL], **changes)), "num_kv_heads") == expected, changes


def test_per_layer_config_gives_the_same_and_replaces_the_other_keys() -> None:
    published = gemma4_causal(
        [LOCAL] * 9 + [GLOBAL, LOCAL, GLOBAL], attention_k_eq_v=True, num_global_key_value_heads=4
    )
    overrides = {"head_dim": 32, "num_key_value_heads": 4}
    for names in (("09", "11"), ("9", "11"), ("0009", "0011")):
        resaved = published | {"per_layer_config": dict.fromkeys(names, overrides)}
        assert parse(resaved) == parse(published)
        resaved |= {"global_head_dim": 48, "num_global_key_value_heads": 1}
        assert parse(resaved) == parse(published)
    config = parse(published, per_layer_config={})
    assert each(config, "head_dim") == [16] * 12
    assert each(config, "num_kv_heads") == [2] * 12
    local = parse(gemma4_text([LOCAL, GLOBAL]), per_layer_config={"0": {"head_dim": 8}})
    assert each(local, "head_dim") == [8, 16]


def test_the_last_layer_of_gemma4_is_global() -> None:
    assert globals_of(parse(gemma4_text([LOCAL] * 5))) == [4]
    assert globals_of(parse({"model_type": "gemma4_text", "num_hidden_layers": 8})) == [5, 7]


def test_gemma4_sharing_and_double_width() -> None:
    layers = [LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL]
    config = parse(gemma4_text(layers, num_kv_shared_layers=4, use_double_wide_mlp=True))
    assert each(config, "kv_source") == [-1, -1, -1, 2, 1, 2, 1]
    assert each(config, "intermediate_size") == [44] * 3 + [88] * 4
    narrow = parse(gemma4_text(layers, num_kv_shared_layers=4))
    assert each(narrow, "intermediate_size") == [44] * 7
    assert each(parse(gemma4_text(layers, use_double_wide_mlp=True)), "intermediate_size") == [44] * 7
    same_key = parse(gemma4_text(layers, num_kv_shared_layers=4, attention_k_eq_v=True))
    assert (
        each(same_key, "key_is_value") == [False, True] + [False] * 5
    )  # layers that share keys have neither


def test_gemma4_experts() -> None:
    moe = {"num_experts": 9, "top_k_experts": 3, "moe_intermediate_size": 12}
    config = parse(gemma4_text([LOCAL, GLOBAL], enable_moe_block=True, **moe))
    for layer in config.layers:
        assert (layer.num_experts, layer.experts_per_token, layer.expert_intermediate_size) == (9, 3, 12)
    off = parse(gemma4_text([LOCAL, GLOBAL], **moe))
    assert each(off, "num_experts") == [0, 0]


def test_gemma4_defaults() -> None:
    config = parse({"model_type": "gemma4_text"})
    layer = config.layers[0]
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (262144, 2304, 30)
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.intermediate_size) == (8, 4, 256, 9216)
    assert (config.per_layer_input_size, config.per_layer_vocab_size) == (256, 262144)
    assert (config.max_position_embeddings, layer.sliding_window, config.final_softcap) == (131072, 512, 0.0)
    assert globals_of(config) == [5, 11, 17, 23, 29]
    assert config.layers[5].head_dim == 512
    assert config.layers[5].rope_partial_factor == 0.25
    unified = parse({"model_type": "gemma4_unified_text"})
    assert (unified.family, unified.per_layer_input_size) == ("gemma4", 0)
    assert (unified.max_position_embeddings, unified.layers[0].sliding_window) == (262144, 1024)


def test_gemma4_unified_files_may_switch_off_features_that_the_class_lacks() -> None:
    text = gemma4_text([LOCAL, GLOBAL], model_type="gemma4_unified_text")
    raw = {"model_type": "gemma4_unified", "text_config": text, "vision_config": {}, "audio_config": {}}
    config = parse(raw)
    assert (config.family, config.model_type) == ("gemma4", "gemma4_unified")
    for key, value in (("hidden_size_per_layer_input", 256), ("enable_moe_block", True)):
        with pytest.raises(ConfigError, match=f"text_config.{key} is {value}"):
            parse(raw, text_config=text | {key: value})


def test_rope_of_gemma4() -> None:
    rope = {
        LOCAL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        GLOBAL: {
            "rope_type": "proportional",
            "factor": 4.0,
            "rope_theta": 1e5,
            "partial_rotary_factor": 0.5,
        },
    }
    config = parse(gemma4_text([LOCAL, GLOBAL], rope_parameters=rope))
    assert each(config, "rope_theta") == [500.0, 1e5]
    assert each(config, "rope_scaling_factor") == [2.0, 4.0]
    assert each(config, "rope_partial_factor") == [1.0, 0.5]
    only = parse(gemma4_text([GLOBAL, GLOBAL], rope_parameters={GLOBAL: {"rope_theta": 1e5}}))
    assert each(only, "rope_partial_factor") == [1.0, 1.0]
    null = parse(gemma4_text([LOCAL, GLOBAL], rope_parameters=None))
    assert null == parse(gemma4_text([LOCAL, GLOBAL]))


# --- The published sizes ----------------------------------------------------------------------------------


# Parameters of the text model in thousands, counted with the official classes.
@pytest.mark.parametrize(
    ("name", "thousands"),
    [
        ("gemma3n-e2b", 4435183),
        ("gemma3n-e4b", 6835236),
        ("gemma4-e2b", 4628569),
        ("gemma4-e4b", 7463013),
        ("gemma4-12b", 11907350),
        ("gemma4-26b-a4b", 25233142),
        ("gemma4-31b", 30697345),
    ],
)
def test_shapes_have_the_published_parameters(name: str, thousands: int) -> None:
    from gemlet.weights.slots import expected_slots

    assert round(sum(map(math.prod, expected_slots(shape_config(name)).values())) / 1000) == thousands


# Keys that files of fine-tunes have in addition to the sizes of the model they were trained from.
OLD_GEMMA1 = {"hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None, "rope_theta": 10000.0}
GEMMA2 = {"cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0}
GEMMA3 = {
    "_sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "use_bidirectional_attention": False,
}


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("codegemma-2b", "gemma-2b", OLD_GEMMA1 | {"eos_token_id": 1, "hidden_activation": None}),
        ("codegemma-7b-it", "gemma-7b", OLD_GEMMA1 | {"eos_token_id": [1, 107]}),
        ("shieldgemma-2b", "gemma2-2b", GEMMA2 | {"sliding_window_size": 4096}),
        ("shieldgemma-27b", "gemma2-27b", GEMMA2),
        ("functiongemma-270m", "gemma3-270m", GEMMA3 | {"eos_token_id": [1, 50, 106]}),
        ("medgemma-27b-text", "gemma3-27b", GEMMA3 | {"eos_token_id": [1, 106], "vocab_size": 262144}),
    ],
)
def test_fine_tunes_have_the_config_of_the_model_they_were_trained_from(
    name: str, base: str, changes: dict[str, Any]
) -> None:
    shape = dict(SHAPES[base])
    config = parse(shape, **changes)
    assert config.layers == shape_config(base).layers, name
    assert config.final_softcap == shape_config(base).final_softcap
    ends = changes.get("eos_token_id", 1)
    assert config.eos_token_ids == (tuple(ends) if isinstance(ends, list) else (ends,))


def test_vaultgemma_is_gemma2_without_norms_after_its_branches() -> None:
    given = {"layer_types": ["full_attention"] * 26, "max_position_embeddings": 1024}
    config = parse(dict(SHAPES["gemma2-2b"]) | {"model_type": "vaultgemma"} | given)
    assert config.family == "vaultgemma"
    assert globals_of(config) == list(range(26))
    alternating = parse(dict(SHAPES["gemma2-2b"]) | {"model_type": "vaultgemma"})
    expected = [replace(layer, post_norms=False) for layer in shape_config("gemma2-2b").layers]
    assert list(alternating.layers) == expected


@pytest.mark.parametrize(
    ("name", "layers", "first_sharing", "sources", "shared_width"),
    [
        ("gemma3n-e2b", 30, 20, {18, 19}, 8192),
        ("gemma3n-e4b", 35, 20, {18, 19}, 16384),
        ("gemma4-e2b", 35, 15, {13, 14}, 12288),
        ("gemma4-e4b", 42, 24, {22, 23}, 10240),
    ],
)
def test_sharing_layers_read_the_keys_of_the_right_layer(
    name: str, layers: int, first_sharing: int, sources: set[int], shared_width: int
) -> None:
    config = shape_config(name)
    assert config.num_layers == layers
    assert each(config, "kv_source")[:first_sharing] == [-1] * first_sharing
    assert set(each(config, "kv_source")[first_sharing:]) == sources
    for layer in config.layers[first_sharing:]:
        assert layer.sliding_window == config.layers[layer.kv_source].sliding_window
        assert layer.intermediate_size == shared_width


@pytest.mark.parametrize(
    "name", ["gemma3n-e2b", "gemma3n-e4b", "gemma4-e2b", "gemma4-e4b", "gemma4-26b-a4b", "gemma4-31b"]
)
def test_the_core_takes_every_shape(name: str) -> None:
    config = shape_config(name).to_core(weights="q4", max_context=4096)
    assert config.norm_offset == 0.0
    assert len(config.layers) == shape_config(name).num_layers


# --- What is refused --------------------------------------------------------------------------------------

FOUR = gemma4_causal([LOCAL, GLOBAL, LOCAL, GLOBAL])
THREE_N = gemma3n_causal()
MOE = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 12}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (THREE_N, {"surprise": 1}, "unknown key 'surprise'"),
    (THREE_N, {"attn_logit_softcapping": 50.0}, "unknown key 'attn_logit_softcapping'"),
    (THREE_N, {"global_head_dim": 512}, "unknown key 'global_head_dim'"),
    (THREE_N, {"altup_active_idx": 1}, "altup_active_idx is 1; expected 0"),
    (THREE_N, {"altup_correct_scale": False}, "altup_correct_scale is False"),
    (THREE_N, {"altup_num_inputs": 1}, "altup_num_inputs is 1; expected an integer from 2 to 16"),
    (THREE_N, {"altup_num_inputs": 17}, "altup_num_inputs is 17"),
    (THREE_N, {"laurel_rank": 0}, "laurel_rank is 0"),
    (THREE_N, {"attention_bias": True}, "attention_bias is True"),
    (THREE_N, {"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input is 0"),
    (THREE_N, {"hidden_size_per_layer_input": None}, "hidden_size_per_layer_input is None"),
    (THREE_N, {"vocab_size_per_layer_input": 0}, "vocab_size_per_layer_input is 0"),
    (THREE_N, {"final_logit_softcapping": None}, "final_logit_softcapping is None; expected a number"),
    (THREE_N, {"intermediate_size": [52] * 6}, "intermediate_size .*expected a list of 7 entries"),
    (THREE_N, {"intermediate_size": [52] * 6 + [0]}, r"intermediate_size\[6\] is 0; expected an integer"),
    (THREE_N, {"intermediate_size": [52] * 6 + [True]}, r"intermediate_size\[6\] is True"),
    (THREE_N, {"activation_sparsity_pattern": 0.95}, "activation_sparsity_pattern is 0.95; expected a list"),
    (THREE_N, {"activation_sparsity_pattern": [0.95]}, "activation_sparsity_pattern .*list of 7"),
    (THREE_N, {"activation_sparsity_pattern": [0.0] * 6 + [1.0]}, r"pattern\[6\] is 1.0; expected 0, or"),
    (THREE_N, {"activation_sparsity_pattern": [-0.5] + [0.0] * 6}, r"pattern\[0\] is -0.5"),
    (THREE_N, {"activation_sparsity_pattern": [float("nan")] + [0.0] * 6}, r"pattern\[0\] is nan"),
    (THREE_N, {"activation_sparsity_pattern": ["0.95"] + [0.0] * 6}, r"pattern\[0\] is '0.95'"),
    (THREE_N, {"activation_sparsity_pattern": [False] + [0.0] * 6}, r"pattern\[0\] is False"),
    (THREE_N, {"num_kv_shared_layers": 7}, "num_kv_shared_layers is 7; expected an integer from 0 to 6"),
    (THREE_N, {"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
    (THREE_N, {"num_kv_shared_layers": None}, "num_kv_shared_layers is None"),
    (THREE_N, {"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4; expected fewer: layer 3 is a full"),
    (THREE_N, {"rope_parameters": {GLOBAL: {"rope_type": "proportional"}}}, "rope_type is 'proportional'"),
    (THREE_N, {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope'"),
    (THREE_N, {"sliding_window": None}, "sliding_window is None"),
    (FOUR, {"surprise": 1}, "unknown key 'surprise'"),
    (FOUR, {"query_pre_attn_scalar": 256}, "unknown key 'query_pre_attn_scalar'"),
    (FOUR, {"rope_theta": 1e6}, "unknown key 'rope_theta'"),
    (FOUR, {"rope_scaling": {"factor": 2.0}}, "unknown key 'rope_scaling'"),
    (FOUR, {"altup_num_inputs": 4}, "unknown key 'altup_num_inputs'"),
    (FOUR, {"intermediate_size": [44] * 4}, r"intermediate_size is \[44, 44, 44, 44\]"),
    (FOUR, {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    (FOUR, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    (FOUR, {"attention_bias": True}, "attention_bias is True"),
    (FOUR, {"attention_k_eq_v": None}, "attention_k_eq_v is None; expected true or false"),
    (FOUR, {"use_double_wide_mlp": 1, "num_kv_shared_layers": 2}, "use_double_wide_mlp is 1"),
    (FOUR, {"global_head_dim": 31}, "global_head_dim is 31; expected an even number"),
    (FOUR, {"global_head_dim": None}, "global_head_dim is None"),
    (FOUR, {"num_global_key_value_heads": 3, "attention_k_eq_v": True}, "num_global_key_value_heads is 3"),
    (FOUR, {"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor"),
    (FOUR, {"per_layer_config": None}, "per_layer_config is None"),
    (FOUR, {"per_layer_config": [{}]}, "per_layer_config is "),
    (FOUR, {"per_layer_config": {"4": {}}}, "per_layer_config has the key '4'; expected .* 0 to 3"),
    (FOUR, {"per_layer_config": {"-1": {}}}, "has the key '-1'"),
    (FOUR, {"per_layer_config": {"full_attention": {}}}, "has the key 'full_attention'"),
    (FOUR, {"per_layer_config": {"\u00b2": {}}}, "has the key"),
    (FOUR, {"per_layer_config": {"1": {"head_dim": 32}, "01": {}}}, "has the key '01'; expected .*each once"),
    (FOUR, {"per_layer_config": {"1": {"head_dim": 32}}}, "layer 3 differ from the other full_attention"),
    (FOUR, {"per_layer_config": {"1": {"sliding_window": 4}}}, "unknown key 'per_layer_config.1.sliding_w"),
    (FOUR, {"per_layer_config": {"1": {"head_dim": 31}}}, "per_layer_config.1.head_dim is 31"),
    (FOUR, {"per_layer_config": {"1": {"num_key_value_heads": 3}}}, "config.1.num_key_value_heads is 3"),
    (FOUR, {"per_layer_config": {"1": 3}}, "per_layer_config.1 is 3; expected an object"),
    (FOUR, MOE | {"num_experts": None}, "num_experts is None"),
    (FOUR, MOE | {"num_experts": 5000}, "num_experts is 5000"),
    (FOUR, MOE | {"top_k_experts": 9}, "top_k_experts is 9; expected an integer from 1 to 8"),
    (FOUR, MOE | {"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    (FOUR, {"enable_moe_block": None}, "enable_moe_block is None"),
    (FOUR, {"hidden_size_per_layer_input": -1}, "hidden_size_per_layer_input is -1"),
    (FOUR, {"num_kv_shared_layers": 3}, "num_kv_shared_layers is 3; expected fewer: layer 1 is a full"),
    (FOUR, {"rope_parameters": {}}, "is missing; expected an object: this model has layers of that type"),
    (FOUR, {"rope_parameters": {"rope_theta": 1e4}}, "unknown key 'rope_parameters.rope_theta'"),
    (FOUR, {"rope_parameters": {LOCAL: {"rope_theta": 1e4}}}, "full_attention is missing"),
    (
        FOUR,
        {"rope_parameters": {LOCAL: {"rope_type": "default"}, GLOBAL: {"rope_theta": 1e4}}},
        "rope_parameters.sliding_attention.rope_theta is missing",
    ),
    (
        FOUR,
        {"rope_parameters": {LOCAL: {"rope_theta": 1e4}, GLOBAL: {"rope_theta": 1, "rope_type": "su"}}},
        "full_attention.rope_type is 'su'; expected one of 'default', 'linear', 'dynamic', 'proportional'",
    ),
    (
        FOUR,
        {
            "rope_parameters": {
                LOCAL: {"rope_theta": 1e4},
                GLOBAL: {"rope_theta": 1e6, "partial_rotary_factor": 0.25},
            }
        },
        "full_attention.partial_rotary_factor is 0.25; expected none beside",
    ),
]


@pytest.mark.parametrize(("raw", "changes", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused(raw: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{message}"):
        parse(raw, **changes)


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (
            gemma3n_multimodal(),
            {"text_config": None},
            "text_config is None; expected an object .*gemma3n_text",
        ),
        (gemma3n_multimodal(), {"text_config": {"model_type": "gemma3_text"}}, "text_config.model_type"),
        (gemma3n_multimodal(), {"text_config": {"laurel_rank": 0}}, "text_config.laurel_rank is 0"),
        (gemma3n_multimodal(), {"video_token_id": 1}, "unknown key 'video_token_id'"),
        (gemma4_multimodal(FOUR), {"quantization_config": {"quant_method": "fp8"}}, "quantized with FP8"),
        (gemma4_multimodal(FOUR), {"hidden_size": 7}, "hidden_size is 7; expected the value of text_config"),
        (gemma4_multimodal(FOUR), {"mm_tokens_per_image": 256}, "unknown key 'mm_tokens_per_image'"),
        (gemma4_multimodal(FOUR), {"text_config": {"model_type": "gemma4_unified_text"}}, "model_type is"),
    ],
)
def test_refused_multimodal(raw: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(raw, **changes)


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text", "gemma4_experts"])
@pytest.mark.parametrize("value", [None, -1, 0, 1 << 62, 2.5, "8", [], {}, True, float("nan")])
def test_any_value_of_any_key_is_accepted_or_a_typed_error(family: str, value: Any) -> None:
    """Each key gets other values in turn. The result is a configuration that the core takes, or an error."""
    refused = []
    for key in CONFIGS[family].keys() - {"model_type"}:
        try:
            parse(CONFIGS[family], **{key: value}).to_core(weights="f32")
        except ConfigError as problem:
            refused.append(str(problem))
    assert len(refused) > 3
    assert all(len(message) < 500 for message in refused)


@pytest.mark.parametrize(
    "model_type", ["t5gemma", "t5gemma2", "paligemma", "recurrent_gemma", "diffusion_gemma", "colpali"]
)
def test_relatives_of_gemma_are_refused_by_name(model_type: str) -> None:
    with pytest.raises(
        ConfigError, match=f"model_type is '{model_type}': .* gemlet does not run; run it with"
    ):
        parse_config({"model_type": model_type}, where="config.json")
