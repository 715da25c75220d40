"""The results of Gemma 4's variants for make_vision.py, which calls it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor

VIDEO_BUDGET = 70


def prepared(config: dict[str, Any], settings: dict[str, Any], images: list[Any], **options: Any) -> Any:
    """The output of the reference's processor for images, and the same as 8-bit levels."""
    kind = Gemma4UnifiedImageProcessor if config["model_type"] == "gemma4_unified" else Gemma4ImageProcessor
    known = {
        key: value for key, value in settings["image_processor"].items() if key != "image_processor_type"
    }
    processor = kind(**known)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    levels = []
    for image in tensors:
        side = known["patch_size"] * known["pooling_kernel_size"]
        resized = processor.aspect_ratio_preserving_resize(
            image=image,
            patch_size=known["patch_size"],
            max_patches=options.get("max_soft_tokens", known["max_soft_tokens"]) * 9,
            pooling_kernel_size=known["pooling_kernel_size"],
            resample=processor.resample if not isinstance(processor.resample, int) else 3,
        )
        assert resized.shape[-1] % side == 0
        levels.append(resized.permute(1, 2, 0).contiguous())
    return processor(tensors, return_tensors="pt", **options), levels


def inputs_of(
    variant: Any,
    images: list[Any],
    frames: list[Any],
    options: dict[str, Any],
    generator: np.random.Generator,
) -> tuple[list[int], dict[str, Any], list[torch.Tensor], int]:
    """The prompt, the model's other inputs, the levels, and the placeholder."""
    config = variant.config
    if frames:
        options = {"max_soft_tokens": VIDEO_BUDGET}
    found, levels = prepared(config, variant.preprocessor, images or frames, **options)
    tokens = [int(n) for n in found["num_soft_tokens_per_image"]]
    placeholder = config["video_token_id"] if frames else config["image_token_id"]
    ids = [2, *generator.integers(3, 100, 4).tolist()]
    for count in tokens:
        ids += [config["boi_token_id"], *[placeholder] * count, config["eoi_token_id"]]
        ids += generator.integers(3, 100, 2).tolist()
    inputs = {"pixel_values": found["pixel_values"], "image_position_ids": found["image_position_ids"]}
    if frames:
        inputs = {
            "pixel_values_videos": found["pixel_values"],
            "video_position_ids": found["image_position_ids"],
            "num_frames_per_video": torch.tensor([len(frames)]),
        }
    return ids, inputs, levels, placeholder


def masks(config: dict[str, Any], ids: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The masks of the model: spans only in sliding layers, within the window. The unified class uses these
    in generate() with a static cache, but others in forward()."""
    text = config["text_config"]
    if text["use_bidirectional_attention"] != "vision":
        return None
    row = ids[0]
    count = len(row)
    soft = (row == config["image_token_id"]) | (row == config["video_token_id"])
    block = torch.cumsum((soft & ~torch.cat([torch.tensor([False]), soft[:-1]])).long(), 0)
    q, k = torch.arange(count)[:, None], torch.arange(count)[None]
    same = soft[:, None] & soft[None] & (block[:, None] == block[None])
    full = k <= q
    sliding = ((k <= q) | same) & (k > q - text["sliding_window"])

    def additive(seen: torch.Tensor) -> torch.Tensor:
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]

    return {"full_attention": additive(full), "sliding_attention": additive(sliding)}
