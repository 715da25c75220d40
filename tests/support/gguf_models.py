"""Converts small Hugging Face folders into GGUF files, byte by byte, like llama.cpp's converter.

This code follows the definition of the format and the converter. It does not use gemlet's reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlet.checkpoint.gguf_format import TENSOR_TYPES
from gemlet.checkpoint.safetensors_files import Checkpoint
from support.tokenizer_files import ARRAY, BOOL, F32, STRING, U32, gguf_entry, gguf_file, gguf_tensor

Tensors = dict[str, NDArray[np.float32]]
# Maps the name of each tensor to its type, and to its values or (uint8) its encoded blocks.
Typed = dict[str, tuple[str, NDArray[Any]]]
Encoder = Callable[[NDArray[np.float32]], NDArray[np.uint8]]

ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4",
    "embedding_gemma2_text": "gemma-embedding2",
}
_DEFAULTS: dict[str, dict[str, Any]] = {  # keys that config.json may omit
    "gemma2": {"query_pre_attn_scalar": 256},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131072,
    },
    "gemma3n_text": {"max_position_embeddings": 32768},
    "gemma4_text": {"max_position_embeddings": 131072, "global_head_dim": 512},
    "gemma4_unified_text": {
        "max_position_embeddings": 262144,
        "global_head_dim": 512,
        "hidden_size_per_layer_input": 0,
    },
}
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "embedding_projection": "output",
    "lm_head": "output",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "pre_projection": "nextn.pre_projection",
    "post_projection": "nextn.post_projection",
    "altup_projections": "altup_proj",
    "altup_unembed_projections": "altup_unembd_proj",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "layer_scalar": "layer_output_scale",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.correct_output_scale": "altup_correct_scale",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
    "router.proj": "ffn_gate_inp",
    "experts.gate_up_proj": "ffn_gate_up_exps",
    "experts.down_proj": "ffn_down_exps",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}


# --- Block types of 32 values -------------------------------------------------------------------------------


def q8_0(w: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Encodes rows as Q8_0. A block of 32 values has a float16 scale and 32 signed bytes."""
    blocks = w.reshape(*w.shape[:-1], -1, 32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1).astype(np.float32), 0)
    q = np.clip(np.round(blocks * inverse), -127, 127).astype(np.int8)
    return _rows(w, scale, q.view(np.uint8))


