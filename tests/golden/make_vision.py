"""Writes the golden checkpoints with towers for images, tests/golden/vision, with transformers.

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 safetensors
    python tests/golden/make_vision.py              # all of them
    python tests/golden/make_vision.py gemma3       # some of them

Each folder has config.json, preprocessor_config.json and the tensors, and golden.safetensors, where N is a
prompt and I one of its images:

    ids.N [T] int64               the prompt, placeholders included
    image.N.I [h, w, 3] uint8     the image
    wave.N.I [samples]            a sound after the images, mono at 16 kHz
    levels.N.I [H, W, 3] uint8    what the tower sees of an image or a crop, as 8-bit levels
    pixels.0 [n, H, W, 3]         the same as the tower takes it
    features.N [n, P, d]          Gemma 3 and 3n: the tower's output
    soft.N [n * tokens, D]        soft tokens
    logits.N [T, V]
    greedy.N [16] int64           what greedy decoding appends

Everything is computed in float32 with eager attention."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden import make_vision_gemma3n as of_gemma3n  # noqa: E402
from golden.make_audio import draw as draw_gemma3n  # noqa: E402
from golden.make_audio import sound  # noqa: E402
from golden.make_vision_gemma4 import inputs_of, masks  # noqa: E402
from golden.variants_vision import VISION_VARIANTS, VisionPrompt, VisionVariant  # noqa: E402

GREEDY = 16
LEAST_LEAD = 0.02  # the chosen logit leads the next one by so much that rounding does not decide


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    """A random weight. Its size keeps every term visible in the logits."""
    noise = torch.randn(shape)
    if name.endswith(("input_min", "output_min")):
        return -1.2 - 0.5 * noise.abs()
    if name.endswith(("input_max", "output_max")):
        return 1.2 + 0.5 * noise.abs()
    if name.endswith("layer_scalar"):
        return 0.9 + 0.2 * noise.clamp(-2, 2)
    if name.endswith("std_scale"):
        return 1.0 + 0.3 * noise
    if name.endswith("bias"):
        return 0.2 * noise
    if name.endswith(("q_norm.weight", "k_norm.weight")) and "vision" not in name:
        return 0.6 + 0.3 * noise
    if len(shape) == 1:  # a norm's weight
        center = 0.8 if "vision" in name else 0.3
        return center + 0.3 * noise
    if "position_embedding" in name or "pos_embedding" in name:
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
    nested = "image_processor" in variant.preprocessor
    write_json(folder / f"{'' if nested else 'pre'}processor_config.json", variant.preprocessor)
    config = transformers.AutoConfig.from_pretrained(folder)
    if variant.stages:
        of_gemma3n.use_small_tower(variant)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in sorted(stored(model).items()):
            other = variant.stages and "vision_tower" not in name
            weight.copy_((draw_gemma3n if other else draw)(name, weight.shape))
    if variant.layout == "resaved":
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        return
    spell = {"gemma3": published, "gemma4_unified": published_unified}.get(variant.config["model_type"], str)
    tensors = {spell(name): weight.detach().clone() for name, weight in stored(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stored(model: Any) -> dict[str, torch.Tensor]:
    """Name -> parameter or buffer that a file has."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return dict(model.named_parameters()) | buffers


def published(name: str) -> str:
    """The name that a parameter in memory has in published files."""
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


def published_unified(name: str) -> str:
    """The same for the unified Gemma 4."""
    inner = name.removeprefix("model.embed_vision.")
    if inner == name:
        return name
    projection = inner.removeprefix("multimodal_embedder.")
    return f"model.embed_vision.{projection}" if projection != inner else f"model.vision_embedder.{inner}"


