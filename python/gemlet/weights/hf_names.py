"""Maps the tensors of a Hugging Face checkpoint to slots, and checks that none is missing.

One name is a trap: ``post_attention_layernorm`` is the norm *before* the MLP in Gemma 1, and the norm of the
attention's *output* in all other families.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from gemlet.base.records import replace
from gemlet.base.text import show
from gemlet.config.mobilenet import MobileNetConfig
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.errors import TensorError
from gemlet.weights.audio_slots import table_slots
from gemlet.weights.mobilenet_slots import slot_shapes, with_found_blocks
from gemlet.weights.slots import all_slots
from gemlet.weights.tower_slots import is_transposed, plain_tower_name, tower_names, tower_slots

__all__ = [
    "TOKEN_ORDER",
    "MappedTensors",
    "dense_tensor",
    "is_tower",
    "map_tensors",
    "match_tensors",
    "matrix_columns",
    "split_prefix",
    "tensor_name",
    "tower_kinds",
    "unused_tensors",
    "without_wrappers",
]

# slot of a layer -> its name in the checkpoint after "layers.N."; ".weight" is added unless it ends in a dot
_COMMON = {
    "pre_attention_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_PER_LAYER_INPUT = {
    "per_layer_input_gate": "per_layer_input_gate",
    "per_layer_projection": "per_layer_projection",
    "post_per_layer_input_norm": "post_per_layer_input_norm",
}
_ALTUP = {
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_prediction_coefs": "altup.prediction_coefs",
    "altup_correction_coefs": "altup.correction_coefs",
    "altup_correct_scale": "altup.correct_output_scale.",
    "laurel_left": "laurel.linear_left",
    "laurel_right": "laurel.linear_right",
    "post_laurel_norm": "laurel.post_laurel_norm",
}
_EXPERTS = {
    "router_proj": "router.proj",
    "router_scale": "router.scale.",
    "router_per_expert_scale": "router.per_expert_scale.",
    "experts_gate_up": "experts.gate_up_proj.",
    "experts_down": "experts.down_proj.",
    "pre_moe_norm": "pre_feedforward_layernorm_2",
    "post_dense_norm": "post_feedforward_layernorm_1",
    "post_moe_norm": "post_feedforward_layernorm_2",
}
# The names of tensors that only draft models have. They have no prefix.
_ASSISTANT = {
    "pre_projection": "pre_projection.weight",
    "post_projection": "post_projection.weight",
    "centroids": "masked_embedding.centroids.weight",
}
TOKEN_ORDER = (
    "masked_embedding.token_ordering"  # the token id of each row of a draft model's head, as integers
)
_GEMMA3 = _COMMON | _SANDWICH | _HEAD_NORMS
LAYER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gemma": _COMMON | {"pre_mlp_norm": "post_attention_layernorm"},
    "gemma2": _COMMON | _SANDWICH,
    "vaultgemma": _COMMON | {"pre_mlp_norm": "pre_feedforward_layernorm"},
    "gemma3": _GEMMA3,
    "gemma3n": _GEMMA3 | _PER_LAYER_INPUT | _ALTUP,
    "gemma4": _GEMMA3 | _PER_LAYER_INPUT | _EXPERTS | {"layer_scalar": "layer_scalar."},
    "embeddinggemma2": _GEMMA3
    | {slot: f"ple_block.{name}" for slot, name in _PER_LAYER_INPUT.items()}
    | {"layer_scalar": "layer_scalar."},
}
# Names outside of layers that differ from the slot: family -> slot -> the name after the model's prefix.
_END_NAMES: Mapping[str, Mapping[str, str]] = {
    "embeddinggemma2": {
        "per_layer_model_projection": "ple.per_layer_model_projection",
        "per_layer_projection_norm": "ple.per_layer_projection_norm",
        "dense.0": "embedding_projection",
    },
}

# (prefix of the text model, prefix of lm_head) in published files.
PREFIXES = (
    ("model.", ""),
    ("language_model.model.", "language_model."),  # Gemma 3 with images, as published
    ("model.language_model.", ""),  # Gemma 3n and 4 as published, Gemma 3 saved by transformers 4.52 or later
    ("", ""),  # the trunk only
)
# Other tools combine these two parts of prefixes in other ways.
_PREFIX_PARTS = ("model", "language_model")
# Wrappers that training and compiling put around modules. They have no meaning for the weights.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
_PEFT = "base_model.model."  # the wrapper of a model that had an adapter
_UNMERGED = (".lora_A.", ".lora_B.", ".lora_magnitude_vector", ".base_layer.", ".modules_to_save.")

# Modules of a multimodal model that text does not need. A prefix may come before them.
_TOWERS_3N = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")
TOWERS: Mapping[str, tuple[str, ...]] = {
    "gemma": (),
    "gemma2": (),
    "vaultgemma": (),
    "gemma3": ("vision_tower.", "multi_modal_projector."),
    "gemma3n": _TOWERS_3N,
    "gemma4": (*_TOWERS_3N, "vision_embedder."),
    "embeddinggemma2": _TOWERS_3N,
}
# The last parts of the names of constants that some exports store.
_CONSTANTS = ("embed_scale", "cos_cached", "sin_cached", "position_ids", "masked_bias")
# The ends of names of tensors that quantized files have beside the weights -> the tools that write them.
_QUANTIZED = {
    (".qweight", ".qzeros", ".g_idx"): "GPTQ or AWQ",
    (".weight_packed", ".weight_zero_point", ".weight_shape"): "compressed-tensors",
    (".absmax", ".quant_map", ".nested_absmax", ".SCB", ".weight_format"): "bitsandbytes",
    (".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".input_scale"): "FP8, NVFP4 or int8",
    (".scales", ".biases"): "MLX",
}
# TRL's value head. The model's own weights are complete without it, so its tensors are ignored.
_VALUE_HEAD = ("v_head.",)
_CLASSIFIERS = ("score.", "classifier.", "classification_head.", "reward_head.")
# The last parts of the names of scales for an 8-bit KV cache.
_CACHE_SCALES = (
    *("k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale", "output_scale"),
    *("k_cache_scale", "v_cache_scale"),
)


class MappedTensors(NamedTuple):
    """The result of :func:`map_tensors`.

    Attributes:
        slots: tensor -> slot.
        config: the model's configuration, corrected by the tensors: whether the output head is the embedding
            table, and which towers the model has.
        passed_over: tensors that have no effect and that published files do not have.
    """

    slots: dict[str, str]
    config: TextConfig
    passed_over: tuple[str, ...]


def map_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    config: TextConfig,
    *,
    where: str,
    same: Callable[[str, str], bool] | None = None,
) -> MappedTensors:
    """Maps the tensors of a checkpoint with these ``shapes`` to slots.

    The tensors decide whether the output head is the embedding table, because the configuration may be wrong
    about this. The head is the table if only one of the two tensors is stored. If both are stored, ``same``
    is called with both names and says whether they hold the same values. Without ``same``, the configuration
    decides.

    Tensors that text does not need are left out: towers for images and sound, a copy of the tied output
    matrix, and projections of layers that read the keys and values of another layer. Raises
    :class:`TensorError` if a tensor is missing, unexpected or has the wrong shape. ``where`` is the name of
    the checkpoint for errors.
    """
    plain = _plain_names(shapes, where)  # name without wrappers -> tensor
    prefix, head_prefix = _find_prefix(plain, where)
    table, head = f"{prefix}embed_tokens.weight", f"{head_prefix}lm_head.weight"
    if table not in plain and head in plain:
        plain[table] = plain.pop(head)
    tied = config.tie_word_embeddings or head not in plain
    if head in plain:
        _check_head(shapes[plain[head]], config, where, plain[head])
        if same is not None:
            tied = same(plain[table], plain[head])
    config = replace(config, tie_word_embeddings=tied)
    towers = {
        plain_tower_name(split_prefix(name)[1]): name for name in plain if is_tower(name, config.family)
    }
    config, left_out = _whole_towers(config, {name: shapes[plain[towers[name]]] for name in towers})
    slots = all_slots(config)
    inner = tower_names(slots, config.family)
    names = {
        slot: towers.get(inner[slot], inner[slot])
        if slot in inner
        else tensor_name(slot, config.family, prefix, head_prefix)
        for slot in slots
    }
    slots |= {
        slot: slots[slot][::-1] for slot in inner if is_transposed(slot, config.family)
    }  # shapes as stored
    unused = unused_tensors(config, prefix, head_prefix)
    constants = {name for name in plain if _is_constant(name) or name.startswith(_VALUE_HEAD)}
    beyond = _layers_beyond(plain, prefix, config.num_layers)
    ignored = {*unused, *constants, *beyond, *(name for name in plain if is_tower(name, config.family))}
    found = match_tensors(
        {name: shapes[tensor] for name, tensor in plain.items()}, config, names, slots, ignored, where=where
    )
    return MappedTensors(
        {plain[name]: slot for name, slot in found.items()},
        config,
        (*left_out, *(plain[name] for name in sorted(constants)), *_named_layers(beyond, config.num_layers)),
    )


def _layers_beyond(plain: Collection[str], prefix: str, num_layers: int) -> dict[str, int]:
    """Tensor -> its layer, for layers beyond those of the configuration. Transformers does not read such
    layers either."""
    found: dict[str, int] = {}
    begin = f"{prefix}layers."
    for name in plain:
        index = name[len(begin) :].partition(".")[0] if name.startswith(begin) else ""
        if index.isascii() and index.isdecimal() and len(index) < 10 and int(index) >= num_layers:
            found[name] = int(index)
    return found


def _named_layers(beyond: Mapping[str, int], num_layers: int) -> tuple[str, ...]:
    if not beyond:
        return ()
    first, last = min(beyond.values()), max(beyond.values())
    which = f"layer {first}" if first == last else f"layers {first} to {last}"
    return (f"{which} ({len(beyond)} tensors, but num_hidden_layers is {num_layers})",)


def _whole_towers(
    config: TextConfig, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[TextConfig, tuple[str, ...]]:
    """Removes from ``config`` the towers and tables that the checkpoint does not have completely. A file may
    have only a part of a tower, or may be saved as a text model. ``shapes`` are the shapes of the stored
    tensors. Returns the new configuration, and why each incomplete tower was removed."""
    if isinstance(config.vision, MobileNetConfig):
        config = replace(config, vision=with_found_blocks(config.vision, slot_shapes(shapes)))
    slots = tower_slots(config)
    kept, tables, reasons = {}, [], []
    for tower in ("vision", "audio"):
        own = {slot: shape for slot, shape in slots.items() if slot.startswith(f"{tower}.")}
        wrong_slots = {
            slot: name
            for slot, name in tower_names(own, config.family).items()
            if shapes.get(name) != (own[slot][::-1] if is_transposed(slot, config.family) else own[slot])
        }
        wrong = list(wrong_slots.values())
        kept[tower] = not wrong
        if not wrong_slots.keys() & table_slots(tower):
            tables.append(tower)
        if wrong and any(name in shapes for name in tower_names(own, config.family).values()):
            reasons.append(f"the tower for {tower} ({wrong[0]} is missing or has another shape)")
    return without_towers(config, **kept, tables=tables), tuple(reasons)


def _plain_names(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, str]:
    """Name without wrappers -> tensor."""
    plain: dict[str, str] = {}
    for tensor in shapes:
        if any(part in tensor for part in _UNMERGED):
            raise TensorError(
                f"{where}: tensor {show(tensor)} belongs to an unmerged PEFT state dict; merge it with "
                "merge_and_unload() and load the result, or load the original and the folder of the adapter"
            )
        name = without_wrappers(tensor).removeprefix(_PEFT)
        if name in plain:
            raise TensorError(
                f"{where}: tensors {show(plain[name])} and {show(tensor)} are the same weight; expected each "
                "weight once"
            )
        plain[name] = tensor
    return plain


def without_wrappers(tensor: str) -> str:
    """A tensor's name without the wrappers that training and compiling put around modules.

    >>> without_wrappers("_orig_mod.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    if not any(wrapper in tensor for wrapper in _WRAPPERS):
        return tensor
    return ".".join(part for part in tensor.split(".") if part not in _WRAPPERS)


def split_prefix(name: str) -> tuple[str, str]:
    """The prefix of the name of a text model's module or tensor, and the rest of the name.

    >>> split_prefix("model.language_model.layers.0"), split_prefix("lm_head")
    (('model.language_model.', 'layers.0'), ('', 'lm_head'))
    """
    inner = name
    while (parts := inner.partition("."))[0] in _PREFIX_PARTS and parts[1]:
        inner = parts[2]
    return name[: len(name) - len(inner)], inner


def _find_prefix(plain: Collection[str], where: str) -> tuple[str, str]:
    """The prefix of the names of the text model, and that of its head."""
    prefixes: list[str] = []
    heads: list[str] = []
    for name in plain:
        for ending, found in (
            ("embed_tokens.weight", prefixes),
            ("layers.0.input_layernorm.weight", prefixes),
            ("lm_head.weight", heads),
        ):
            prefix = name.removesuffix(ending)
            if prefix != name and prefix not in found and _is_prefix(prefix):
                found.append(prefix)
    if not prefixes or not any(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in plain):
        tried = ", ".join(repr(f"{prefix}embed_tokens.weight") for prefix, _ in PREFIXES)
        raise TensorError(f"{where}: the embedding table is missing; expected one of {tried}")
    if len(prefixes) > 1 or len(heads) > 1:
        listed = ", ".join(map(show, prefixes if len(prefixes) > 1 else heads))
        raise TensorError(f"{where}: has tensors of several text models, named {listed}; expected one model")
    return prefixes[0], heads[0] if heads else ""


def _is_prefix(prefix: str) -> bool:
    parts = prefix.split(".")
    return parts.pop() == "" and all(part in _PREFIX_PARTS for part in parts)


def _check_head(shape: tuple[int, ...], config: TextConfig, where: str, name: str) -> None:
    expected = (config.vocab_size, config.hidden_size)
    if tuple(shape) != expected:
        raise TensorError(
            f"{where}: tensor {show(name)} has shape {list(shape)}; expected {list(expected)}, "
            "which the configuration implies"
        )


def match_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    config: TextConfig,
    names: Mapping[str, str],
    slots: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
    *,
    where: str,
) -> dict[str, str]:
    """tensor name -> slot. The tensor ``names[slot]`` has to have the shape ``slots[slot]``.

    Raises :class:`TensorError` if a tensor is missing, has the wrong shape, or is neither in ``names`` nor in
    ``ignored``.
    """
    wrong = any(shapes.get(name) != slots[slot] for slot, name in names.items())
    if (wrong or len(shapes) > len(names)) and (how := _quantized(shapes, {*names.values(), *ignored})):
        raise TensorError(f"{where}: {how}")
    for slot, name in names.items():
        if name not in shapes:
            missing = sum(other not in shapes for other in names.values())
            more = f" ({missing} tensors are missing in all)" if missing > 1 else ""
            raise TensorError(f"{where}: tensor {name!r} is missing{more}; expected {list(slots[slot])}")
        if tuple(shapes[name]) != slots[slot]:
            raise TensorError(
                f"{where}: tensor {name!r} has shape {list(shapes[name])}; expected {list(slots[slot])}, "
                "which the configuration implies"
            )
    known = {*names.values(), *ignored}
    for name in shapes:
        if name not in known:
            how = "If it changes nothing, save the model again without it"
            if name.startswith(_CLASSIFIERS):
                how = (
                    "It belongs to a classifier or reward model (ForSequenceClassification), which gemlet "
                    "does not support; run this model with transformers"
                )
            raise TensorError(
                f"{where}: unexpected tensor {show(name)} of shape {list(shapes[name])}; "
                f"a {config.family} model of {config.num_layers} layers has no such weight. {how}"
            )
    return {name: slot for slot, name in names.items()}