def q4_0(w: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Encodes rows as Q4_0. A block of 32 values has a float16 scale and 16 bytes. Byte i has the values i
    and i + 16."""
    blocks = w.reshape(*w.shape[:-1], -1, 32)
    at = np.abs(blocks).argmax(-1)[..., None]
    scale = (np.take_along_axis(blocks, at, -1) / -8).astype(np.float16)
    inverse = np.where(scale != 0, 1 / np.where(scale != 0, scale, 1).astype(np.float32), 0)
    q = np.clip(np.round(blocks * inverse) + 8, 0, 15).astype(np.uint8)
    return _rows(w, scale, q[..., :16] | q[..., 16:] << 4)


def _rows(w: NDArray[np.float32], scale: NDArray[Any], q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blocks = np.concatenate([np.ascontiguousarray(scale).view(np.uint8), q], -1)
    return blocks.reshape(*w.shape[:-1], -1)


def decode(kind: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decodes rows of Q8_0 or Q4_0."""
    blocks = rows.reshape(*rows.shape[:-1], -1, {"Q8_0": 34, "Q4_0": 18}[kind])
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    data = np.ascontiguousarray(blocks[..., 2:])
    if kind == "Q8_0":
        q = data.view(np.int8).astype(np.float32)
    else:
        q = np.concatenate([data & 15, data >> 4], -1).astype(np.float32) - 8
    return (q * scale).reshape(*rows.shape[:-1], -1)


NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
# For each type, the number of values in a block and the encoder. The encoder of BF16 truncates the values,
# which is exact if the values came from bfloat16.
TYPES: dict[str, tuple[int, Encoder]] = {
    "F32": (1, lambda w: w.view(np.uint8)),
    "F16": (1, lambda w: w.astype(np.float16).view(np.uint8)),
    "BF16": (1, lambda w: (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)),
    "Q8_0": (32, q8_0),
    "Q4_0": (32, q4_0),
    "I64": (1, lambda w: w.astype(np.int64).view(np.uint8)),
}


# --- Models -------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """Reads ``config.json`` and all tensors, as float32."""
    with Checkpoint(folder) as checkpoint:
        for module in sorted(path.name for path in folder.glob("*_Dense")):
            checkpoint.add_folder(module)
        tensors = {}
        for name in checkpoint.tensors:
            values, dtype = checkpoint.read(name)
            if dtype == "bf16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = values.astype(np.float32)
    return json.loads((folder / "config.json").read_text()), tensors


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the text model, with defaults for keys that config.json may omit."""
    text = dict(config.get("text_config", config))
    text.setdefault("model_type", f"{config['model_type']}_text")
    return _DEFAULTS.get(text["model_type"], {}) | text


def convert_tensors(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors as llama.cpp's converter writes them. It renames them, stacks the matrices of AltUp, and
    adds 1 to the norm weights of some families."""
    text = text_part(config)
    model_type = text["model_type"]
    adds_one = model_type in ("gemma", "gemma2", "gemma3_text")
    converted: Tensors = {}
    stacks: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name, values in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        while parts[0] in ("model", "language_model", "ple"):
            parts = parts[1:]
        if parts[0] == "lm_head" and config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)):
            continue
        if "_Dense/linear" in parts[0]:
            converted[f"dense_{parts[0][0]}.weight"] = values
            continue
        if parts[0] != "layers" and parts[0] not in _NAMES:
            continue  # the tensors for images and audio belong to the mmproj file
        if adds_one and name.endswith(("norm.weight", "layernorm.weight")):
            values = values + np.float32(1)
        if parts[0] == "layers":
            rest = ".".join(parts[2:]).removeprefix("ple_block.")
            if rest == "router.scale":
                new = f"blk.{parts[1]}.ffn_gate_inp.scale"
            elif rest == "router.per_expert_scale":
                new = f"blk.{parts[1]}.ffn_down_exps.scale"
            elif rest == "post_attention_layernorm" and model_type == "gemma":
                new = f"blk.{parts[1]}.ffn_norm.weight"
            else:
                new = f"blk.{parts[1]}.{_LAYER_NAMES[rest]}.weight"
            converted[new] = values
        elif parts[0].startswith("altup_"):
            stacks.setdefault(f"{_NAMES[parts[0]]}.weight", {})[int(parts[1])] = values
        else:
            converted[f"{_NAMES[parts[0]]}.weight"] = values
    for new, stack in stacks.items():
        converted[new] = np.stack([stack[i] for i in range(len(stack))])
    if model_type.startswith("gemma4"):
        rope = (text.get("rope_parameters") or {}).get("full_attention", {"partial_rotary_factor": 0.25})
        half = head_dims(text)[""] // 2
        turning = int(rope.get("partial_rotary_factor", 1.0) * half)
        converted["rope_freqs.weight"] = np.float32([1.0] * turning + [1e30] * (half - turning))
    return converted


