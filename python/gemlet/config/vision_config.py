"""The configuration of a model's tower for images in ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemlet import _core
from gemlet.base.keys import Keys
from gemlet.base.late import log
from gemlet.base.records import record
from gemlet.config.families import TANH_GELU, WITH_GEMMA4_TOWERS
from gemlet.config.gemma4_vision import Gemma4VisionConfig, UnifiedVisionConfig
from gemlet.config.image_settings import ImageSettings
from gemlet.config.mobilenet import PUBLISHED_STAGES, MobileNetConfig

__all__ = ["KEPT_BYTES", "SiglipConfig", "VisionConfig", "read_vision"]


@record(frozen=True)
class SiglipConfig:
    """Gemma 3's tower: SigLIP over a square image, whose patches become ``tokens_per_side`` squared tokens.

    ``settings`` say how an image is prepared. In a prompt, ``token_id`` stands for one of these tokens, and
    ``begin_id`` and ``end_id`` enclose them.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    tokens_per_side: int
    token_id: int
    begin_id: int
    end_id: int
    settings: ImageSettings

    @property
    def fixed_settings(self) -> dict[str, object]:
        """The values that the preprocessor's settings must have if the file has these settings."""
        return {"size": (self.image_size, self.image_size)}

    @property
    def most_tokens(self) -> int:
        """Soft tokens of an image."""
        return self.tokens

    @property
    def tokens(self) -> int:
        """Soft tokens of an image."""
        return self.tokens_per_side**2

    @property
    def grid(self) -> int:
        """Patches in a row of the image."""
        return self.image_size // self.patch_size

    def to_core(self) -> _core.SiglipConfig:
        """The core's form. Raises :class:`ConfigError` for sizes that do not go together."""
        return _core.SiglipConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            layer_norm_eps=self.layer_norm_eps,
            tokens_per_side=self.tokens_per_side,
        )

    def tower(self, model: _core.Model) -> _core.SiglipTower:
        """The core's encoder of images, which uses the weights of ``model``."""
        return _core.SiglipTower(model, self.to_core())

    def activation_bytes(self, hidden_size: int, weights: str) -> int:
        """Bytes that an image takes on its way, in a text model of ``hidden_size``."""
        return self.to_core().activation_bytes(hidden_size, weights)


VisionConfig = SiglipConfig | Gemma4VisionConfig | UnifiedVisionConfig | MobileNetConfig


KEPT_BYTES = 64 << 20  # soft tokens of the most recent images

# The defaults of the reference's class.
_SIGLIP: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
_SIGLIP_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": (*TANH_GELU, None),
    "num_channels": (3,),
}
_LIMIT = 1 << 20
MOST_LAYERS = 512  # layers of a tower


def read_vision(outer: Keys, family: str) -> VisionConfig | None:
    """The tower that ``outer``, the object of a multimodal file, describes; None if it has none, or one that
    gemlet does not run.

    Raises :class:`ConfigError` for a value that is not a number or out of range.
    """
    if outer.raw.get("vision_config") is None:
        return None
    if family in WITH_GEMMA4_TOWERS:
        return _read_gemma4(outer)
    if family == "gemma3n":
        return _read_mobilenet(outer)
    return _read_siglip(outer) if family == "gemma3" else None


def _read_siglip(outer: Keys) -> SiglipConfig:
    keys = outer.inner(outer.mapping("vision_config"), "vision_config", _SIGLIP)
    if keys.raw.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise keys.wrong("model_type", "'siglip_vision_model'")
    for key, choices in _SIGLIP_FIXED.items():
        if key in keys.raw and keys.raw[key] not in choices:
            raise keys.wrong(key, repr(choices[0]))

    def size(key: str) -> int:
        return keys.integer(key, _LIMIT)

    return SiglipConfig(
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_layers=keys.integer("num_hidden_layers", MOST_LAYERS),
        num_heads=size("num_attention_heads"),
        image_size=size("image_size"),
        patch_size=size("patch_size"),
        layer_norm_eps=keys.number("layer_norm_eps", 1e-12, 0.1),
        tokens_per_side=_tokens_per_side(outer, "mm_tokens_per_image"),
        token_id=_id(outer, "image_token", 262144),
        begin_id=_id(outer, "boi_token", 255999),
        end_id=_id(outer, "eoi_token", 256000),
        settings=ImageSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )


