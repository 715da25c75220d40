"""Writes the golden checkpoints of tests/golden with transformers, the official implementation.

    pip install torch==2.13.0 transformers==5.24.0 safetensors
    python tests/golden/make_goldens.py              # all of them
    python tests/golden/make_goldens.py gemma3-1b    # some of them

Each variant of variants.py becomes a folder with config.json, the tensors under their published names, and
golden.safetensors:

    ids [T] int64           the prompt (starts with <bos>)
    rows [R] int64          only if the taps keep some rows: which ones; otherwise R = T
    embed [R, d]            the scaled embedding
    per_layer_inputs        [R, L * P] if the model has them
    stream.{k}              [R, d] Gemma 3n: the streams beside the embedding, k = 1, 2, 3
    layers.{i}.attention    [R, d] o_proj output, before any post norm and before the residual
    layers.{i}.mlp          [R, d] down_proj output, likewise
    layers.{i}.moe          [R, d] the chosen experts' sum, likewise, if the model has experts
    layers.{i}.output       [R, d] the residual stream after the layer; Gemma 3n: stream 0
    layers.{i}.stream.{k}   [R, d] Gemma 3n: the others
    final_norm [R, d]       after the last norm
    logits [R, V]           after the final softcap
    greedy [24] int64       the ids greedy decoding appends to `ids`
    embedding [D]           embedding models, instead of the last two: mean, dense layers, length 1

The script writes the folder first and then opens it with from_pretrained, like a published checkpoint. So
transformers decides what the names and the config mean, and not this script. Everything is computed in
float32 with eager attention. Greedy ids are computed without a cache."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.folders import BY_NAME  # noqa: E402
from golden.official import model_class, noise_gain, open_official, run, run_embedding  # noqa: E402
from golden.variants import Variant  # noqa: E402

TRANSFORMERS = "5.24.0"
MAX_BYTES = 1_000_000
# The most that a relative change of the weights may be magnified in a tap or in the logits. Random models
# can be chaotic, unlike trained ones. Then even float32 rounding would use up the tolerance of the tests.
MAX_NOISE_GAIN = 150


# Parts of the names in memory of tensors for images and audio.
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "audio_tower.", "embed_vision.", "embed_audio.")


# --- Random weights -----------------------------------------------------------------------------------------
def draw(name: str, shape: torch.Size, variant: Variant) -> torch.Tensor:
    """A random weight. Its size keeps every term of the model visible in the logits."""
    noise = torch.randn(shape)
    if any(part in name for part in NOT_TEXT):
        return noise * 0.1  # the text model does not use it
    if name.endswith("layer_scalar"):
        return 0.9 + 0.2 * noise.clamp(-2, 2)
    if name.endswith(("correct_output_scale", "router.scale", "per_expert_scale")):
        return 1.0 + 0.4 * noise
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return variant.norm_center + variant.head_norm + 0.3 * noise
    if name.endswith(("model.norm.weight", "language_model.norm.weight")):
        return variant.norm_center + 0.5 + 0.4 * noise
    if name.endswith("norm.weight"):
        # A post norm sets the size of its branch, relative to the embedding in the residual stream.
        return variant.norm_center + (0.6 if ".post_" in name else 0.2) + 0.4 * noise
    fan_in = shape[-1]
    if name.endswith("modality_router.weight"):
        return noise * fan_in**0.5  # its input is divided by the hidden size
    if name.endswith("router.proj.weight"):
        return noise * 1.5  # its input is divided by the root of the hidden size
    if name.endswith("_coefs.weight"):
        return noise * 0.15
    if name.endswith("embed_tokens_per_layer.weight"):
        text = variant.config.get("text_config", variant.config)
        return noise * text["hidden_size_per_layer_input"] ** -0.5
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        gain = 1.2
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        gain = variant.query_gain
    else:
        gain = 1.5
    return noise * gain / fan_in**0.5


def stored_weights(model: Any) -> dict[str, torch.Tensor]:
    """Name -> parameter or buffer that is stored in a file. A tied head appears once, as the embedding."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return dict(model.named_parameters()) | buffers