def gemma3_inputs(
    variant: VisionVariant,
    folder: Path,
    images: list[Any],
    options: dict[str, Any],
    generator: np.random.Generator,
) -> tuple[list[int], dict[str, Any], list[torch.Tensor], int]:
    """The prompt, the model's other inputs, the levels, and the placeholder."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    pixels = processor(tensors, return_tensors="pt", **options)["pixel_values"]
    plain = {"do_normalize": False, "do_rescale": False}
    raw = processor(tensors, return_tensors="pt", **plain, **options)["pixel_values"]
    config = variant.config
    placeholder = config["image_token_index"]
    block = [
        config["boi_token_index"],
        *[placeholder] * config["mm_tokens_per_image"],
        config["eoi_token_index"],
    ]
    ids = [2, *generator.integers(3, 100, 4).tolist()]
    for _ in range(len(pixels)):
        ids += [*block, *generator.integers(3, 100, 2).tolist()]
    levels = list(raw.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous())
    return ids, {"pixel_values": pixels}, levels, placeholder


def results(
    variant: VisionVariant, model: Any, folder: Path, index: int, prompt: VisionPrompt
) -> dict[str, Any]:
    generator = np.random.default_rng(zlib.crc32(f"{variant.name} {index}".encode()))
    images = [picture(generator, *size) for size in prompt.images]
    frames = []
    if prompt.frames is not None:
        frames = [picture(generator, *prompt.frames[1:]) for _ in range(prompt.frames[0])]
    sounds = [sound(generator, count) for count in prompt.sounds]
    gemma3, gemma3n = variant.config["model_type"] == "gemma3", bool(variant.stages)
    if gemma3n:
        given = of_gemma3n.inputs_of(variant, folder, images or frames, sounds, generator)
    elif gemma3:
        given = gemma3_inputs(variant, folder, images, prompt.options, generator)
    else:
        given = inputs_of(variant, images, frames, prompt.options, generator)
    ids, inputs, levels, placeholder = given
    taken: dict[str, torch.Tensor] = {}

    def keep(name: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            value = value.pooler_output
        if variant.config["model_type"] == "gemma4_unified":  # without the padding that gives images one size
            side = variant.config["vision_config"]["model_patch_size"]
            counts = [level.shape[0] // side * (level.shape[1] // side) for level in levels]
            value = torch.cat([rows[:count] for rows, count in zip(value, counts, strict=True)])
        taken.setdefault(name, value)

    projector = model.model.multi_modal_projector if gemma3 else model.model.embed_vision

    def keep_soft(_module: Any, _positional: Any, given: dict[str, Any], out: Any) -> None:
        if given.get("input_ids") is None:  # Gemma 3n's table of other ids has the same path
            keep("soft", out)

    hooks = [projector.register_forward_hook(keep_soft, with_kwargs=True)]
    if gemma3 or gemma3n:
        tower = model.model.vision_tower
        hooks.append(
            tower.register_forward_hook(lambda _m, _a, out: keep("features", out.last_hidden_state.clone()))
        )

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        kinds = (tokens == placeholder).long()
        more = {"token_type_ids": kinds} if gemma3 else {"mm_token_type_ids": kinds}
        if gemma3n:
            more = {}
        mask = None if gemma3 or gemma3n else masks(variant.config, tokens)
        if mask is not None:
            more["attention_mask"] = mask
        return model(input_ids=tokens, use_cache=False, **more, **inputs).logits[0]

    with torch.no_grad():
        logits = logits_of(torch.tensor([ids]))
        greedy: list[int] = []
        row = logits[-1].clone()
        for _ in range(GREEDY):
            row[variant.never()] = -torch.inf  # a placeholder is never written
            best = row.topk(2)
            if best.values[0] - best.values[1] < LEAST_LEAD:
                raise CloseChoiceError
            greedy.append(int(best.indices[0]))
            row = logits_of(torch.tensor([ids + greedy]))[-1]
    for hook in hooks:
        hook.remove()
    found = {
        f"ids.{index}": torch.tensor(ids),
        **{f"image.{index}.{i}": torch.from_numpy(image) for i, image in enumerate([*images, *frames])},
        **{f"wave.{index}.{i}": torch.from_numpy(wave) for i, wave in enumerate(sounds)},
        **{f"levels.{index}.{i}": level for i, level in enumerate(levels)},
        f"soft.{index}": taken["soft"].reshape(-1, taken["soft"].shape[-1]),
        f"logits.{index}": logits,
        f"greedy.{index}": torch.tensor(greedy),
    }
    if gemma3n:
        found[f"features.{index}"] = taken["features"].flatten(2).transpose(1, 2)
    if gemma3:
        found[f"features.{index}"] = taken["features"]
        if index == 0:
            found["pixels.0"] = inputs["pixel_values"].permute(0, 2, 3, 1).contiguous()
    return found


class CloseChoiceError(Exception):
    """Rounding could decide a greedy choice, so other weights are drawn."""


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