def metadata(config: Mapping[str, Any], **changes: tuple[int, Any] | None) -> list[bytes]:
    """The metadata entries for ``config``. ``changes`` maps a key of the architecture, with two underscores
    for a dot, to a type and a value, or to None to omit the key."""
    text = text_part(config)
    embeds = text.get("use_bidirectional_attention") is True
    family = "gemma-embedding" if embeds else ARCHITECTURES[text["model_type"]]
    like_gemma4 = family in ("gemma4", "gemma-embedding2")
    count, heads = text["num_hidden_layers"], text["num_attention_heads"]
    width = text["intermediate_size"]
    keys: dict[str, tuple[int, Any]] = {
        "context_length": (U32, text["max_position_embeddings"]),
        "embedding_length": (U32, text["hidden_size"]),
        "block_count": (U32, count),
        "feed_forward_length": (ARRAY, (U32, width)) if isinstance(width, list) else (U32, width),
        "attention.head_count": (U32, heads),
        "attention.head_count_kv": (U32, text.get("num_key_value_heads", heads)),
        "attention.layer_norm_rms_epsilon": (F32, text.get("rms_norm_eps", 1e-6)),
        "attention.key_length": (U32, text["head_dim"]),
        "attention.value_length": (U32, text["head_dim"]),
    }
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if text.get(cap):
            keys[cap] = (F32, text[cap])
    scalar = text.get("query_pre_attn_scalar", text["head_dim"])
    if scalar != text["head_dim"] and family in ("gemma2", "gemma3", "gemma-embedding"):
        keys["attention.scale"] = (F32, scalar**-0.5)
    if family != "gemma":
        keys["attention.sliding_window"] = (U32, text.get("sliding_window", 4096))
    sliding = sliding_layers(text, family)
    if family == "gemma3n" or like_gemma4 or "layer_types" in text or "sliding_window_pattern" in text:
        keys["attention.sliding_window_pattern"] = (ARRAY, (BOOL, sliding))
    keys |= _rope_keys(text, family)
    if family == "gemma3n":
        keys |= _gemma3n_keys(text)
    if like_gemma4:
        keys |= _gemma4_keys(text, sliding)
    if family == "gemma-embedding2":  # GGUF's window is the number of tokens on both sides of a token
        keys["attention.sliding_window"] = (U32, 2 * text["sliding_window"])
        keys["embedding_length_out"] = (U32, text["embedding_dim"])
        keys["attention.causal"] = (BOOL, False)
        embeds = True
    if target := config.get("backbone_hidden_size"):
        family = "gemma4-assistant"
        keys |= {"embedding_length_out": (U32, target), "nextn_predict_layers": (U32, count)}
    if embeds:
        keys["pooling_type"] = (U32, 1)
    for key, change in changes.items():
        name = key.replace("__", ".")
        keys.pop(name, None)
        if change is not None:
            keys[name] = change
    entries = [gguf_entry("general.architecture", STRING, family)]
    return entries + [gguf_entry(f"{family}.{key}", *value) for key, value in keys.items()]


def sliding_layers(text: Mapping[str, Any], family: str) -> list[bool]:
    count = text["num_hidden_layers"]
    if text.get("layer_types"):
        sliding = [kind == "sliding_attention" for kind in text["layer_types"]]
    else:
        default = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma4": 6, "gemma-embedding": 6}.get(family, 1)
        pattern = text.get("sliding_window_pattern", text.get("_sliding_window_pattern", default))
        sliding = [(i + 1) % pattern != 0 for i in range(count)]
    if family in ("gemma4", "gemma-embedding2"):
        sliding[-1] = False
    return sliding


