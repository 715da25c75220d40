"""Writes the golden checkpoints of tests/golden with transformers, the official implementation.

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python tests/golden/make_goldens.py              # all of them
    python tests/golden/make_goldens.py gemma3-1b    # some of them

Each variant of variants.py becomes a folder with config.json, the tensors under their published names, and
golden.safetensors:

    ids [T] int64           the prompt (starts with <bos>)
    rows [R] int64          only if the taps keep some rows: which ones; otherwise R = T
    embed [R, d]            the scaled embedding
    layers.{i}.attention    [R, d] o_proj output, before any post norm and before the residual
    layers.{i}.mlp          [R, d] down_proj output, likewise
    layers.{i}.output       [R, d] the residual stream after the layer
    final_norm [R, d]       after the last norm
    logits [R, V]           after the final softcap
    greedy [24] int64       the ids greedy decoding appends to `ids`

The folder is written first and then opened with from_pretrained, as a published checkpoint would be: what the
names and the config mean is thereby decided by transformers and not by this script. Everything is computed in
float32 with eager attention, and greedy ids by full recomputation without a cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from variants import VARIANTS, Variant

TRANSFORMERS = "5.23.0"
GREEDY = 24
MAX_BYTES = 1_000_000
HERE = Path(__file__).parent

# Forward hooks: the submodule of a decoder layer -> the tap its output becomes.
LAYER_TAPS = {"self_attn": "attention", "mlp": "mlp", "": "output"}


# --- Random weights -----------------------------------------------------------------------------------------
def draw(name: str, shape: torch.Size, variant: Variant) -> torch.Tensor:
    """A random weight whose size keeps every term of the model visible in the logits."""
    noise = torch.randn(shape)
    if "vision_tower" in name or "multi_modal" in name:
        return noise * 0.1  # never used by the text path
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return variant.norm_center + variant.head_norm + 0.3 * noise
    if name.endswith(("model.norm.weight", "language_model.norm.weight")):
        return variant.norm_center + 0.5 + 0.4 * noise
    if name.endswith("norm.weight"):
        # A post norm sets the size of its branch beside the embedding in the residual stream.
        return variant.norm_center + (0.6 if ".post_" in name else 0.2) + 0.4 * noise
    fan_in = shape[-1]
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        gain = 1.2
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        gain = variant.query_gain
    else:
        gain = 1.5
    return noise * gain / fan_in**0.5


def spell(name: str, variant: Variant) -> str:
    for ours, theirs in variant.rename:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def write_checkpoint(variant: Variant, folder: Path) -> None:
    """config.json and the tensors, drawn from torch's current seed."""
    write_json(folder / "config.json", variant.config)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = model_class(variant)(config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):  # a tied head appears once, as the embedding
            parameter.copy_(draw(name, parameter.shape, variant))
    dtype = getattr(torch, variant.stored)
    if variant.resave:
        model.to(dtype).save_pretrained(folder, save_original_format=False)
        (folder / "generation_config.json").unlink()
        return
    tensors = {spell(n, variant): p.detach().to(dtype).clone() for n, p in model.named_parameters()}
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


def model_class(variant: Variant) -> Any:
    return getattr(transformers, variant.config["architectures"][0])


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


# --- Running the official model -----------------------------------------------------------------------------
def open_official(variant: Variant, folder: Path) -> Any:
    """The checkpoint as transformers reads it; every tensor of the file must have found its place."""
    model, report = model_class(variant).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(report.values()):
        raise SystemExit(f"{variant.name}: transformers did not load it cleanly: {report}")
    return model.eval()


def text_stack(model: Any) -> Any:
    """The submodule that owns embed_tokens, layers and norm."""
    return next(m for m in model.modules() if hasattr(m, "embed_tokens") and hasattr(m, "layers"))


@contextmanager
def recording(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Collects the taps of the next forward call."""
    taps: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            taps[name] = (output[0] if isinstance(output, tuple) else output).detach()[0].clone()

        return hook

    stack = text_stack(model)
    handles = [
        stack.embed_tokens.register_forward_hook(keep("embed")),
        stack.norm.register_forward_hook(keep("final_norm")),
    ]
    for index, layer in enumerate(stack.layers):
        for module, tap in LAYER_TAPS.items():
            target = layer.get_submodule(module)
            handles.append(target.register_forward_hook(keep(f"layers.{index}.{tap}")))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def run(variant: Variant, model: Any) -> tuple[dict[str, torch.Tensor], float]:
    """The contents of golden.safetensors, and the smallest lead of a greedy choice over its runner-up."""
    vocab = text_stack(model).embed_tokens.num_embeddings
    ids = torch.randint(4, vocab, (1, variant.tokens))
    ids[0, 0] = 2
    with recording(model) as taps:
        taps["logits"] = model(input_ids=ids, use_cache=False).logits[0]
    lead = float("inf")
    sequence, logits = ids, taps["logits"]
    for _ in range(GREEDY):
        best = logits[-1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        sequence = torch.cat([sequence, best.indices[:1][None]], dim=1)
        logits = model(input_ids=sequence, use_cache=False).logits[0]
    golden = {"ids": ids[0], "greedy": sequence[0, variant.tokens :]}
    rows = slice(None) if variant.rows is None else torch.tensor(variant.rows)
    if variant.rows is not None:
        golden["rows"] = rows
    golden |= {name: tap[rows] for name, tap in taps.items()}
    return {name: tensor.clone().contiguous() for name, tensor in golden.items()}, lead


def make(variant: Variant, folder: Path) -> None:
    """Draws until greedy decoding is neither constant nor decided by rounding; then writes the folder."""
    for attempt in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(zlib.crc32(variant.name.encode()) + attempt)
        write_checkpoint(variant, folder)
        golden, lead = run(variant, open_official(variant, folder))
        if golden["greedy"].unique().numel() >= 10 and lead > 0.02:
            break
    else:
        raise SystemExit(f"{variant.name}: no draw gives a varied, clear greedy continuation")
    save_file(golden, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    top = golden["logits"].abs().max().item()
    print(f"{variant.name:24} draw {attempt:2} {size / 1000:6.0f} kB  max|logit| {top:5.2f}  lead {lead:.3f}")
    if not 3.0 < top < 15.0:
        raise SystemExit(f"{variant.name}: largest logit {top:.2f} is not of a sensible size")
    if size > MAX_BYTES:
        raise SystemExit(f"{variant.name}: {size} bytes, more than {MAX_BYTES}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden checkpoints.")
    known = {variant.name: variant for variant in VARIANTS}
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(known))
    parser.add_argument("--output", type=Path, default=HERE, help="folder the variants are written into")
    options = parser.parse_args()
    if unknown := sorted(set(options.variants) - set(known)):
        parser.error(f"unknown variant {unknown[0]!r}; known: {', '.join(known)}")
    if transformers.__version__ != TRANSFORMERS:
        sys.exit(f"goldens are made with transformers {TRANSFORMERS}, this is {transformers.__version__}")
    warnings.simplefilter("error")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.inference_mode():
        for name in options.variants or known:
            make(known[name], options.output / name)


if __name__ == "__main__":
    main()
