"""Turns the metadata of a GGUF file into the keys of a ``config.json``, which :func:`parse_config` checks and
reads.

GGUF files leave out values that are built into llama.cpp. If a key is missing, this module uses llama.cpp's
value. Some values follow only from the shapes in the tensor directory: the number of rows of a table, the
rank of LAuReL, and whether there is an output matrix or a value projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemlet.base.arrays import np
from gemlet.base.keys import Keys, says_nothing
from gemlet.base.sampling_options import OPTIONS
from gemlet.base.text import show
from gemlet.checkpoint.gguf_format import GGUFFile
from gemlet.config.generation_defaults import GGUF_SAMPLING, read_number, read_suppressed
from gemlet.config.limits import LIMITS, NUMBERS
from gemlet.config.rope import LAYER_TYPES
from gemlet.errors import ConfigError, ModelFileError, TensorError
from gemlet.sources.gguf_metadata import Metadata, plain
from gemlet.weights.gguf_names import ROPE_FREQS, gguf_name
from gemlet.weights.slots import PER_LAYER_TABLE

__all__ = ["not_followed", "read_gguf_keys", "read_gguf_sampling"]

# general.architecture -> model_type of config.json
_MODEL_TYPES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma-embedding": "gemma3_text",
    "gemma-embedding2": "embedding_gemma2_text",
    "gemma4-assistant": "gemma4_text",
}
_DRAFTER = "gemma4-assistant"
_OTHERS = {
    "gemma4_assistant": f"a draft model of an early llama.cpp; take a newer file, with {_DRAFTER!r}",
    "clip": "a file with only the towers for images and sound; give the file of the model itself",
}
# The key that switches a sampling method on -> the keys of the method's other numbers. A method is off if its
# key is 0 or has the value in _SAMPLING_OFF.
_SAMPLING_METHODS = {
    "xtc_probability": ("xtc_threshold",),
    "mirostat": ("mirostat_tau", "mirostat_eta"),
    "penalty_repeat": ("penalty_last_n",),
}
_SAMPLING_OFF = {"penalty_repeat": 1}
_MEAN = 1  # a value of GGUF's pooling_type
# The number of layers of Gemma 3n that compute their own keys and values, if the file does not say how many
# layers share those of another layer.
_OWN_KEYS_3N = 20
# Ollama's own files of Gemma 3 have no keys for RoPE. Models with at least this context length (4B and
# larger) divide the positions of global layers by 8.
_LONG_CONTEXT = 131072
_NO_ROTATION = (
    1e9  # a pair whose angle is divided by at least this number does not rotate; converters write 1e30
)


def read_gguf_keys(
    gguf: GGUFFile, shapes: Mapping[str, tuple[int, ...]], rope_freqs: np.ndarray[Any, Any] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys of a ``config.json`` for the text model of a GGUF file, in JSON's types. Values that only GGUF
    has are in the object "gguf" (:func:`gemlet.config.parse_config`). Also returns the metadata keys that
    gemlet does not know and that change nothing.

    ``shapes`` are the shapes of the file's tensors, and ``rope_freqs`` the values of the tensor of that name.
    Raises :class:`ConfigError` or :class:`ModelFileError` about a key, and :class:`TensorError` if there is
    no embedding table.
    """
    if gguf.metadata.get("general.type") == "adapter":
        raise ModelFileError(
            f"{gguf.path}: is an adapter; expected a model. Load the model for which the adapter was made, "
            "and then the adapter with load_adapter() or --adapter"
        )
    if gguf.metadata.get("general.type") == "imatrix":
        raise ModelFileError(
            f"{gguf.path}: is an importance matrix (imatrix), which says how to quantize a model, and is "
            "not a model; give the model's file"
        )
    architecture = gguf.get("general.architecture", str)
    if architecture not in _MODEL_TYPES:
        what = f", {_OTHERS[architecture]}" if architecture in _OTHERS else ""
        raise ConfigError(
            f"{gguf.path}: general.architecture is {show(architecture)}{what}; "
            f"expected one of {', '.join(_MODEL_TYPES)}"
        )
    table = gguf_name("embed_tokens")
    if table not in shapes:
        raise TensorError(f"{gguf.path}: tensor {table!r} is missing; every model has this tensor")
    data = Metadata(gguf, architecture)
    count = data.integer("block_count", "num_hidden_layers")
    widths = data.integers("feed_forward_length", "intermediate_size", count)
    keys = _read_common(data, shapes, count) | {"intermediate_size": widths[0]}
    if architecture == "gemma3n":
        keys |= _read_gemma3n(data, shapes, count)
    if architecture == "gemma-embedding2":
        keys |= _read_embedding_gemma2(data, shapes, count)
    elif architecture in ("gemma4", _DRAFTER):
        keys |= _read_gemma4(data, shapes, count, rope_freqs)
    else:
        keys |= _read_heads_and_rope(data, architecture, count)
    own: dict[str, Any] = {"intermediate_size": widths}
    sparsity = _read_sparsity(data, count) if architecture == "gemma3n" else None
    if sparsity is not None:
        keys["activation_sparsity_pattern"] = [0.0] * count
        own["activation_sparsity"] = sparsity
    if architecture == "gemma-embedding":
        own["dense_sizes"] = list(_read_dense_layers(data, shapes))
        keys["use_bidirectional_attention"] = True
    data.only("attention.causal", not architecture.startswith("gemma-embedding"))
    if architecture == _DRAFTER:
        keys = _drafter(data, shapes, keys, widths)
        data.refuse_unread()
        return keys, tuple(data.passed_over)
    data.refuse_unread()
    return keys | {"model_type": _MODEL_TYPES[architecture], "gguf": own}, tuple(data.passed_over)


