"""The results of Gemma 3n's variants for make_vision.py, which calls it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import transformers
from timm.layers import RmsNorm2d
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.mobilenetv5 import MobileNetV5Encoder, MobileNetV5MultiScaleFusionAdapter
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor


def small_tower(stages: tuple[tuple[str, ...], ...], width: int, side: int) -> MobileNetV5Encoder:
    """timm's mobilenetv5_300m_enc with other blocks, and an output of [width, side, side]."""
    gelu = partial(torch.nn.GELU, approximate="tanh")
    tower = MobileNetV5Encoder(
        decode_arch_def([list(stage) for stage in stages]),
        stem_size=8,
        pad_type="same",
        msfa_output_resolution=side,
        round_chs_fn=partial(round_channels, multiplier=1.0),
        norm_layer=RmsNorm2d,
        act_layer=gelu,
        layer_scale_init_value=1e-5,
    )
    tower.msfa = MobileNetV5MultiScaleFusionAdapter(
        in_chs=tower.msfa_in_chs, out_chs=width, output_resolution=side, norm_layer=RmsNorm2d, act_layer=gelu
    )
    return tower


def use_small_tower(variant: Any) -> None:
    """Lets transformers build the variant's tower, although the configuration names the only one in timm."""
    width = variant.config["vision_config"]["hidden_size"]
    side = round(variant.config["vision_soft_tokens_per_image"] ** 0.5)

    def create_model(_name: str, **_options: Any) -> MobileNetV5Encoder:
        return small_tower(variant.stages, width, side)

    timm.create_model = create_model


def inputs_of(
    variant: Any,
    folder: Any,
    images: list[Any],
    sounds: list[Any],
    generator: np.random.Generator,
) -> tuple[list[int], dict[str, Any], list[torch.Tensor], int]:
    """The prompt, the model's other inputs, the levels, and the placeholder."""
    config = variant.config
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    pixels = processor(tensors, return_tensors="pt")["pixel_values"]
    raw = processor(tensors, return_tensors="pt", do_rescale=False)["pixel_values"]
    places = {
        "image": (config["boi_token_id"], config["image_token_id"], config["eoi_token_id"]),
        "audio": (config["boa_token_id"], config["audio_token_id"], config["eoa_token_id"]),
    }
    counts = {
        "image": config["vision_soft_tokens_per_image"],
        "audio": config["audio_soft_tokens_per_image"],
    }
    ids = [2, *generator.integers(3, 100, 4).tolist()]
    for kind in ["image"] * len(images) + ["audio"] * len(sounds):
        begin, place, end = places[kind]
        ids += [begin, *[place] * counts[kind], end, *generator.integers(3, 100, 2).tolist()]
    inputs = {"pixel_values": pixels}
    if sounds:
        heard = Gemma3nAudioFeatureExtractor()(sounds, return_tensors="pt")
        inputs |= {name: heard[name] for name in ("input_features", "input_features_mask")}
    levels = list(raw.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous())
    return ids, inputs, levels, config["image_token_id"]
