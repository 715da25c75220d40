"""Writes the golden LoRA adapters of tests/golden/adapters with PEFT, for existing golden checkpoints.

    pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2 safetensors
    python tests/golden/make_adapters.py              # all of them
    python tests/golden/make_adapters.py gemma3-plain # some of them

Each folder has an adapter with random A and B, written by PEFT's save_pretrained (adapter_config.json and
adapter_model.safetensors), and golden.safetensors:

    ids [T] int64       a prompt (starts with <bos>)
    logits [T, V]       float32: transformers + PEFT, the adapter beside the weights

The script saves the adapter first and then opens it with PeftModel.from_pretrained, like a published adapter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LNTuningConfig, LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.folders import BY_NAME  # noqa: E402
from golden.official import open_official, text_stack  # noqa: E402

VERSIONS = {"transformers": "5.24.0", "peft": "0.21.2"}
TOKENS = 24
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
# PEFT cannot adapt the towers of Gemma 4. Their projections have the same names, so they are excluded.
LINEAR = r"model\.(language_model\.)?(layers\.\d+\..*(proj|projection|gate)|per_layer_model_projection)"
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


def open_base(variant: AdapterVariant) -> Any:
    return open_official(BY_NAME[variant.base], HERE / variant.base)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits[0]


def make(variant: AdapterVariant, folder: Path) -> None:
    torch.manual_seed(zlib.crc32(variant.name.encode()))
    shutil.rmtree(folder, ignore_errors=True)
    base = open_base(variant)
    ids = torch.randint(4, text_stack(base).embed_tokens.num_embeddings, (1, TOKENS))
    ids[0, 0] = 2
    plain = logits_of(base, ids)
    model = get_peft_model(base, variant.kind(**variant.options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name and name.endswith(".bias"):
                weight.copy_(torch.randn(weight.shape) * 0.05)
            elif ".lora_A." in name:
                weight.copy_(torch.randn(weight.shape) / weight.shape[1] ** 0.5)
            elif ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape) * 0.2)
            elif ".lora_embedding_A." in name:
                weight.copy_(torch.randn(weight.shape))
            elif ".lora_embedding_B." in name:
                weight.copy_(torch.randn(weight.shape) * 0.02)
            elif "lora_magnitude_vector" in name:
                weight.mul_(1 + torch.rand(weight.shape))
            elif any(part in name for part in (".modules_to_save.", "trainable_tokens_delta", ".ln_tuning_")):
                weight.add_(torch.randn(weight.shape) * 0.3 * weight.std())
    model.to(torch.float32).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    dtype = getattr(torch, variant.stored)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    # The lists get a fixed order, and no path of this machine is kept.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = variant.base
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    opened = PeftModel.from_pretrained(open_base(variant), folder).eval()
    adapted = logits_of(opened, ids)
    save_file({"ids": ids[0], "logits": adapted.contiguous()}, folder / "golden.safetensors")
    change = (adapted - plain).abs().max().item() / adapted.abs().max().item()
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{variant.name:16} {len(tensors):3} tensors {size / 1000:5.0f} kB  changes logits by {change:.2f}")
    if not 0.05 < change < 2.0:
        raise SystemExit(f"{variant.name}: the adapter changes the logits by {change:.3f} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden adapters.")
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=", ".join(BY_ADAPTER))
    parser.add_argument("--output", type=Path, default=HERE / "adapters", help="folder they are written into")
    options = parser.parse_args()
    if unknown := sorted(set(options.adapters) - set(BY_ADAPTER)):
        parser.error(f"unknown adapter {unknown[0]!r}; known: {', '.join(BY_ADAPTER)}")
    found = {"transformers": transformers.__version__, "peft": peft.__version__}
    if found != VERSIONS:
        sys.exit(f"golden adapters are made with {VERSIONS}, this is {found}")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # a warning inside PEFT
    # PEFT follows patterns for parameters too, and says that it does not.
    warnings.filterwarnings("ignore", ".*alpha_pattern keys did not match", RuntimeWarning)
    warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)  # a norm is one
    warnings.filterwarnings("ignore", ".*LoRA tensor.s. have invalid shape", UserWarning)  # a bias is one
    warnings.filterwarnings("ignore", ".*merging LoRA weights won't be possible", UserWarning)
    warnings.filterwarnings("ignore", "(?s).*tie_word_embeddings|.*save_embedding_layers", UserWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.inference_mode():
        for name in options.adapters or BY_ADAPTER:
            make(BY_ADAPTER[name], options.output / name)


if __name__ == "__main__":
    main()