def spell(name: str, variant: Variant) -> str:
    for ours, theirs in variant.rename:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def write_checkpoint(variant: Variant, folder: Path) -> None:
    """Writes config.json and the tensors, which are drawn with torch's current seed."""
    write_json(folder / "config.json", variant.config)
    config = transformers.AutoConfig.from_pretrained(folder)
    build = model_class(variant)
    model = build(config if isinstance(config, build.config_class) else config.get_text_config())
    weights = stored_weights(model)
    with torch.no_grad():
        for name, weight in sorted(weights.items()):
            weight.copy_(draw(name, weight.shape, variant))
    dtype = getattr(torch, variant.stored)
    if variant.resave:
        model.to(dtype).save_pretrained(folder, save_original_format=False)
        (folder / "generation_config.json").unlink(missing_ok=True)
        return
    tensors = {spell(name, variant): w.detach().to(dtype).clone() for name, w in weights.items()}
    tensors |= {name: torch.randn(shape).to(dtype) for name, shape in variant.unused.items()}
    if variant.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    size = -(-len(names) // variant.shards)
    weight_map = {}
    for shard in range(variant.shards):
        file = f"model-{shard + 1:05}-of-{variant.shards:05}.safetensors"
        part = names[shard * size : (shard + 1) * size]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_modules(variant: Variant, folder: Path) -> None:
    """Writes the dense layers and the files of sentence-transformers, as in EmbeddingGemma."""
    at = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    inputs = variant.config["hidden_size"]
    pooling = {
        "word_embedding_dimension": inputs,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    }
    pooling |= {"pooling_mode_max_tokens": False, "pooling_mode_lasttoken": False, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    for outputs in variant.dense:
        path = f"{len(modules)}_Dense"
        modules.append((path, "Dense"))
        dense = {"in_features": inputs, "out_features": outputs, "bias": False}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        (folder / path).mkdir()
        write_json(folder / path / "config.json", dense)
        weight = torch.randn(outputs, inputs) / inputs**0.5
        save_file({"linear.weight": weight}, folder / path / "model.safetensors", metadata={"format": "pt"})
        inputs = outputs
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [{"idx": i, "name": str(i), "path": p, "type": at + kind} for i, (p, kind) in enumerate(modules)]
    write_json(folder / "modules.json", listed)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def make(variant: Variant, folder: Path) -> None:
    """Draws weights until greedy decoding varies and does not depend on rounding. Then writes the folder."""
    for attempt in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(zlib.crc32(variant.name.encode()) + attempt)
        write_checkpoint(variant, folder)
        model = open_official(variant, folder)
        if variant.dense is not None:
            return make_embedding(variant, folder, model)
        golden, lead, router_lead = run(variant, model)
        clear = golden["greedy"].unique().numel() >= 10 and lead > 0.02 and router_lead > 1e-3
        if clear and (noise := noise_gain(model, golden)) < MAX_NOISE_GAIN:
            break
    else:
        raise SystemExit(f"{variant.name}: no draw gives a varied, clear, calm greedy continuation")
    save_file(golden, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    top = golden["logits"].abs().max().item()
    print(
        f"{variant.name:24} draw {attempt:2} {size / 1000:6.0f} kB  max|logit| {top:5.2f}  lead {lead:.3f}  "
        f"noise x{noise:.0f}"
    )
    if not 3.0 < top < 15.0:
        raise SystemExit(f"{variant.name}: largest logit {top:.2f} is not of a sensible size")
    if size > MAX_BYTES:
        raise SystemExit(f"{variant.name}: {size} bytes, more than {MAX_BYTES}")


def make_embedding(variant: Variant, folder: Path, model: Any) -> None:
    if variant.dense:
        write_modules(variant, folder)
    golden = run_embedding(variant, model, folder)
    save_file(golden, folder / "golden.safetensors")
    noise = noise_gain(model, golden)
    print(f"{variant.name:24} noise x{noise:.0f}")
    if noise > MAX_NOISE_GAIN:
        raise SystemExit(f"{variant.name}: rounding decides its taps")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden checkpoints.")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(BY_NAME))
    parser.add_argument("--output", type=Path, default=HERE, help="folder the variants are written into")
    options = parser.parse_args()
    if unknown := sorted(set(options.variants) - set(BY_NAME)):
        parser.error(f"unknown variant {unknown[0]!r}; known: {', '.join(BY_NAME)}")
    if transformers.__version__ != TRANSFORMERS:
        sys.exit(f"goldens are made with transformers {TRANSFORMERS}, this is {transformers.__version__}")
    warnings.simplefilter("error")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.inference_mode():
        for name in options.variants or BY_NAME:
            make(BY_NAME[name], options.output / name)


if __name__ == "__main__":
    main()
