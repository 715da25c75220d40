"""Turns the metadata of an ``mmproj`` file of llama.cpp and of the text model's GGUF file into the keys of a
multimodal ``config.json``.

As in :mod:`gemlet.sources.gguf_keys`, the file leaves out values that are built into llama.cpp, and some
values follow from the shapes of tensors. The token ids that stand for images and sound are found in the text
model's file, by the names of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemlet.base.arrays import np
from gemlet.base.text import show
from gemlet.checkpoint.gguf_format import GGUFFile
from gemlet.config.vision_config import MOST_LAYERS
from gemlet.errors import ConfigError, TensorError

__all__ = ["mmproj_problem", "preprocessor_keys", "projector_types", "read_mmproj_keys"]

Shapes = Mapping[str, tuple[int, ...]]

# Projector type -> (model_type of config.json, architecture of the text model's GGUF file).
_TYPES = {
    "gemma3": ("gemma3", "gemma3"),
    "gemma3nv": ("gemma3n", "gemma3n"),
    "gemma3na": ("gemma3n", "gemma3n"),
    "gemma4v": ("gemma4", "gemma4"),
    "gemma4a": ("gemma4", "gemma4"),
    "gemma4uv": ("gemma4_unified", "gemma4"),
    "gemma4ua": ("gemma4_unified", "gemma4"),
}
# key of config.json -> (name of the token, its id in published models)
_GEMMA4_TOKENS = {
    "image_token_id": ("<|image|>", 258880),
    "boi_token_id": ("<|image>", 255999),
    "eoi_token_id": ("<image|>", 258882),
    "video_token_id": ("<|video|>", 258884),
    "audio_token_id": ("<|audio|>", 258881),
    "boa_token_id": ("<|audio>", 256000),
    "eoa_token_id": ("<audio|>", 258883),
}
# model_type -> its tokens, as above
_TOKENS = {
    "gemma3": {
        "image_token_index": ("<image_soft_token>", 262144),
        "boi_token_index": ("<start_of_image>", 255999),
        "eoi_token_index": ("<end_of_image>", 256000),
    },
    "gemma3n": {
        "image_token_id": ("<image_soft_token>", 262145),
        "boi_token_id": ("<start_of_image>", 255999),
        "eoi_token_id": ("<end_of_image>", 262144),
        "audio_token_id": ("<audio_soft_token>", 262273),
        "boa_token_id": ("<start_of_audio>", 256000),
        "eoa_token_id": ("<end_of_audio>", 262272),
    },
    "gemma4": _GEMMA4_TOKENS,
    "gemma4_unified": _GEMMA4_TOKENS,
    "embedding_gemma2": _GEMMA4_TOKENS,
}
# Architecture of a text model with another architecture's projectors -> (that architecture, the multimodal
# model's model_type).
_BORROWS = {"gemma-embedding2": ("gemma4", "embedding_gemma2")}
_UNUSED = 5  # the value of tokenizer.ggml.token_type for an unused token


def mmproj_problem(gguf: GGUFFile, own: GGUFFile, hidden_size: int) -> str | None:
    """The reason why the mmproj file ``gguf`` does not fit the text model in the file ``own``, whose tokens
    have ``hidden_size`` numbers. None if it fits."""
    shapes = {name: tensor.shape for name, tensor in gguf.tensors.items()}
    architecture = str(own.metadata.get("general.architecture"))
    wanted = _BORROWS.get(architecture, (architecture, ""))[0]
    if gguf.metadata.get("general.architecture") != "clip":
        return f"its general.architecture is {show(gguf.metadata.get('general.architecture'))}, not 'clip'"
    try:
        types = projector_types(gguf)
        width = _width(gguf, shapes)
    except (ConfigError, TensorError) as problem:
        return str(problem)
    if any(
        _TYPES[one][1] != wanted or (wanted != architecture and _TYPES[one][0] != wanted)
        for one in types.values()
    ):
        return f"it is for {' and '.join(sorted(set(types.values())))}, but the model is {architecture}"
    if width != hidden_size:
        return f"its soft tokens have {width} numbers, but the model's tokens have {hidden_size}"
    return None


def projector_types(gguf: GGUFFile) -> dict[str, str]:
    """tower ("vision", "audio") -> its projector type, for each tower in the file."""
    found = {}
    for tower in ("vision", "audio"):
        name = gguf.metadata.get(f"clip.{tower}.projector_type")
        if name is None and tower == "vision":
            name = gguf.metadata.get("clip.projector_type")
        if name is None or gguf.metadata.get(f"clip.has_{tower}_encoder", True) is False:
            continue
        if not isinstance(name, str) or name not in _TYPES:
            raise ConfigError(
                f"{gguf.path}: clip.{tower}.projector_type is {show(name)}; expected one of "
                f"{', '.join(_TYPES)}"
            )
        found[tower] = name
    if not found:
        raise ConfigError(f"{gguf.path}: clip.projector_type is missing; expected one of {', '.join(_TYPES)}")
    if len({_TYPES[name][0] for name in found.values()}) > 1:
        raise ConfigError(
            f"{gguf.path}: has the projectors {' and '.join(found.values())}, which are for different "
            "models; expected projectors for one model"
        )
    return found


def _width(gguf: GGUFFile, shapes: Shapes) -> int:
    """The number of values in a soft token."""
    types = projector_types(gguf)
    name = "mm.input_projection.weight" if "vision" in types else "mm.a.input_projection.weight"
    shape = _shape(gguf, shapes, name, 2)
    return shape[-1] if types.get("vision") == "gemma3" else shape[0]


def read_mmproj_keys(
    gguf: GGUFFile, shapes: Shapes, text: Mapping[str, Any], own: GGUFFile
) -> dict[str, Any]:
    """The keys of the ``config.json`` of the whole model: the text model in the file ``own``, whose keys are
    ``text``, with the towers in ``gguf``.

    Raises ``ConfigError``, ``ModelFileError`` or ``TensorError`` about a key or a tensor.
    """
    types = projector_types(gguf)
    model_type = _TYPES[next(iter(types.values()))][0]
    model_type = _BORROWS.get(str(own.metadata.get("general.architecture")), ("", model_type))[1]
    keys: dict[str, Any] = {
        "model_type": model_type,
        "text_config": {**text, "model_type": f"{model_type}_text"},
        "tie_word_embeddings": text["tie_word_embeddings"],
        "eos_token_id": text["eos_token_id"],
        **_token_ids(own, model_type, text["vocab_size"]),
    }
    if gguf.metadata.get("clip.use_silu") is True:
        raise ConfigError(f"{gguf.path}: clip.use_silu is true; expected false (every Gemma has GELU)")
    if model_type == "gemma3":
        keys["vision_config"] = _read_siglip(gguf)
        side = keys["vision_config"]["image_size"] // keys["vision_config"]["patch_size"]
        keys["mm_tokens_per_image"] = (side // _integer(gguf, "clip.vision.projector.scale_factor", 4)) ** 2
    elif model_type == "gemma3n":
        keys |= _read_gemma3n(gguf, shapes, types, keys["text_config"])
    else:
        unified = model_type == "gemma4_unified"
        read = (_read_unified if unified else _read_gemma4)(gguf, shapes) if "vision" in types else None
        keys["vision_config"] = read
        keys["audio_config"] = None
        if "audio" in types:
            keys["audio_config"] = (
                {"audio_embed_dim": _shape(gguf, shapes, "mm.a.input_projection.weight", 2)[1]}
                if unified
                else _read_audio(gguf, shapes)
            )
    return keys


def preprocessor_keys(gguf: GGUFFile) -> dict[str, Any]:
    """The keys of a ``preprocessor_config.json``: how images and sounds are prepared."""
    keys: dict[str, Any] = {}
    kind = projector_types(gguf).get("vision")
    if kind == "gemma3nv":
        side = _integer(gguf, "clip.vision.image_size", 768)
        keys |= {"size": {"height": side, "width": side}, "do_normalize": False, "resample": 2}
    if kind == "gemma3":
        for name in ("image_mean", "image_std"):
            value = gguf.metadata.get(f"clip.vision.{name}")
            if isinstance(value, np.ndarray):
                keys[name] = [float(one) for one in value]
    if (bins := gguf.metadata.get("clip.audio.num_mel_bins")) is not None:
        keys["feature_size"] = bins
    return keys


def _token_ids(own: GGUFFile, model_type: str, vocab_size: int) -> dict[str, int]:
    """key of config.json -> the id of the token, for the tokens that stand for images and sound. The ids are
    found by the names of the tokens in the text model's file ``own``.

    The embedding table in files of Gemma 3 has no row for the token that stands for an image. An unused token
    is taken instead. Any unused token will do, because soft tokens replace the token's embedding.
    """
    pieces = own.metadata.get("tokenizer.ggml.tokens")
    wanted = {name for name, _ in _TOKENS[model_type].values()}
    ids: dict[str, int] = {}
    for token_id, piece in enumerate(pieces if isinstance(pieces, list) else ()):
        if piece in wanted:
            ids.setdefault(piece, token_id)
    found = {key: ids.get(name, default) for key, (name, default) in _TOKENS[model_type].items()}
    place = "image_token_index"
    if isinstance(pieces, list) and model_type == "gemma3" and found[place] >= min(vocab_size, len(pieces)):
        kinds = own.metadata.get("tokenizer.ggml.token_type")
        unused = np.flatnonzero(kinds == _UNUSED).tolist() if isinstance(kinds, np.ndarray) else []
        unused += [i for i, piece in enumerate(pieces) if piece.startswith("<unused")]
        found[place] = max((i for i in unused if i < vocab_size), default=found[place])
    return found


def _read_siglip(gguf: GGUFFile) -> dict[str, Any]:
    if gguf.metadata.get("clip.use_gelu") is False:
        raise ConfigError(f"{gguf.path}: clip.use_gelu is false; expected true")
    return {
        **_sizes(gguf, "vision"),
        "model_type": "siglip_vision_model",
        "image_size": _integer(gguf, "clip.vision.image_size"),
        "patch_size": _integer(gguf, "clip.vision.patch_size"),
        "layer_norm_eps": _epsilon(gguf),
    }


def _read_gemma4(gguf: GGUFFile, shapes: Shapes) -> dict[str, Any]:
    sizes = _sizes(gguf, "vision")
    head_dim = _shape(gguf, shapes, "v.blk.0.attn_q.weight", 2)[0] // sizes["num_attention_heads"]
    keys = _shape(gguf, shapes, "v.blk.0.attn_k.weight", 2)[0]
    return {
        **sizes,
        "head_dim": head_dim,
        "num_key_value_heads": keys // max(1, head_dim),
        "patch_size": _integer(gguf, "clip.vision.patch_size"),
        "pooling_kernel_size": _integer(gguf, "clip.vision.projector.scale_factor", 3),
        "position_embedding_size": _shape(gguf, shapes, "v.position_embd.weight", 3)[1],
        "use_clipped_linears": "v.blk.0.attn_q.input_min" in shapes,
        "standardize": "v.std_bias" in shapes,
        "rms_norm_eps": _epsilon(gguf),
    }


def _read_unified(gguf: GGUFFile, shapes: Shapes) -> dict[str, Any]:
    pixels = _shape(gguf, shapes, "v.patch_norm.1.weight", 1)[0]
    _, positions, width = _shape(gguf, shapes, "v.position_embd.weight", 3)
    return {
        "model_patch_size": math.isqrt(pixels // 3),
        "mm_embed_dim": width,
        "mm_posemb_size": positions,
        "rms_norm_eps": _epsilon(gguf),
    }


def _read_audio(gguf: GGUFFile, shapes: Shapes) -> dict[str, Any]:
    sizes = _sizes(gguf, "audio")
    del sizes["intermediate_size"]
    return {
        **sizes,
        "subsampling_conv_channels": _channels(gguf, shapes),
        "conv_kernel_size": _shape(gguf, shapes, "a.blk.0.conv_dw.weight")[-1],
        "output_proj_dims": _shape(gguf, shapes, "a.pre_encode.out.weight", 2)[0],
        "use_clipped_linears": "a.blk.0.attn_q.input_min" in shapes,
    }


def _read_gemma3n(
    gguf: GGUFFile, shapes: Shapes, types: Mapping[str, str], text: dict[str, Any]
) -> dict[str, Any]:
    """The keys of the encoders, and of the tables for ids that are not text. The last ids of the vocabulary
    stand for images and sound; those for sound are the very last."""
    offset = text["vocab_size"]
    configs: dict[str, Any] = {}
    for tower, name in (("audio", "mm.a.embedding.weight"), ("vision", "mm.embedding.weight")):
        if tower in types:
            rows, width = _shape(gguf, shapes, name, 2)
            offset -= rows
            configs[f"{tower}_config"] = {"vocab_size": rows, "vocab_offset": offset, "hidden_size": width}
    if offset <= 0:
        raise TensorError(
            f"{gguf.path}: the tables for images and sound leave {offset} of the model's "
            f"{text['vocab_size']} token ids for text; expected at least 1"
        )
    # The per-layer table in the file also has a row of zeros for ids that are not text. The model uses row 0
    # instead.
    text["vocab_size_per_layer_input"] = min(offset, text["vocab_size_per_layer_input"])
    if "vision" in types:
        side = _integer(gguf, "clip.vision.image_size", 768) // _integer(gguf, "clip.vision.patch_size", 48)
        configs["vision_soft_tokens_per_image"] = side**2
    if "audio" in types:
        sizes = _sizes(gguf, "audio")
        configs["audio_config"] |= {
            "conf_num_hidden_layers": sizes["num_hidden_layers"],
            "conf_num_attention_heads": sizes["num_attention_heads"],
            "sscp_conv_channel_size": _channels(gguf, shapes),
            "conf_conv_kernel_size": _shape(gguf, shapes, "a.blk.0.conv_dw.weight")[-1],
            "input_feat_size": _integer(gguf, "clip.audio.num_mel_bins", 128),
        }
    return configs


def _channels(gguf: GGUFFile, shapes: Shapes) -> list[int]:
    return [_shape(gguf, shapes, f"a.conv1d.{i}.weight", 4)[0] for i in range(2)]


def _sizes(gguf: GGUFFile, tower: str) -> dict[str, int]:
    return {
        "hidden_size": _integer(gguf, f"clip.{tower}.embedding_length"),
        "intermediate_size": _integer(gguf, f"clip.{tower}.feed_forward_length"),
        "num_hidden_layers": _integer(gguf, f"clip.{tower}.block_count", most=MOST_LAYERS),
        "num_attention_heads": _integer(gguf, f"clip.{tower}.attention.head_count"),
    }


def _integer(gguf: GGUFFile, key: str, default: int | None = None, *, most: int = (1 << 20) - 1) -> int:
    value = gguf.get(key, int, default) if default is not None else gguf.get(key, int)
    if value is None or not 1 <= value <= most:
        raise ConfigError(f"{gguf.path}: {key} is {show(value)}; expected an integer from 1 to {most}")
    return value


def _epsilon(gguf: GGUFFile) -> float | None:
    return gguf.get("clip.vision.attention.layer_norm_epsilon", float, 1e-6)


def _shape(gguf: GGUFFile, shapes: Shapes, name: str, dimensions: int | None = None) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or (dimensions is not None and len(shape) != dimensions) or not shape:
        got = "is missing" if shape is None else f"has shape {list(shape)}"
        expected = f"; expected {dimensions} dimensions" if dimensions is not None and shape else ""
        raise TensorError(f"{gguf.path}: tensor {name!r} {got}{expected}")
    return shape
