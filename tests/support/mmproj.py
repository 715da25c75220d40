"""Converts golden folders with images or sound into a GGUF model and its mmproj file, with the names, keys
and layouts of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.gguf_models import (
    Tensors,
    Typed,
    convert_tensors,
    metadata,
    read_folder,
    text_part,
    typed,
    write_gguf,
)
from support.tokenizer_files import ARRAY, BOOL, F32, STRING, U32, gguf_entry

BOUNDS = ("input_min", "input_max", "output_min", "output_max")
# Maps parts of tensor names in a Hugging Face folder to parts of names in the mmproj file. The replacements
# are made in this order.
_SIGLIP = {
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.embeddings.patch_embedding": "v.patch_embd",
    "vision_tower.embeddings.position_embedding": "v.position_embd",
    "vision_tower.post_layernorm": "v.post_ln",
    "vision_tower.encoder.layers.": "v.blk.",
    "self_attn.out_proj": "attn_out",
    "layer_norm": "ln",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "multi_modal_projector.mm_input_projection_weight": "mm.input_projection.weight",
    "multi_modal_projector.mm_soft_emb_norm": "mm.soft_emb_norm",
}
_PROJECTIONS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
_GEMMA4_VISION = {
    "vision_tower.patch_embedder.input_proj": "v.patch_embd",
    "vision_tower.patch_embedder.position_embedding_table": "v.position_embd.weight",
    "vision_tower.std_": "v.std_",
    "vision_tower.encoder.layers.": "v.blk.",
    "self_attn.o_proj": "attn_out",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "ln1",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ffn_post_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_vision.embedding_projection": "mm.input_projection",
    "embed_vision.": "vision_embedder.",
    "vision_embedder.patch_ln1": "v.patch_norm.1",
    "vision_embedder.patch_ln2": "v.patch_norm.2",
    "vision_embedder.pos_norm": "v.patch_norm.3",
    "vision_embedder.patch_dense": "v.patch_embd",
    "vision_embedder.pos_embedding": "v.position_embd.weight",
}
_AUDIO = {
    "lconv1d.pre_layer_norm": "conv_norm",
    "lconv1d.conv_norm": "norm_conv",
    "lconv1d.linear_start": "conv_pw1",
    "lconv1d.linear_end": "conv_pw2",
    "lconv1d.depthwise_conv1d": "conv_dw",
    "embed_audio.embedding_projection": "mm.a.input_projection",
}
_GEMMA4_AUDIO = {
    "audio_tower.subsample_conv_projection.layer0.conv": "a.conv1d.0",
    "audio_tower.subsample_conv_projection.layer1.conv": "a.conv1d.1",
    "audio_tower.subsample_conv_projection.layer0.norm": "a.conv1d.0.norm",
    "audio_tower.subsample_conv_projection.layer1.norm": "a.conv1d.1.norm",
    "audio_tower.subsample_conv_projection.input_proj_linear": "a.input_projection",
    "audio_tower.output_proj": "a.pre_encode.out",
    "audio_tower.layers.": "a.blk.",
    "feed_forward1.ffw_layer_1": "ffn_up",
    "feed_forward1.ffw_layer_2": "ffn_down",
    "feed_forward1.pre_layer_norm": "ffn_norm",
    "feed_forward1.post_layer_norm": "ffn_post_norm",
    "feed_forward2.ffw_layer_1": "ffn_up_1",
    "feed_forward2.ffw_layer_2": "ffn_down_1",
    "feed_forward2.pre_layer_norm": "ffn_norm_1",
    "feed_forward2.post_layer_norm": "ffn_post_norm_1",
    "self_attn.post": "attn_out",
    "self_attn.relative_k_proj": "attn_k_rel",
    "self_attn.per_dim_scale": "per_dim_scale.weight",
    "norm_pre_attn": "attn_pre_norm",
    "norm_post_attn": "attn_post_norm",
    "norm_out": "ln2",
}
_GEMMA3N = {
    "audio_tower.subsample_conv_projection.conv_0.conv": "a.conv1d.0",
    "audio_tower.subsample_conv_projection.conv_1.conv": "a.conv1d.1",
    "audio_tower.subsample_conv_projection.conv_0.norm": "a.conv1d.0.norm",
    "audio_tower.subsample_conv_projection.conv_1.norm": "a.conv1d.1.norm",
    "audio_tower.subsample_conv_projection.input_proj_linear": "a.pre_encode.out",
    "audio_tower.conformer.": "a.blk.",
    "ffw_layer_start.ffw_layer_1": "ffn_up",
    "ffw_layer_start.ffw_layer_2": "ffn_down",
    "ffw_layer_start.pre_layer_norm": "ffn_norm",
    "ffw_layer_start.post_layer_norm": "ffn_post_norm",
    "ffw_layer_end.ffw_layer_1": "ffn_up_1",
    "ffw_layer_end.ffw_layer_2": "ffn_down_1",
    "ffw_layer_end.pre_layer_norm": "ffn_norm_1",
    "ffw_layer_end.post_layer_norm": "ffn_post_norm_1",
    "attention.attn.relative_position_embedding.pos_proj": "linear_pos",
    "attention.attn.per_dim_scale": "per_dim_scale",
    "attention.attn.q_proj": "attn_q",
    "attention.attn.k_proj": "attn_k",
    "attention.attn.v_proj": "attn_v",
    "attention.post.": "attn_out.",
    "attention.pre_attn_norm": "ln1",
    "attention.post_norm": "ln2",
    "vision_tower.timm_model.blocks.": "v.blk.",
    "vision_tower.timm_model.": "v.",
    "embed_vision.embedding_projection": "mm.input_projection",
    "embed_vision.embedding.": "mm.embedding.",
    "embed_vision.hard_embedding_norm": "mm.hard_emb_norm",
    "embed_vision.soft_embedding_norm": "mm.soft_emb_norm",
    "embed_audio.embedding.": "mm.a.embedding.",
    "embed_audio.hard_embedding_norm": "mm.a.hard_emb_norm",
    "embed_audio.soft_embedding_norm": "mm.a.soft_emb_norm",
}
_NAMES = {
    "gemma3": _SIGLIP | _PROJECTIONS,
    "gemma3n": _AUDIO | _GEMMA3N,
    "gemma4": _AUDIO | _GEMMA4_VISION | _GEMMA4_AUDIO | _PROJECTIONS,
}
_NAMES |= dict.fromkeys(("gemma4_unified", "embedding_gemma2"), _NAMES["gemma4"])
_TOWERS = ("vision_tower.", "audio_tower.", "embed_", "multi_modal_projector.", "vision_embedder.")
_TYPES = {
    "gemma3": ("gemma3", None),
    "gemma3n": ("gemma3nv", "gemma3na"),
    "gemma4": ("gemma4v", "gemma4a"),
    "gemma4_unified": ("gemma4uv", "gemma4ua"),
    "embedding_gemma2": ("gemma4v", "gemma4a"),
}
# Maps keys of config.json, which give the ids of special tokens, to the texts of these tokens.
_TOKENS = {
    "image_token": ("<image_soft_token>", "<|image|>"),
    "boi_token": ("<start_of_image>", "<|image>"),
    "eoi_token": ("<end_of_image>", "<image|>"),
    "video_token": ("", "<|video|>"),
    "audio_token": ("<audio_soft_token>", "<|audio|>"),
    "boa_token": ("<start_of_audio>", "<|audio>"),
    "eoa_token": ("<end_of_audio>", "<audio|>"),
}


def tower_tensors(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors of the image and audio towers as the converter writes them."""
    family = config["model_type"]
    converted: Tensors = {}
    for name, values in tensors.items():
        plain = name.removeprefix("model.")
        if plain.startswith(_TOWERS):
            plain = plain.replace(".linear.", ".")
            for old, new in _NAMES[family].items():
                plain = plain.replace(old, new)
            if family == "gemma3n" and plain.startswith("a.blk.") and plain.split(".")[3] == "norm":
                plain = plain.replace(".norm.", ".layer_pre_norm.")
            converted[plain] = _changed(plain, values, config)
    return converted


