"""Writes the golden LoRA adapters that change towers, tests/golden/tower_adapters, with PEFT, for the golden
checkpoints of tests/golden/vision and tests/golden/audio, and for EmbeddingGemma 2.

    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.24.0 peft==0.21.2 safetensors
    python tests/golden/make_tower_adapters.py                # all of them
    python tests/golden/make_tower_adapters.py gemma3-linear  # some of them

Each folder has an adapter with random A and B, written by PEFT's save_pretrained (adapter_config.json and
adapter_model.safetensors), and golden.safetensors:

    logits [T, V]    float32: transformers + PEFT, of the checkpoint's prompt with its images and sounds
    embedding [D]    the same of EmbeddingGemma 2, in the place of logits
    prompt [1]       which of its prompts
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden import make_audio, make_embeddinggemma2, make_vision, make_vision_gemma3n  # noqa: E402
from golden.variants_audio import AUDIO_VARIANTS  # noqa: E402
from golden.variants_embedding import EMBEDDINGGEMMA2_PROMPTS  # noqa: E402
from golden.variants_vision import VISION_VARIANTS  # noqa: E402

VERSIONS = {"transformers": "5.24.0", "peft": "0.21.2"}
VISION = {variant.name: variant for variant in VISION_VARIANTS}
EMBEDDING = "embeddinggemma2"
AUDIO = {variant.name: variant for variant in AUDIO_VARIANTS}
# In Gemma 3n: every convolution except the depthwise ones, and some linear modules.
CONVOLUTIONS = (
    r".*(conv_stem\.conv|conv_exp|conv_pwl|(pw_exp|pw_proj)\.conv|attn\.(query|key|value|output)\.proj)"
    r"|.*subsample_conv_projection\.conv_[01]\.conv"
    r"|.*audio_tower\..*(pos_proj|v_proj|ffw_layer_1|linear_start|input_proj_linear)|.*embedding_projection"
)


@dataclass(frozen=True)
class TowerAdapter:
    """An adapter: its golden checkpoint, the number of its prompt, and the arguments of LoraConfig."""

    name: str
    base: str
    prompt: int
    options: dict[str, Any]


ADAPTERS = (
    TowerAdapter("gemma3-linear", "vision/gemma3", 1, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter(
        "gemma3-dora",
        "vision/gemma3-resaved",
        0,
        {
            "r": 2,
            "use_dora": True,
            "target_modules": r".*vision.*(patch_embedding|[qv]_proj|out_proj|fc[12])|.*layers\.1\..*o_proj",
            "rank_pattern": {"fc1": 3},
            "alpha_pattern": {"patch_embedding": 3},
        },
    ),
    TowerAdapter(
        "gemma3-bias",
        "vision/gemma3-resaved",
        0,
        {
            "r": 2,
            "lora_bias": True,
            "target_modules": ["k_proj", "fc1", "out_proj"],
            "layers_to_transform": [1],
        },
    ),
    # Loading subtracts something from the tower's weights; the second adapter has the tower's biases as well.
    TowerAdapter(
        "gemma3-olora",
        "vision/gemma3-resaved",
        0,
        {"r": 2, "init_lora_weights": "olora", "target_modules": r".*vision.*(v_proj|fc2)"},
    ),
    TowerAdapter(
        "gemma3-biases",
        "vision/gemma3-resaved",
        0,
        {"r": 2, "init_lora_weights": "pissa", "bias": "all", "target_modules": r".*vision.*(k_proj|fc1)"},
    ),
    TowerAdapter("gemma3n-linear", "vision/gemma3n", 2, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter("gemma3n-convolutions", "vision/gemma3n", 2, {"r": 2, "target_modules": CONVOLUTIONS}),
    TowerAdapter(
        "gemma3n-dora", "vision/gemma3n", 2, {"r": 1, "use_dora": True, "target_modules": CONVOLUTIONS}
    ),
    TowerAdapter("gemma4-linear", "vision/gemma4-small", 0, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter(
        "gemma4-dora",
        "vision/gemma4-large",
        1,
        {
            "r": 1,
            "use_dora": True,
            "target_modules": r".*vision_tower\..*(linear|input_proj)|.*embedding_projection",
        },
    ),
    TowerAdapter("gemma4-sound", "audio/gemma4", 0, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter(
        "gemma4-sound-dora",
        "audio/gemma4",
        1,
        {
            "r": 1,
            "use_dora": True,
            "target_modules": r".*audio_tower\..*(\.linear|_k_proj|output_proj|input_proj_linear)"
            r"|.*audio_tower\..*layer[01]\.conv|.*embed_audio\.embedding_projection",
        },
    ),
    TowerAdapter("gemma4-unified", "vision/gemma4-unified", 1, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter("embeddinggemma2-linear", "embeddinggemma2", 4, {"r": 1, "target_modules": "all-linear"}),
    TowerAdapter(
        "embeddinggemma2-dora",
        "embeddinggemma2",
        4,
        {
            "r": 1,
            "use_dora": True,
            "target_modules": r".*(vision|audio)_tower\..*\.linear|.*embedding_projection"
            r"|.*layers\.1\..*v_proj",
        },
    ),
    TowerAdapter("gemma4-unified-sound", "audio/gemma4-unified", 0, {"r": 2, "target_modules": "all-linear"}),
)
BY_ADAPTER = {adapter.name: adapter for adapter in ADAPTERS}


def open_base(adapter: TowerAdapter) -> Any:
    if adapter.base == EMBEDDING:
        return transformers.AutoModel.from_pretrained(
            HERE / EMBEDDING, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    kind, name = adapter.base.split("/")
    if kind == "audio":
        return make_audio.open_official(HERE / adapter.base)
    if VISION[name].stages:
        make_vision_gemma3n.use_small_tower(VISION[name])
    return transformers.AutoModelForImageTextToText.from_pretrained(
        HERE / adapter.base, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def result_of(adapter: TowerAdapter) -> str:
    """The kind of result that is stored."""
    return "embedding" if adapter.base == EMBEDDING else "logits"


def logits_of(adapter: TowerAdapter, model: Any) -> torch.Tensor:
    if adapter.base == EMBEDDING:
        prompt = EMBEDDINGGEMMA2_PROMPTS[adapter.prompt]
        return make_embeddinggemma2.results(model, adapter.prompt, prompt)[f"embedding.{adapter.prompt}"]
    kind, name = adapter.base.split("/")
    if kind == "audio":
        found = make_audio.results(AUDIO[name], model, adapter.prompt, AUDIO[name].prompts[adapter.prompt])
    else:
        prompt = VISION[name].prompts[adapter.prompt]
        found = make_vision.results(VISION[name], model, HERE / adapter.base, adapter.prompt, prompt)
    return found[f"logits.{adapter.prompt}"]


def make(adapter: TowerAdapter, folder: Path) -> None:
    torch.manual_seed(zlib.crc32(adapter.name.encode()))
    shutil.rmtree(folder, ignore_errors=True)
    base = open_base(adapter)
    plain = logits_of(adapter, base)
    result = result_of(adapter)
    stored = load_file(HERE / adapter.base / "golden.safetensors")[f"{result}.{adapter.prompt}"]
    if (plain - stored).abs().max() > 1e-4 * stored.abs().max():
        raise SystemExit(f"{adapter.name}: these versions compute other logits of {adapter.base}")
    model = get_peft_model(base, LoraConfig(lora_alpha=2, **adapter.options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name and name.endswith(".bias"):
                weight.copy_(torch.randn(weight.shape) * 0.05)
            elif name.endswith(".bias"):
                weight.add_(torch.randn(weight.shape) * 0.3)
            elif ".lora_A." in name:
                weight.copy_(torch.randn(weight.shape) / weight[0].numel() ** 0.5)
            elif ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape) * 0.2)
            elif "lora_magnitude_vector" in name:
                weight.mul_(1 + torch.rand(weight.shape))
    model.to(torch.float32).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # The lists get a fixed order, and no path of this machine is kept.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = adapter.base
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    opened = PeftModel.from_pretrained(open_base(adapter), folder).eval()
    adapted = logits_of(adapter, opened.base_model.model)
    names = load_file(folder / "adapter_model.safetensors").keys()
    text_alone = PeftModel.from_pretrained(open_base(adapter), folder).eval()
    with torch.no_grad():
        for name, weight in text_alone.named_parameters():
            if ".lora_B." in name and any(part in name for part in ("vision", "audio")):
                weight.zero_()
    without = logits_of(adapter, text_alone.base_model.model)
    save_file(
        {result: adapted.contiguous(), "prompt": torch.tensor([adapter.prompt])},
        folder / "golden.safetensors",
    )
    largest = adapted.abs().max().item()
    change = (adapted - plain).abs().max().item() / largest
    tower = (adapted - without).abs().max().item() / largest
    towers = sum("vision" in name or "audio" in name for name in names)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{adapter.name:22} {len(names):4} tensors, {towers:3} of towers, {size / 1000:4.0f} kB, changes "
        f"logits by {change:.2f}, its towers alone by {tower:.2f}"
    )
    if not (0.05 < change < 2.0 and tower > 0.02):
        raise SystemExit(f"{adapter.name}: the adapter changes the logits by {change:.3f} and {tower:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden adapters of towers.")
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=", ".join(BY_ADAPTER))
    options = parser.parse_args()
    if unknown := sorted(set(options.adapters) - set(BY_ADAPTER)):
        parser.error(f"unknown adapter {unknown[0]!r}; known: {', '.join(BY_ADAPTER)}")
    found = {"transformers": transformers.__version__, "peft": peft.__version__}
    if found != VERSIONS:
        sys.exit(f"golden adapters are made with {VERSIONS}, this is {found}")
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    make_vision.GREEDY = make_audio.GREEDY = 0
    for name in options.adapters or BY_ADAPTER:
        make(BY_ADAPTER[name], HERE / "tower_adapters" / name)


if __name__ == "__main__":
    main()