def _tokens_per_side(outer: Keys, key: str) -> int:
    tokens = outer.inner(outer.raw, key, {key: 256}).integer(key, _LIMIT)
    if math.isqrt(tokens) ** 2 != tokens:
        raise outer.wrong(key, "a square number")
    return math.isqrt(tokens)


_MOBILENET: Mapping[str, Any] = {
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": 2048,
    "model_args": None,
    "rms_norm_eps": 1e-6,
}


def _read_mobilenet(outer: Keys) -> MobileNetConfig | None:
    keys = outer.inner(outer.mapping("vision_config"), "vision_config", _MOBILENET)
    if keys.get("architecture") != _MOBILENET["architecture"] or keys.get("model_args"):
        # The rest of the model does not depend on it.
        log.info("the model does not see: its vision_config is not that of mobilenetv5_300m_enc")
        return None
    return MobileNetConfig(
        stages=PUBLISHED_STAGES,
        stem_channels=64,
        fused_inner=3840,
        hidden_size=keys.integer("hidden_size", 1 << 15),
        tokens_per_side=_tokens_per_side(outer, "vision_soft_tokens_per_image"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-12, 0.1),
        token_id=_id(outer, "image_token", 262145),
        begin_id=_id(outer, "boi_token", 255999),
        end_id=_id(outer, "eoi_token", 262144),
        settings=ImageSettings(),
    )


_GEMMA4: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10240,
    "use_clipped_linears": False,
    "standardize": False,
    "rms_norm_eps": 1e-6,
}
_UNIFIED: Mapping[str, Any] = {
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "model_patch_size": 48,
    "mm_embed_dim": 3840,
    "mm_posemb_size": 1120,
    "rms_norm_eps": 1e-6,
}


def _read_gemma4(outer: Keys) -> Gemma4VisionConfig | UnifiedVisionConfig:
    unified = outer.raw.get("model_type") == "gemma4_unified"
    raw = outer.mapping("vision_config")
    keys = outer.inner(raw, "vision_config", _UNIFIED if unified else _GEMMA4)
    if raw.get("hidden_activation", raw.get("hidden_act")) not in (*TANH_GELU, None):
        raise keys.wrong("hidden_activation", f"one of {', '.join(TANH_GELU)}")
    tokens = {
        "token_id": _id(outer, "image_token", 258880),
        "video_id": _id(outer, "video_token", 258884),
        "begin_id": _id(outer, "boi_token", 255999),
        "end_id": _id(outer, "eoi_token", 258882),
    }
    settings = ImageSettings(resample="bicubic")
    eps = keys.number("rms_norm_eps", 1e-12, 0.1)

    def size(key: str) -> int:
        return keys.integer(key, _LIMIT)

    if unified:
        return UnifiedVisionConfig(
            **tokens,
            settings=settings,
            token_side=size("model_patch_size"),
            hidden_size=size("mm_embed_dim"),
            positions=size("mm_posemb_size"),
            rms_norm_eps=eps,
        )
    rope = keys.inner(keys.mapping("rope_parameters"), "rope_parameters", {"rope_theta": 100.0})
    if rope.raw.get("rope_type", "default") not in ("default", "axial"):
        raise rope.wrong("rope_type", "'default'")
    return Gemma4VisionConfig(
        **tokens,
        settings=settings,
        patch_size=size("patch_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_layers=keys.integer("num_hidden_layers", MOST_LAYERS),
        num_heads=size("num_attention_heads"),
        num_kv_heads=size("num_key_value_heads"),
        head_dim=size("head_dim"),
        pool=size("pooling_kernel_size"),
        positions=size("position_embedding_size"),
        clipped=keys.flag("use_clipped_linears"),
        standardize=keys.flag("standardize"),
        rope_theta=rope.number("rope_theta", 1e-3, 1e9),
        rms_norm_eps=eps,
    )


def _id(outer: Keys, name: str, default: int) -> int:
    key = f"{name}_id" if f"{name}_id" in outer.raw else f"{name}_index"
    value = outer.raw.get(key, default)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise outer.wrong(key, "a token id")
    return value