def _changed(name: str, values: Any, config: Mapping[str, Any]) -> Any:
    family = config["model_type"]
    if name == "mm.soft_emb_norm.weight" and family == "gemma3":
        return values + np.float32(1)
    if values.ndim == 0:
        return values[None]
    if name.endswith((".layer_scale.gamma", "conv_stem.conv.bias")):
        return values[None, :, None, None]
    if family in ("gemma4", "embedding_gemma2"):
        if name == "v.patch_embd.weight":
            side = config["vision_config"]["patch_size"]
            return values.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
        if name.endswith("per_dim_scale.weight"):
            return np.log1p(np.exp(values))
        if name.endswith("conv_dw.weight"):
            return values.reshape(len(values), -1)
    if family == "gemma4_unified" and name.startswith("v."):
        side = round((values.shape[-1] // 3) ** 0.5)
        if name == "v.position_embd.weight":
            return values.transpose(1, 0, 2)
        if name == "v.patch_embd.weight" or name.startswith("v.patch_norm.1."):
            rows = values.reshape(-1, side, side, 3)
            return rows.transpose(0, 3, 1, 2).reshape(values.shape)
    return values


def tower_entries(config: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    """The metadata of the mmproj file, by key."""
    family, hidden = config["model_type"], text_part(config)["hidden_size"]
    vision, audio = config.get("vision_config"), config.get("audio_config")
    types = _TYPES[family]
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "clip"),
        "general.type": (STRING, "mmproj"),
        "general.file_type": (U32, 0),
    }
    unified = family == "gemma4_unified"
    if vision is not None:
        heads = 0 if unified else vision.get("num_attention_heads", 8)
        layers = 0 if unified else vision.get("num_hidden_layers", 128)
        keys |= {
            "clip.has_vision_encoder": (BOOL, True),
            "clip.vision.projector_type": (STRING, types[0]),
            "clip.vision.projection_dim": (U32, hidden),
            "clip.vision.image_size": (U32, vision.get("image_size", 224)),
            "clip.vision.patch_size": (U32, vision.get("patch_size", 16)),
            "clip.vision.embedding_length": (U32, vision.get("hidden_size", vision.get("mm_embed_dim", 1))),
            "clip.vision.feed_forward_length": (U32, vision.get("intermediate_size", 0)),
            "clip.vision.block_count": (U32, layers),
            "clip.vision.attention.head_count": (U32, heads),
            "clip.vision.attention.layer_norm_epsilon": (F32, 1e-6),
            "clip.vision.image_mean": (ARRAY, (F32, [0.5 if family == "gemma3" else 0.0] * 3)),
            "clip.vision.image_std": (ARRAY, (F32, [0.5 if family == "gemma3" else 1.0] * 3)),
        }
        if family == "gemma3":
            del keys["clip.vision.projector_type"]
            side = vision["image_size"] // vision["patch_size"]
            scale = side // round(config["mm_tokens_per_image"] ** 0.5)
            keys |= {
                "clip.projector_type": (STRING, types[0]),
                "clip.use_gelu": (BOOL, True),
                "clip.vision.projector.scale_factor": (U32, scale),
            }
        elif family == "gemma3n":
            side = round(config["vision_soft_tokens_per_image"] ** 0.5)
            keys |= {
                "clip.vision.image_size": (U32, side * 32),
                "clip.vision.patch_size": (U32, 32),
            }
        elif not unified:
            keys["clip.vision.projector.scale_factor"] = (U32, vision.get("pooling_kernel_size", 3))
    if audio is not None:
        keys |= {
            "clip.has_audio_encoder": (BOOL, True),
            "clip.audio.projector_type": (STRING, types[1]),
            "clip.audio.projection_dim": (U32, hidden),
            "clip.audio.embedding_length": (U32, audio.get("hidden_size", 1)),
            "clip.audio.feed_forward_length": (U32, 4 * audio.get("hidden_size", 0)),
            "clip.audio.block_count": (U32, _either(audio, "num_hidden_layers")),
            "clip.audio.attention.head_count": (U32, _either(audio, "num_attention_heads")),
            "clip.audio.attention.layer_norm_epsilon": (F32, 1e-5 if family == "gemma3n" else 1e-6),
            "clip.audio.num_mel_bins": (U32, audio.get("input_feat_size", 128)),
        }
    return keys


def _either(audio: Mapping[str, Any], key: str) -> int:
    return int(audio.get(f"conf_{key}", audio.get(key, 0)))


def tokenizer_entries(
    config: Mapping[str, Any], others: Mapping[int, tuple[str, int]] | None = None
) -> list[bytes]:
    """The metadata entries of an invented tokenizer. The tokens of images and sound have the ids that the
    configuration gives. ``others`` are further tokens with their types."""
    size = text_part(config)["vocab_size"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(chr(0x4E00 + i) for i in range(size - 4))]
    kinds = [3, 3, 3, 2] + [1] * (size - 4)
    for key, names in _TOKENS.items():
        ids = [config[one] for one in (f"{key}_id", f"{key}_index") if config.get(one) is not None]
        name = names[config["model_type"] not in ("gemma3", "gemma3n")]
        if ids and name and ids[0] < size:
            pieces[ids[0]], kinds[ids[0]] = name, 3
    for token_id, (name, kind) in (others or {}).items():
        pieces[token_id], kinds[token_id] = name, kind
    return [
        gguf_entry("tokenizer.ggml.model", STRING, "llama"),
        gguf_entry("tokenizer.ggml.tokens", ARRAY, (STRING, pieces)),
        gguf_entry("tokenizer.ggml.scores", ARRAY, (F32, [-float(i) for i in range(size)])),
        gguf_entry("tokenizer.ggml.token_type", ARRAY, (5, kinds)),
        gguf_entry("tokenizer.ggml.bos_token_id", U32, 2),
        gguf_entry("tokenizer.ggml.eos_token_id", U32, 1),
        gguf_entry("tokenizer.ggml.unknown_token_id", U32, 3),
        gguf_entry("tokenizer.ggml.padding_token_id", U32, 0),
        gguf_entry("tokenizer.ggml.add_space_prefix", BOOL, False),
    ]


def write_model(folder: Path, path: Path) -> Path:
    """Writes the text part of a golden folder as a GGUF file with a tokenizer."""
    config, tensors = read_folder(folder)
    converted = convert_tensors(config, tensors)
    if config["model_type"] == "gemma3n":  # the converter adds rows of zeros for the ids of images and sound
        table = converted["per_layer_token_embd.weight"]
        rows = max(0, text_part(config)["vocab_size"] - len(table))
        converted["per_layer_token_embd.weight"] = np.pad(table, ((0, rows), (0, 0)))
    entries = [*metadata(config), *tokenizer_entries(config)]
    return write_gguf(path, entries, typed(converted, "F32"))


def write_mmproj(
    folder: Path,
    path: Path,
    kind: str = "F32",
    *,
    entries: Mapping[str, tuple[int, Any] | None] | None = None,
    tensors: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """Writes the image and audio towers of a golden folder as an mmproj file. ``entries`` and ``tensors``
    replace entries and tensors of the file; None leaves one out. ``kinds`` gives the types of some
    tensors."""
    config, stored = read_folder(folder)
    found: Typed = typed(tower_tensors(config, stored), kind)
    keys: dict[str, tuple[int, Any] | None] = {**tower_entries(config), **(entries or {})}
    for name, values in (tensors or {}).items():
        found.pop(name, None)
        if values is not None:
            found[name] = ("F32", values)
    for name, other in (kinds or {}).items():
        found[name] = (other, found[name][1])
    return write_gguf(path, _entries(keys), found)


def _entries(keys: Mapping[str, tuple[int, Any] | None]) -> Iterable[bytes]:
    return [gguf_entry(key, *value) for key, value in keys.items() if value is not None]