def _quantized(shapes: Collection[str], known: Collection[str]) -> str | None:
    """The error message about tensors that only quantized files have; None if there are no such tensors."""
    for ends, tool in _QUANTIZED.items():
        for name in shapes:
            if name not in known and name.endswith(ends):
                return (
                    f"tensor {show(name)} belongs to weights that are quantized with {tool}; load the bf16 "
                    "original, with weights='q8' or 'q4' to make it small, or a GGUF file of the model"
                )
    return None


def tensor_name(slot: str, family: str, prefix: str, head_prefix: str) -> str:
    """The tensor that belongs to ``slot``. The names of the text model begin with ``prefix``, and the name of
    the head with ``head_prefix``."""
    if slot == "lm_head":
        return f"{head_prefix}lm_head.weight"
    if slot in _ASSISTANT:
        return _ASSISTANT[slot]
    if (own := _END_NAMES.get(family, {}).get(slot)) is not None:
        return f"{prefix}{own}.weight"
    if slot.startswith("dense."):
        return dense_tensor(int(slot.removeprefix("dense.")))
    if not slot.startswith("layers."):
        return f"{prefix}{'norm' if slot == 'final_norm' else slot}.weight"
    _, index, part = slot.split(".")
    name = LAYER_NAMES[family][part]
    return f"{prefix}layers.{index}.{name[:-1] if name.endswith('.') else f'{name}.weight'}"


