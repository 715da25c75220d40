"""Writes the golden checkpoints with towers for images, tests/golden/vision, with transformers.

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 safetensors
    python tests/golden/make_vision.py              # all of them
    python tests/golden/make_vision.py gemma3       # some of them

Each folder has config.json, preprocessor_config.json and the tensors, and golden.safetensors, where N is a
prompt and I one of its images:

    ids.N [T] int64               the prompt, placeholders included
    image.N.I [h, w, 3] uint8     the image
    levels.N [n, H, W, 3] uint8   what the tower sees of all images and crops, as 8-bit levels
    pixels.0 [n, H, W, 3]         the same as the tower takes it
    features.N [n, P, d]          the tower's output
    soft.N [n * tokens, D]        soft tokens
    logits.N [T, V]
    greedy.N [16] int64           what greedy decoding appends

Everything is computed in float32 with eager attention."""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from variants_vision import VISION_VARIANTS, VisionPrompt, VisionVariant

HERE = Path(__file__).parent
GREEDY = 16
LEAST_LEAD = 0.02  # of a greedy choice over its runner-up: rounding decides nothing


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    """A random weight. Its size keeps every term visible in the logits."""
    noise = torch.randn(shape)
    if name.endswith("bias"):
        return 0.2 * noise
    if "layer_norm" in name or "layernorm" in name or name.endswith("norm.weight"):
        center = 0.8 if "vision" in name else 0.3
        return center + 0.3 * noise
    if "position_embedding" in name:
        return 0.5 * noise
    if name.endswith("mm_input_projection_weight"):
        return noise * 1.2 / shape[0] ** 0.5
    fan_in = int(np.prod(shape[1:]))
    gain = 1.2 if "embed_tokens" in name else 1.5
    return noise * gain / fan_in**0.5


def picture(generator: np.random.Generator, height: int, width: int) -> np.ndarray[Any, Any]:
    """Waves of several lengths, hard edges and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for channel in range(3):
        for length in (5, 17, 60):
            a, b, phase = generator.uniform(-1, 1, 3)
            out[..., channel] += np.sin(2 * np.pi * (a * x + b * y) / length + 6 * phase)
    out[height // 3 : height // 2, width // 4 : width // 2] += 2.0
    out += generator.normal(0, 0.5, out.shape)
    return np.clip(128 + 40 * out, 0, 255).astype(np.uint8)


def write_folder(variant: VisionVariant, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    torch.manual_seed(seed)
    write_json(folder / "config.json", variant.config)
    write_json(folder / "preprocessor_config.json", variant.preprocessor)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.copy_(draw(name, weight.shape))
    if variant.layout == "resaved":
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        return
    tensors = {published(name): weight.detach().clone() for name, weight in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def published(name: str) -> str:
    """The name in published files of a parameter in memory."""
    for ours, theirs in (
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def results(
    variant: VisionVariant, model: Any, folder: Path, index: int, prompt: VisionPrompt
) -> dict[str, Any]:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    generator = np.random.default_rng(zlib.crc32(f"{variant.name} {index}".encode()))
    images = [picture(generator, *size) for size in prompt.images]
    prepared = processor(
        [torch.from_numpy(image).permute(2, 0, 1) for image in images], return_tensors="pt", **prompt.options
    )
    pixels = prepared["pixel_values"]
    raw = processor(
        [torch.from_numpy(image).permute(2, 0, 1) for image in images],
        return_tensors="pt",
        do_normalize=False,
        do_rescale=False,
        **prompt.options,
    )["pixel_values"]
    config = variant.config
    block = [config["boi_token_index"], *[config["image_token_index"]] * config["mm_tokens_per_image"]]
    block.append(config["eoi_token_index"])
    ids = [2, *generator.integers(3, 100, 4).tolist()]
    for _ in range(len(pixels)):
        ids += [*block, *generator.integers(3, 100, 2).tolist()]
    tokens = torch.tensor([ids])
    taken: dict[str, torch.Tensor] = {}
    tower = model.model.vision_tower
    hook = tower.register_forward_hook(
        lambda _m, _a, out: taken.__setitem__("features", out.last_hidden_state)
    )
    projector = model.model.multi_modal_projector
    soft_hook = projector.register_forward_hook(lambda _m, _a, out: taken.__setitem__("soft", out))

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        placeholders = (tokens == config["image_token_index"]).long()
        return model(
            input_ids=tokens, pixel_values=pixels, token_type_ids=placeholders, use_cache=False
        ).logits[0]

    with torch.no_grad():
        logits = logits_of(tokens)
        greedy: list[int] = []
        row = logits[-1].clone()
        for _ in range(GREEDY):
            row[config["image_token_index"]] = -torch.inf  # a placeholder is never written
            best = row.topk(2)
            if best.values[0] - best.values[1] < LEAST_LEAD:
                raise CloseChoiceError
            greedy.append(int(best.indices[0]))
            row = logits_of(torch.tensor([ids + greedy]))[-1]
    hook.remove()
    soft_hook.remove()
    return {
        f"ids.{index}": torch.tensor(ids),
        **{f"image.{index}.{i}": torch.from_numpy(image) for i, image in enumerate(images)},
        f"levels.{index}": raw.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous(),
        **({} if index else {"pixels.0": pixels.permute(0, 2, 3, 1).contiguous()}),
        f"features.{index}": taken["features"],
        f"soft.{index}": taken["soft"].flatten(0, 1),
        f"logits.{index}": logits,
        f"greedy.{index}": torch.tensor(greedy),
    }


class CloseChoiceError(Exception):
    """Rounding could decide a greedy choice: other weights are drawn."""


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def make(variant: VisionVariant) -> None:
    folder = HERE / "vision" / variant.name
    for seed in range(100):
        write_folder(variant, folder, zlib.crc32(variant.name.encode()) + seed)
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        try:
            golden: dict[str, Any] = {}
            for index, prompt in enumerate(variant.prompts):
                golden |= results(variant, model, folder, index, prompt)
        except CloseChoiceError:
            continue
        save_file({name: value.contiguous() for name, value in golden.items()}, folder / "golden.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{variant.name}: seed {seed}, {size} bytes")
        return
    raise SystemExit(f"{variant.name}: every seed has a choice that rounding could decide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    for variant in VISION_VARIANTS:
        if not names or variant.name in names:
            make(variant)


if __name__ == "__main__":
    main()
