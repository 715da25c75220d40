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
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.folders import BY_NAME  # noqa: E402
from golden.official import open_official, text_stack  # noqa: E402
from golden.variants_adapters import BY_ADAPTER, AdapterVariant  # noqa: E402

VERSIONS = {"transformers": "5.24.0", "peft": "0.21.2"}
TOKENS = 24


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