def read_gguf_sampling(gguf: GGUFFile, vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the sampling values that the file recommends, by their names in GenerationConfig, and the keys
    that were passed over. The values come from ``general.sampling.*`` and from the list of suppressed tokens.
    Raises :class:`ConfigError` for an impossible value.
    """
    keys = Keys(_sampling(gguf), gguf.path, GGUF_SAMPLING)
    sampling: dict[str, Any] = {
        name: read_number(keys, option.gguf, name)
        for name, option in OPTIONS.items()
        if option.gguf is not None and option.gguf in keys.raw
    }
    if (suppressed := gguf.metadata.get("tokenizer.ggml.suppress_tokens")) is not None:
        own = Keys(
            {"suppress_tokens": plain(suppressed)}, gguf.path, "tokenizer.ggml.", None, keys.passed_over
        )
        sampling["suppress_tokens"] = read_suppressed(own, "suppress_tokens", vocab_size)
    return sampling, tuple(keys.passed_over)


def not_followed(gguf: GGUFFile) -> dict[str, Any]:
    """Sampling options in the file that gemlet does not have: ``general.sampling.*`` -> the value. Numbers of
    a method that is off are left out."""
    given = _sampling(gguf)
    known = {option.gguf for option in OPTIONS.values()}
    for method, numbers in _SAMPLING_METHODS.items():
        if given.get(method) in (None, 0, _SAMPLING_OFF.get(method, 0)):
            known.update(numbers)
    asked = {key: value for key, value in given.items() if key not in known}
    return {
        GGUF_SAMPLING + key: value for key, value in asked.items() if value != 0 and not says_nothing(value)
    }


def _sampling(gguf: GGUFFile) -> dict[str, Any]:
    found = {key: plain(value) for key, value in gguf.metadata.items() if key.startswith(GGUF_SAMPLING)}
    return {key.removeprefix(GGUF_SAMPLING): value for key, value in found.items()}


def _read_common(data: Metadata, shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, Any]:
    """The keys that every family has."""
    ends = (data.gguf.get(f"tokenizer.ggml.{name}_token_id", int, None) for name in ("eos", "eot", "eom"))
    keys: dict[str, Any] = {
        "num_hidden_layers": count,
        "vocab_size": _rows(shapes, "embed_tokens"),
        "hidden_size": data.integer("embedding_length", "hidden_size"),
        "max_position_embeddings": data.integer("context_length", "max_position_embeddings"),
        "num_attention_heads": data.integer("attention.head_count", "num_attention_heads"),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": data.gguf.get("tokenizer.ggml.bos_token_id", int, None),
        "pad_token_id": data.gguf.get("tokenizer.ggml.padding_token_id", int, None),
        "eos_token_id": [end for end in ends if end is not None],
    }
    if (epsilon := data.number("attention.layer_norm_rms_epsilon")) is not None:
        keys["rms_norm_eps"] = epsilon
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if value := data.number(cap):
            keys[cap] = value
    return keys


def _rows(shapes: Mapping[str, tuple[int, ...]], slot: str, family: str = "") -> int:
    """The number of rows of the slot's tensor. If the tensor is missing, the result is 1, and the later check
    of all tensors raises the error."""
    return shapes.get(gguf_name(slot, family), (1,))[0]


def _read_heads_and_rope(data: Metadata, architecture: str, count: int) -> dict[str, Any]:
    """The keys for heads, windows and RoPE in the families before Gemma 4."""
    hidden = data.integer("embedding_length", "hidden_size")
    heads = data.integer("attention.head_count", "num_attention_heads")
    head_dim = data.integer("attention.key_length", "head_dim", data.get("head_dim", hidden // heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        data.only(name, head_dim)
        data.only(f"{name}_swa", head_dim)
    data.only("attention.key_length_swa", head_dim)
    keys: dict[str, Any] = {
        "head_dim": head_dim,
        "num_key_value_heads": data.integer("attention.head_count_kv", "num_key_value_heads", heads),
    }
    if architecture in ("gemma2", "gemma3", "gemma-embedding"):
        scale = data.number("attention.scale")
        largest = count == {"gemma2": 46, "gemma3": 62}.get(architecture)
        scalar = hidden / heads if largest else head_dim
        least, most = NUMBERS["query_scale"]
        if scale is not None and not least <= scale <= most:
            raise data.wrong("attention.scale", f"a number from {least:g} to {most:g}")
        keys["query_pre_attn_scalar"] = scalar if scale is None else scale**-2
    theta = data.number("rope.freq_base", "rope.global.freq_base")
    local_theta = data.number("rope.freq_base_swa", "rope.local.freq_base", "rope.freq_base_local")
    factor = _read_rope_factor(data)
    context = data.integer("context_length", "max_position_embeddings")
    if theta is not None:
        keys["rope_theta"] = theta
    elif architecture == "gemma3" and factor is None and context >= _LONG_CONTEXT:
        factor = 8.0
    if local_theta is not None and architecture in ("gemma3", "gemma3n", "gemma-embedding"):
        keys["rope_local_base_freq"] = local_theta
    elif local_theta not in (None, theta):
        raise data.wrong(
            "rope.freq_base_swa", f"the value of rope.freq_base, because {architecture} has only one rotation"
        )
    if factor is not None:
        keys["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if architecture != "gemma":
        keys |= _read_windows(data, architecture, count)
    return keys


def _read_rope_factor(data: Metadata) -> float | None:
    """The number by which positions are divided. As in llama.cpp, a missing type means "linear"."""
    kind = data.get("rope.scaling.type", "linear")
    factor = data.number("rope.scaling.factor")
    if kind not in ("none", "linear"):
        raise data.wrong("rope.scaling.type", "'linear' or 'none' (no other RoPE type is supported)")
    data.only("rope.scaling.attn_factor", 1.0)
    for name in ("yarn_beta_fast", "yarn_beta_slow"):  # only the type "yarn" uses them
        data.pass_over(f"rope.scaling.{name}")
    if kind == "none" and factor is not None:
        data.pass_over("rope.scaling.factor")
    return factor if kind == "linear" and factor else None


def _read_windows(data: Metadata, architecture: str, count: int) -> dict[str, Any]:
    """The size of the sliding window, and which layers have one."""
    keys: dict[str, Any] = {}
    window = data.get("attention.sliding_window")
    pattern = data.get("attention.sliding_window_pattern")
    if architecture == "gemma3" and not window:  # without a window, llama.cpp ignores the pattern
        return {"layer_types": [LAYER_TYPES[1]] * count}
    if type(window) is int and window > LIMITS["sliding_window"]:
        keys["sliding_window"] = window  # so large a window has no effect
    elif window is not None:
        keys["sliding_window"] = data.integer("attention.sliding_window", "sliding_window")
    if type(pattern) is int and 1 <= pattern <= LIMITS["num_hidden_layers"]:
        pattern = [(i + 1) % pattern != 0 for i in range(count)]
    if pattern is not None:
        if not isinstance(pattern, list) or len(pattern) != count or any(x not in (0, 1) for x in pattern):
            raise data.wrong("attention.sliding_window_pattern", f"an integer or {count} booleans")
        keys["layer_types"] = [LAYER_TYPES[not sliding] for sliding in pattern]
    return keys


def _read_dense_layers(data: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The output sizes of an embedding model's dense layers. Converters may leave the layers out."""
    data.only("pooling_type", _MEAN)
    names = [gguf_name(f"dense.{i}") for i in range(2)]
    sizes = [shapes[name] for name in names if len(shapes.get(name, ())) == 2]
    for name, (outputs, inputs) in zip(names, sizes, strict=False):
        key = name.removesuffix(".weight")
        data.only(f"{key}_feat_in", inputs)
        data.only(f"{key}_feat_out", outputs)
    return tuple(outputs for outputs, _ in sizes)


def _read_gemma3n(data: Metadata, shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, Any]:
    data.only("altup.active_idx", 0)
    data.only("altup.correct_scale", True)
    shared = data.get("attention.shared_kv_layers", max(0, count - _OWN_KEYS_3N))
    return {
        "num_kv_shared_layers": shared,
        "altup_num_inputs": data.get("altup.num_inputs", 4),
        "laurel_rank": _rows(shapes, "layers.0.laurel_left"),
        **_read_per_layer_inputs(data, shapes),
    }


def _read_sparsity(data: Metadata, count: int) -> list[float | None] | None:
    """The activation sparsity of each layer, as a number of standard deviations above the mean. A layer
    without sparsity has None; the file has minus infinity for it. Returns None if the file does not have the
    key."""
    values = data.get("activation_sparsity_scale")
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise data.wrong("activation_sparsity_scale", f"{count} numbers")
    for value in values:
        if type(value) is not float or not (value == -math.inf or -10 <= value <= 10):
            raise data.wrong("activation_sparsity_scale", "numbers from -10 to 10, or minus infinity")
    return [None if value == -math.inf else value for value in values]


def _read_per_layer_inputs(data: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    size = data.get("embedding_length_per_layer_input", 0)
    return {
        "hidden_size_per_layer_input": size,
        "vocab_size_per_layer_input": _rows(shapes, PER_LAYER_TABLE),
    }


def _read_gemma4(
    data: Metadata,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    rope_freqs: np.ndarray[Any, Any] | None,
) -> dict[str, Any]:
    keys = _read_two_heads(data, count)
    global_dim = data.integer("attention.key_length", "global_head_dim")
    shared = data.get("attention.shared_kv_layers", 0)
    own = count - shared if type(shared) is int and 0 <= shared < count else count
    is_global = [kind == LAYER_TYPES[1] for kind in keys["layer_types"]]
    keys |= {
        "num_kv_shared_layers": shared,
        "attention_k_eq_v": any(
            is_global[i] and gguf_name(f"layers.{i}.v_proj") not in shapes for i in range(own)
        ),
        **_read_per_layer_inputs(data, shapes),
    }
    # GGUF files do not have this key. Exactly those published models that have no per-layer inputs set it.
    keys["use_bidirectional_attention"] = None if keys["hidden_size_per_layer_input"] else "vision"
    if data.get("expert_count", 0):
        keys |= {
            "enable_moe_block": True,
            "num_experts": data.get("expert_count"),
            "top_k_experts": data.get("expert_used_count"),
            "moe_intermediate_size": data.get("expert_feed_forward_length"),
        }
    data.get("expert_used_count")
    data.get("expert_feed_forward_length")
    rope = keys["rope_parameters"] = _read_two_rotations(data)
    factor = _read_rope_factor(data)
    rope["full_attention"] |= {} if factor is None else {"factor": factor}
    rope["full_attention"] |= {
        "rope_type": "proportional",
        "partial_rotary_factor": _read_share(data, rope_freqs, global_dim),
    }
    return keys


def _read_embedding_gemma2(
    data: Metadata, shapes: Mapping[str, tuple[int, ...]], count: int
) -> dict[str, Any]:
    data.only("pooling_type", _MEAN)
    data.only("attention.shared_kv_layers", 0)
    size = _rows(shapes, "dense.0", "embeddinggemma2")
    data.only("embedding_length_out", size)
    keys = _read_two_heads(data, count)
    if _read_rope_factor(data) is not None:
        raise data.wrong("rope.scaling.factor", "no factor, as in every EmbeddingGemma 2")
    # The window in the file counts the tokens on both sides of a token. The one in config.json counts one
    # side.
    both = keys.get("sliding_window", 0)
    if both % 2:
        raise data.wrong("attention.sliding_window", "an even number, which counts the tokens on both sides")
    return {
        **keys,
        "sliding_window": both // 2,
        "tie_word_embeddings": True,  # the matrix "output" is the last layer of the embedding, not a head
        "embedding_dim": size,
        "hidden_size_per_layer_input": data.get("embedding_length_per_layer_input", 0),
        "rope_parameters": _read_two_rotations(data),
    }


def _read_two_heads(data: Metadata, count: int) -> dict[str, Any]:
    """The keys for windows and heads. Layers with a window have other heads than layers without one."""
    global_dim = data.integer("attention.key_length", "global_head_dim")
    local_dim = data.integer("attention.key_length_swa", "head_dim", global_dim)
    for suffix, dim in (("", global_dim), ("_swa", local_dim)):
        data.only(f"attention.value_length{suffix}", dim)
        data.only(f"rope.dimension_count{suffix}", dim)
    keys = _read_windows(data, "gemma4", count)
    types = keys.setdefault("layer_types", [LAYER_TYPES[(i + 1) % 6 == 0] for i in range(count)])
    types[-1] = LAYER_TYPES[1]
    kv_heads = data.integers("attention.head_count_kv", "num_key_value_heads", count)
    is_global = [kind == LAYER_TYPES[1] for kind in types]
    return keys | {
        "head_dim": local_dim,
        "num_key_value_heads": kv_heads[is_global.index(False)] if False in is_global else kv_heads[0],
        "per_layer_config": {
            str(i): {
                "head_dim": global_dim if is_global[i] else local_dim,
                "num_key_value_heads": kv_heads[i],
            }
            for i in range(count)
        },
    }


def _read_two_rotations(data: Metadata) -> dict[str, dict[str, Any]]:
    local_theta = data.number("rope.freq_base_swa")
    theta = data.number("rope.freq_base")
    return {
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 1e4 if local_theta is None else local_theta,
        },
        "full_attention": {"rope_type": "default", "rope_theta": 1e6 if theta is None else theta},
    }


def _drafter(
    data: Metadata, shapes: Mapping[str, tuple[int, ...]], keys: dict[str, Any], widths: list[int]
) -> dict[str, Any]:
    """The keys of a draft model. ``keys`` describe its layers, and ``widths`` are their MLP sizes."""
    data.only("nextn_predict_layers", len(widths))
    if len({*widths}) > 1:
        raise data.wrong("feed_forward_length", "one number for all layers of a draft model")
    centroids = shapes.get(gguf_name("centroids"), ())
    text = {key: value for key, value in keys.items() if key != "tie_word_embeddings"}
    text |= {"model_type": _MODEL_TYPES[_DRAFTER], "num_kv_shared_layers": len(widths)}
    text |= {"attention_k_eq_v": False, "use_bidirectional_attention": None}
    drafter = {
        "model_type": _DRAFTER.replace("-", "_"),
        "backbone_hidden_size": data.integer("embedding_length_out", "hidden_size"),
        "tie_word_embeddings": keys["tie_word_embeddings"],
        "use_ordered_embeddings": bool(centroids),
        "text_config": text,
    }
    # llama.cpp does not use centroids, so the file does not say how many of them are chosen.
    if centroids:
        drafter |= {"num_centroids": centroids[0], "centroid_intermediate_top_k": min(32, centroids[0])}
    return drafter


def _read_share(data: Metadata, rope_freqs: np.ndarray[Any, Any] | None, head_dim: int) -> float:
    """The share of a head's pairs that rotate. ``rope_freqs`` has a divisor for the angle of each pair: 1 for
    a pair that rotates, and a huge number for any other pair. The pairs that rotate come first."""
    if rope_freqs is None:
        return 1.0
    turning = int(np.argmax(rope_freqs != 1.0)) if (rope_freqs != 1.0).any() else len(rope_freqs)
    if len(rope_freqs) != head_dim // 2 or not (rope_freqs[turning:] >= _NO_ROTATION).all():
        raise ConfigError(
            f"{data.gguf.path}: tensor {ROPE_FREQS!r} has {len(rope_freqs)} numbers, of which the first "
            f"{turning} are 1; expected {head_dim // 2} numbers, first ones and then only numbers of at "
            "least 1e9 (gemlet supports nothing else)"
        )
    return turning / len(rope_freqs)
