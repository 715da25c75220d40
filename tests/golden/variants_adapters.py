"""The golden adapters: which arguments PEFT gets for each. ``make_adapters.py`` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
# PEFT cannot adapt the towers of Gemma 4. Their projections have the same names, so they are excluded.
LINEAR = r"model\.(language_model\.)?(layers\.\d+\..*(proj|projection|gate)|per_layer_model_projection)"
TABLE_TOKENS = [30, *range(4, 30, 2), 9, *range(31, 90, 3)]  # in no order; prompts have some of them
TEXT = r"model\.(language_model\.)?layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


@dataclass(frozen=True)
class AdapterVariant:
    """An adapter: its golden checkpoint, the arguments and the class of its configuration, and the type of
    its tensors."""

    name: str
    base: str
    options: dict[str, Any] = field(default_factory=dict)
    stored: str = "float32"
    kind: Any = LoraConfig


ADAPTERS = (
    AdapterVariant("gemma3-plain", "gemma3-270m", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    AdapterVariant(
        "gemma3-rslora",
        "gemma3-270m",
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-patterns",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["v_proj", "o_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.v_proj": 5, r".*\.[02]\.mlp\.up_proj": 1},
            "alpha_pattern": {"o_proj": 7, r"^model\.layers\.1\..*": 3},
        },
    ),
    AdapterVariant(
        "gemma3-layers",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 8,
            "target_modules": ["k_proj", "gate_proj"],
            "layers_to_transform": [1, 2],
            "layers_pattern": "layers",
            "exclude_modules": ["layers.2.self_attn.k_proj"],
        },
    ),
    # Such a pattern is written for several models at once. This one has every known difficulty.
    AdapterVariant(
        "gemma3-regex",
        "gemma3-4b-resaved",
        {
            "r": 2,
            "lora_alpha": 8,
            "target_modules": r"(?!.*vision)(?:.*?(?:language|txt).*?(?:self_attn|mlp).*?(?:[qv]|down)_proj)"
            r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|o_proj)))",
        },
    ),
    AdapterVariant(
        "gemma2-linear",
        "gemma2-2b",
        {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
        stored="float16",
    ),
    AdapterVariant("gemma3n-shared", "gemma3n-e2b", {"r": 2, "lora_alpha": 4, "target_modules": ALL}),
    AdapterVariant("gemma4-shared", "gemma4-e2b", {"r": 2, "lora_alpha": 4, "target_modules": TEXT}),
    # Every linear module of the text model.
    AdapterVariant(
        "gemma3n-linear", "gemma3n-e2b", {"r": 2, "lora_alpha": 1, "target_modules": "all-linear"}
    ),
    AdapterVariant("gemma4-linear", "gemma4-e2b", {"r": 2, "lora_alpha": 4, "target_modules": LINEAR}),
    AdapterVariant("gemma4-router", "gemma4-26b-a4b", {"r": 2, "lora_alpha": 4, "target_modules": LINEAR}),
    # With matrices of the image tower, which text does not need.
    AdapterVariant(
        "gemma3-towers", "gemma3-4b-resaved", {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"}
    ),
    # The embedding table and the output head: as low-rank terms, as whole matrices, and by row.
    AdapterVariant(
        "gemma3-ends",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    ),
    AdapterVariant(
        "gemma3-saved",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["k_proj", "gate_proj"],
            "modules_to_save": ["lm_head", "embed_tokens"],
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-tied",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-tied-lora",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    ),
    AdapterVariant(
        "gemma3-table",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-tokens-apart",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [9, 4, 2]},
        },
    ),
    AdapterVariant(
        "gemma3-untied-head",
        "gemma3-untied",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["lm_head", "o_proj"],
            "modules_to_save": ["embed_tokens"],
        },
        stored="bfloat16",
    ),
    # The output head has the rows of the table, and also a low-rank term.
    AdapterVariant(
        "gemma3-head-tokens",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["lm_head", "v_proj"],
            "trainable_token_indices": [9, 4, 30],
        },
    ),
    AdapterVariant(
        "gemma3-tokens",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 20]},
    ),
    AdapterVariant(
        "gemma3-dora",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "use_dora": True,
            "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
        },
    ),
    AdapterVariant("gemma4-experts", "gemma4-26b-a4b", {"r": 2, "lora_alpha": 4, "target_modules": TEXT}),
    # The stacked matrices of routed experts.
    AdapterVariant(
        "gemma4-routed",
        "gemma4-26b-a4b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": r"model\.(language_model\.)?layers\.\d+\.self_attn\.q_proj",
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    AdapterVariant(
        "gemma4-routed-down",
        "gemma4-26b-a4b",
        {
            "r": 3,
            "lora_alpha": 9,
            "use_rslora": True,
            "target_modules": [],
            "target_parameters": ["experts.down_proj"],
            "alpha_pattern": {"layers.1.experts.down_proj": 2},
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-bias",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "lora_bias": True, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    ),
    # Whole norms, which LongLoRA trains, the whole table of per-layer embeddings, and whole matrices.
    AdapterVariant(
        "gemma3-norms",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]},
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3n-norms",
        "gemma3n-e2b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "modules_to_save": ["norm", "embed_tokens_per_layer"],
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma4-norms",
        "gemma4-26b-a4b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": r"model\.(language_model\.)?layers\.\d+\.self_attn\.q_proj",
            "modules_to_save": ["layernorm", "layernorm_1", "layernorm_2", "k_norm", "q_norm"],
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma4-table",
        "gemma4-e2b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": r"model\.(language_model\.)?layers\.\d+\.self_attn\.o_proj",
            "modules_to_save": ["embed_tokens_per_layer", "post_per_layer_input_norm"],
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma3-modules",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["1.mlp", "k_proj"]},
        stored="bfloat16",
    ),
    # Loading subtracts something from the model's own weights.
    AdapterVariant(
        "gemma3-pissa",
        "gemma3-270m",
        {"r": 4, "lora_alpha": 2, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]},
    ),
    AdapterVariant(
        "gemma3-olora",
        "gemma3-270m",
        {
            "r": 3,
            "lora_alpha": 5,
            "init_lora_weights": "olora",
            "use_dora": True,
            "target_modules": ["v_proj", "up_proj", "o_proj"],
        },
    ),
    # But the file has the rest of an output head.
    AdapterVariant(
        "gemma3-pissa-head",
        "gemma3-untied",
        {"r": 3, "lora_alpha": 5, "init_lora_weights": "pissa", "target_modules": ["lm_head", "v_proj"]},
        stored="bfloat16",
    ),
    # And nothing is subtracted from the embedding table.
    AdapterVariant(
        "gemma3-pissa-table",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "init_lora_weights": "pissa", "target_modules": ["embed_tokens", "v_proj"]},
    ),
    # They differ from a plain LoRA only in training.
    AdapterVariant(
        "gemma3-velora",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "velora_config": VeloraConfig(num_groups=4),
            "target_modules": ["q_proj", "down_proj"],
        },
    ),
    AdapterVariant(
        "gemma3-monteclora",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "monteclora_config": MontecloraConfig(num_samples=2),
            "target_modules": ["v_proj", "up_proj"],
        },
        stored="bfloat16",
    ),
    # r is larger than the sides of some matrices of AltUp; PEFT then gives A and B the rank of the side.
    AdapterVariant(
        "gemma3n-pissa",
        "gemma3n-e2b",
        {"r": 6, "lora_alpha": 3, "init_lora_weights": "pissa", "target_modules": "all-linear"},
    ),
    AdapterVariant(
        "gemma3n-olora",
        "gemma3n-e2b",
        {
            "r": 6,
            "lora_alpha": 3,
            "init_lora_weights": "olora",
            "target_modules": ["prediction_coefs", "correction_coefs", "modality_router", "linear_left"],
        },
    ),
    # The table of per-layer embeddings, as a low-rank term.
    AdapterVariant(
        "gemma3n-table-lora",
        "gemma3n-e2b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["embed_tokens_per_layer", "embed_tokens", "per_layer_model_projection"],
        },
    ),
    AdapterVariant(
        "gemma4-table-lora",
        "gemma4-e2b",
        {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "target_modules": r"model\.(language_model\.)?(embed_tokens_per_layer|layers\.\d+\.mlp\.up_proj)",
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma4-table-dora",
        "gemma4-e2b",
        {
            "r": 2,
            "lora_alpha": 4,
            "use_dora": True,
            "target_modules": r"model\.(language_model\.)?embed_tokens_per_layer",
        },
    ),
    # The rows of some tokens in this table, also of both tables.
    AdapterVariant(
        "gemma3n-table-tokens",
        "gemma3n-e2b",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens_per_layer": TABLE_TOKENS, "embed_tokens": [7, 3]},
        },
        stored="bfloat16",
    ),
    AdapterVariant(
        "gemma4-table-tokens",
        "gemma4-e2b",
        {"token_indices": TABLE_TOKENS, "target_modules": ["embed_tokens_per_layer"]},
        kind=TrainableTokensConfig,
    ),
    # PEFT reads the flag of QA-LoRA for modules in GPTQ only.
    AdapterVariant(
        "gemma3-qalora",
        "gemma3-270m",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "down_proj"],
            "use_qalora": True,
            "qalora_group_size": 4,
        },
    ),
    AdapterVariant("gemma3-only-norms", "gemma3-270m", {}, kind=LNTuningConfig, stored="bfloat16"),
    AdapterVariant(
        "gemma3-dora-table",
        "gemma3-270m",
        {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["embed_tokens", "k_proj"]},
    ),
    AdapterVariant(
        "gemma3-only-tokens",
        "gemma3-270m",
        {"token_indices": [5, 30, 6, 20]},
        kind=TrainableTokensConfig,
    ),
    AdapterVariant(
        "gemma3-only-head-tokens",
        "gemma3-270m",
        {"token_indices": [7, 3], "target_modules": ["lm_head"]},
        kind=TrainableTokensConfig,
    ),
    AdapterVariant(
        "gemma3-untied-tokens",
        "gemma3-untied",
        {"token_indices": [9, 4, 33], "target_modules": ["lm_head", "embed_tokens"]},
        kind=TrainableTokensConfig,
    ),
)
BY_ADAPTER = {variant.name: variant for variant in ADAPTERS}