def matrix_columns(config: TextConfig) -> dict[str, int]:
    """Module of a text model, without the prefix -> the columns of its matrix.

    >>> from gemlet.config import shape_config
    >>> matrix_columns(shape_config("gemma3-1b"))["layers.0.mlp.down_proj"]
    6912
    """
    slots = all_slots(without_towers(replace(config, tie_word_embeddings=False)))
    return {
        tensor_name(slot, config.family, "", "").removesuffix(".weight"): shape[1]
        for slot, shape in slots.items()
        if len(shape) == 2
    }


def dense_tensor(index: int) -> str:
    """The name "file/tensor" of the weights of an embedding model's dense layer, in a folder of
    sentence-transformers.

    >>> dense_tensor(0)
    '2_Dense/linear.weight'
    """
    return f"{index + 2}_Dense/linear.weight"


def unused_tensors(config: TextConfig, prefix: str, head_prefix: str) -> set[str]:
    """The names of tensors that published files may have and that map to no slot: a copy of the tied output
    matrix, a draft model's token order, and projections that no layer reads."""
    unused = {f"{head_prefix}lm_head.weight"} if config.tie_word_embeddings else set()
    if config.centroids:
        unused.add(TOKEN_ORDER)  # other code reads this tensor
    for i, layer in enumerate(config.layers):
        if layer.kv_source >= 0:
            for slot in ("k_proj", "v_proj", "k_norm"):
                unused.add(tensor_name(f"layers.{i}.{slot}", config.family, prefix, head_prefix))
    return unused


