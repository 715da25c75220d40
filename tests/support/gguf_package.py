"""Converts golden folders into GGUF files with the ``gguf`` package, which llama.cpp's converter uses too.

This code makes the same calls as the converter. The converter cannot write features that no published model
has, such as another attention scale, another pattern of layers or scaled rotations in Gemma 4. For these
features, this code uses keys that the package defines."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.extras import optional
from support.gguf_models import ARCHITECTURES, Tensors, head_dims, kv_heads, sliding_layers, text_part

gguf = optional("gguf")

MARKERS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def write_with_package(config: dict[str, Any], tensors: Tensors, path: Path, **arguments: Any) -> Path:
    """Writes the model of a Hugging Face folder as a GGUF file in F32, with an invented tokenizer.
    ``arguments`` go to the package's writer. With ``split_max_tensors``, it writes several files."""
    text = text_part(config)
    embeds = text.get("use_bidirectional_attention") is True
    family = "gemma-embedding" if embeds else ARCHITECTURES[text["model_type"]]
    writer = gguf.GGUFWriter(path, family, **arguments)
    writer.add_name("golden")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_common(writer, text, family)
    _add_rotations(writer, text, family)
    if family == "gemma3n":
        _add_gemma3n(writer, text)
    if family == "gemma4":
        _add_gemma4(writer, text)
    converted = convert_names(config, tensors, family)
    if embeds:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        for name in ("dense_2", "dense_3"):
            if f"{name}.weight" in converted:
                outputs, inputs = converted[f"{name}.weight"].shape
                writer.add_dense_features_dims(name, inputs, outputs)
    _add_tokenizer(writer, text["vocab_size"])
    for name, values in converted.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert_names(config: dict[str, Any], tensors: Tensors, family: str) -> Tensors:
    """The tensors of the text part with the package's names. Matrices are stacked and norm weights are
    changed as in the converter."""
    text = text_part(config)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, text["num_hidden_layers"])
    adds_one = family in ("gemma", "gemma2", "gemma3", "gemma-embedding")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    converted: Tensors = {}
    stacks: dict[str, list[NDArray[np.float32]]] = {}
    for name, values in sorted(tensors.items()):
        name = name.replace("language_model.", "")
        if any(part in name for part in ("vision", "audio", "projector")) or (tied and "lm_head" in name):
            continue
        if name.endswith("router.scale"):
            name = name.replace("router.scale", "router.proj.scale")
        elif name.endswith("per_expert_scale"):
            name = name.replace("router.per_expert_scale", "experts.down_proj.scale")
        elif "_Dense/linear" in name:
            name = f"dense_{name[0]}.weight"
        elif not name.endswith(".weight"):
            name += ".weight"
        name = name if name.startswith(("model.", "lm_head", "dense_")) else f"model.{name}"
        if ".altup_" in name:
            stack, _, _ = name.removesuffix(".weight").rpartition(".")
            stacks.setdefault(f"{stack}.weight", []).append(values)
            continue
        converted[_mapped(names, name)] = values + np.float32(adds_one and name.endswith("norm.weight"))
    converted |= {_mapped(names, name): np.stack(stack) for name, stack in stacks.items()}
    if family == "gemma4":
        rope = (text.get("rope_parameters") or {}).get("full_attention", {"partial_rotary_factor": 0.25})
        half = head_dims(text)[""] // 2
        turning = int(half * rope.get("partial_rotary_factor", 1.0))
        name = f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight"
        converted[name] = np.float32([1.0] * turning + [1e30] * (half - turning))
    return converted


def _mapped(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".scale"))
    assert found is not None, f"the package gguf has no name for the tensor {name}"
    return str(found)


def _add_common(writer: gguf.GGUFWriter, text: dict[str, Any], family: str) -> None:
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(kv_heads(text) if family == "gemma4" else text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    if family != "gemma4":
        writer.add_key_length(text["head_dim"])
        writer.add_value_length(text["head_dim"])
    if text.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(text["attn_logit_softcapping"])
    if text.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(text["final_logit_softcapping"])
    if family != "gemma":
        writer.add_sliding_window(text.get("sliding_window", 4096))
    scalar = text.get("query_pre_attn_scalar", text["head_dim"])
    if family in ("gemma2", "gemma3", "gemma-embedding") and scalar != text["head_dim"]:
        writer.add_attention_scale(scalar**-0.5)
    if family in ("gemma3n", "gemma4") or "layer_types" in text or "sliding_window_pattern" in text:
        writer.add_sliding_window_pattern(sliding_layers(text, family))


def _add_rotations(writer: gguf.GGUFWriter, text: dict[str, Any], family: str) -> None:
    parameters = text.get("rope_parameters") or {}
    one = parameters.get("full_attention", parameters)
    theta = one.get("rope_theta", text.get("rope_theta"))
    if theta is None and family not in ("gemma", "gemma2"):
        theta = 1e6
    if theta is not None:
        writer.add_rope_freq_base(theta)
    local = parameters.get("sliding_attention", {}).get("rope_theta", text.get("rope_local_base_freq"))
    if local is not None:
        writer.add_rope_freq_base_swa(local)
    scaling = text.get("rope_scaling") or one
    if "factor" in scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def _add_gemma3n(writer: gguf.GGUFWriter, text: dict[str, Any]) -> None:
    count = text["num_hidden_layers"]
    shares = text.get("activation_sparsity_pattern") or [0.0] * count
    writer.add_altup_active_idx(text.get("altup_active_idx", 0))
    writer.add_altup_num_inputs(text.get("altup_num_inputs", 4))
    writer.add_embedding_length_per_layer_input(text["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(text["num_kv_shared_layers"])
    writer.add_activation_sparsity_scale([NormalDist().inv_cdf(s) if s else -np.inf for s in shares])


def _add_gemma4(writer: gguf.GGUFWriter, text: dict[str, Any]) -> None:
    count, shared = text["num_hidden_layers"], text.get("num_kv_shared_layers", 0)
    dims = head_dims(text)
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(text.get("hidden_size_per_layer_input") or 0)
    writer.add_key_length(dims[""])
    writer.add_value_length(dims[""])
    writer.add_key_length_swa(dims["_swa"])
    writer.add_value_length_swa(dims["_swa"])
    writer.add_rope_dimension_count(dims[""])
    writer.add_rope_dimension_count_swa(dims["_swa"])
    if text.get("use_double_wide_mlp"):
        width = text["intermediate_size"]
        del writer.kv_data[0][gguf.Keys.LLM.FEED_FORWARD_LENGTH.format(arch=writer.arch)]
        writer.add_feed_forward_length([width * (1 + (i >= count - shared)) for i in range(count)])
    if text.get("enable_moe_block"):
        writer.add_expert_count(text["num_experts"])
        writer.add_expert_used_count(text["top_k_experts"])
        writer.add_expert_feed_forward_length(text["moe_intermediate_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    pieces = [chr(0x4E00 + i) for i in range(size - len(MARKERS))]
    kinds = [gguf.TokenType.CONTROL] * len(MARKERS) + [gguf.TokenType.NORMAL] * len(pieces)
    kinds[3] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*MARKERS, *pieces])
    writer.add_token_scores([0.0] * len(MARKERS) + [-float(i) for i in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{{ bos_token }}<start_of_turn>user")