def _rope_keys(text: Mapping[str, Any], family: str) -> dict[str, tuple[int, Any]]:
    parameters = text.get("rope_parameters") or {}
    nested = family not in ("gemma", "gemma2")
    one = parameters.get("full_attention", {}) if nested else parameters
    local = parameters.get("sliding_attention", {}) if nested else {}
    keys: dict[str, tuple[int, Any]] = {
        "rope.freq_base": (F32, one.get("rope_theta", text.get("rope_theta", 1e6 if nested else 1e4)))
    }
    if nested:
        keys["rope.freq_base_swa"] = (F32, local.get("rope_theta", text.get("rope_local_base_freq", 1e4)))
    scaling = text.get("rope_scaling") or one
    if "factor" in scaling:
        keys |= {"rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (F32, scaling["factor"])}
    return keys


def _gemma3n_keys(text: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    count = text["num_hidden_layers"]
    shares = text.get("activation_sparsity_pattern") or [
        0.95 if count > 10 and i < 10 else 0 for i in range(count)
    ]
    scales = [NormalDist().inv_cdf(share) if share else -np.inf for share in shares]
    return {
        "altup.active_idx": (U32, 0),
        "altup.num_inputs": (U32, text.get("altup_num_inputs", 4)),
        "embedding_length_per_layer_input": (U32, text.get("hidden_size_per_layer_input", 256)),
        "attention.shared_kv_layers": (U32, text.get("num_kv_shared_layers", 15)),
        "activation_sparsity_scale": (ARRAY, (F32, scales)),
    }


def head_dims(text: Mapping[str, Any]) -> dict[str, int]:
    overrides = (text.get("per_layer_config") or {}).values()
    of_global = next((layer["head_dim"] for layer in overrides), text.get("global_head_dim", 512))
    return {"": of_global, "_swa": text["head_dim"]}


def kv_heads(text: Mapping[str, Any]) -> list[int]:
    """The number of key and value heads of each layer of Gemma 4."""
    sliding = sliding_layers(text, "gemma4")
    heads = [text.get("num_key_value_heads", text["num_attention_heads"])] * len(sliding)
    if (text.get("attention_k_eq_v") or "embedding_dim" in text) and text.get("num_global_key_value_heads"):
        other = text["num_global_key_value_heads"]
        heads = [heads[0] if local else other for local in sliding]
    for index, values in (text.get("per_layer_config") or {}).items():
        heads[int(index)] = values.get("num_key_value_heads", heads[int(index)])
    return heads


def _gemma4_keys(text: Mapping[str, Any], sliding: list[bool]) -> dict[str, tuple[int, Any]]:
    dims = head_dims(text)
    shared = text.get("num_kv_shared_layers", 0)
    keys: dict[str, tuple[int, Any]] = {
        "attention.shared_kv_layers": (U32, shared),
        "embedding_length_per_layer_input": (U32, text.get("hidden_size_per_layer_input", 256) or 0),
        "attention.head_count_kv": (ARRAY, (U32, kv_heads(text))),
    }
    for suffix, dim in dims.items():
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            keys[name + suffix] = (U32, dim)
    if text.get("use_double_wide_mlp"):
        width = text["intermediate_size"]
        widths = [width * (1 + (i >= len(sliding) - shared)) for i in range(len(sliding))]
        keys["feed_forward_length"] = (ARRAY, (U32, widths))
    if text.get("enable_moe_block"):
        keys |= {
            "expert_count": (U32, text["num_experts"]),
            "expert_used_count": (U32, text["top_k_experts"]),
            "expert_feed_forward_length": (U32, text["moe_intermediate_size"]),
        }
    return keys


def write_gguf(path: Path, entries: Iterable[bytes], tensors: Typed) -> Path:
    """Writes a GGUF file with these metadata entries and tensors. ``tensors`` has the type and the values of
    each tensor."""
    directory, blobs, offset = [], [], 0
    for name, (kind, values) in tensors.items():
        number, shape, data = NUMBERS[kind], values.shape, values
        if values.dtype == np.uint8:  # the rows are encoded already
            _, size, each = next(entry for entry in TENSOR_TYPES.values() if entry[0] == kind)
            shape = (*shape[:-1], shape[-1] // each * size)
        else:
            data = TYPES[kind][1](np.ascontiguousarray(values))
        directory.append(gguf_tensor(name, reversed(shape), number, offset))
        blobs.append(data.tobytes() + b"\0" * (-data.nbytes % 32))
        offset += len(blobs[-1])
    path.write_bytes(gguf_file(entries, directory, b"".join(blobs)))
    return path


def typed(tensors: Tensors, kind: str) -> Typed:
    """Encodes the matrices as ``kind`` if their rows are whole blocks. Vectors, routers and other tensors
    that llama.cpp does not quantize stay F32."""
    chosen = {}
    for name, values in tensors.items():
        kept = (
            values.ndim < 2
            or ".altup_" in name
            or "ffn_gate_inp" in name
            or values.shape[-1] % TYPES[kind][0]
        )
        chosen[name] = ("F32" if kept else kind, values)
    return chosen


def convert_folder(
    folder: Path,
    path: Path,
    kind: str = "F32",
    *,
    more: Iterable[bytes] = (),
    **changes: tuple[int, Any] | None,
) -> Path:
    """Converts a Hugging Face folder into one GGUF file without a tokenizer. ``more`` are further entries."""
    config, tensors = read_folder(folder)
    entries = [*metadata(config, **changes), *more]
    return write_gguf(path, entries, typed(convert_tensors(config, tensors), kind))