def is_tower(name: str, family: str) -> bool:
    """Whether a tensor or module belongs to a tower for images or sound.

    >>> is_tower("model.vision_tower.patch_embedding.weight", "gemma3"), is_tower("vision_tower.x", "gemma2")
    (True, False)
    """
    return f"{split_prefix(name)[1]}.".startswith(TOWERS[family])


def tower_kinds(modules: Iterable[str]) -> frozenset[str]:
    """The kinds of the towers that the modules belong to: "vision" or "audio".

    >>> sorted(tower_kinds(["model.audio_tower.conformer.0.norm", "vision_tower.encoder", "layers.0.mlp"]))
    ['audio', 'vision']
    """
    found = set()
    for module in modules:
        inner = f"{split_prefix(module)[1]}."
        if inner.startswith(("audio_tower.", "embed_audio.")):
            found.add("audio")
        elif inner.startswith(
            ("vision_tower.", "embed_vision.", "multi_modal_projector.", "vision_embedder.")
        ):
            found.add("vision")
    return frozenset(found)


def _is_constant(name: str) -> bool:
    last = name.rpartition(".")[2]
    # transformers calls them inv_freq, original_inv_freq, full_attention_inv_freq and the like.
    frequencies = (last.endswith("inv_freq") and "rotary" in name) or last == "inv_freq"
    return frequencies or last in _CONSTANTS or (last in _CACHE_SCALES and ".self_attn." in name)
