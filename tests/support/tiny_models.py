"""Writes Hugging Face folders of a few kilobytes, byte by byte, for tests that load models."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gemlet
from gemlet.config import parse_config
from gemlet.weights.hf_names import tensor_name
from gemlet.weights.slots import expected_slots

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": {"model_type": "gemma", **SIZES},
    "gemma2": {"model_type": "gemma2", "sliding_window": 8, **SIZES},
    "gemma3_text": {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, **SIZES},
    "gemma3n_text": {
        "model_type": "gemma3n_text",
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 90,
        "laurel_rank": 4,
        **SIZES,
    },
    "gemma4_text": {
        "model_type": "gemma4_text",
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "global_head_dim": 48,
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        **SIZES,
    },
    "gemma4_experts": {
        "model_type": "gemma4_text",
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "global_head_dim": 48,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
        **SIZES,
    },
}


IDS = [2, 17, 5, 80, 33, 9, 41, 7, 64, 3, 3, 95]  # a prompt for these models


def logits_of(folder: Path, **arguments: Any) -> NDArray[np.float32]:
    """The logits that the model in a folder gives for ``IDS``."""
    with gemlet.load(folder, threads=1, **arguments) as model:
        return model.logits(IDS)


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the values, truncated to bfloat16. The rounding error does not matter for random
    weights."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def weights_of(config: Mapping[str, Any], prefix: str = "model.", seed: int = 0) -> dict[str, NDArray[Any]]:
    """Small random float32 weights under their Hugging Face names."""
    parsed = parse_config(config, where="config.json")
    random = np.random.default_rng(seed)
    head_prefix = prefix.removesuffix("model.") if prefix.startswith("language_model.") else ""
    return {
        tensor_name(slot, parsed.family, prefix, head_prefix): random.normal(0, 0.05, shape).astype(
            np.float32
        )
        for slot, shape in expected_slots(parsed).items()
    }


def safetensors_bytes(
    tensors: Mapping[str, NDArray[Any]], *, bf16: bool = False, metadata: object = None
) -> bytes:
    """The bytes of a valid safetensors file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    blobs = []
    end = 0
    for name, values in tensors.items():
        data = bf16_bits(values) if bf16 else values
        begin, end = end, end + data.nbytes
        dtype = (
            "BF16"
            if bf16
            else {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}[str(data.dtype)]
        )
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [begin, end]}
        blobs.append(data.tobytes())
    return with_header(header, b"".join(blobs))


def with_header(header: object, data: bytes) -> bytes:
    """A safetensors file with ``header`` and ``data``. A header of bytes is used unchanged, and any other
    header is converted to JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(folder: Path, data: bytes) -> Path:
    """Writes ``data`` as ``model.safetensors`` into an existing ``folder``."""
    (folder / "model.safetensors").write_bytes(data)
    return folder


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    bf16: bool = False,
) -> Path:
    """Writes ``config.json`` and ``model.safetensors`` into ``folder``, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    found = weights_of(config) if tensors is None else tensors
    (folder / "model.safetensors").write_bytes(safetensors_bytes(found, bf16=bf16))
    return folder


def write_text_embedder(folder: Path) -> Path:
    """Writes a random embedding model with the demo model's tokenizer and a context of 64 tokens."""
    demo = Path(gemlet.__file__).parent / "demo"
    vocab = json.loads((demo / "config.json").read_text())["vocab_size"]
    write_folder(folder, CONFIGS["gemma3_text"] | {"vocab_size": vocab, "use_bidirectional_attention": True})
    shutil.copyfile(demo / "tokenizer.model", folder / "tokenizer.model")
    return folder


def write_judge(folder: Path, template: str) -> Path:
    """Writes a random Gemma 2 with the demo model's tokenizer and this chat template."""
    demo = Path(gemlet.__file__).parent / "demo"
    vocab = json.loads((demo / "config.json").read_text())["vocab_size"]
    sizes = {"vocab_size": vocab, "max_position_embeddings": 1024}
    config = CONFIGS["gemma2"] | sizes
    # With larger weights, the answers for different texts differ more.
    tensors = {name: 8 * values for name, values in weights_of(config).items()}
    write_folder(folder, config, tensors=tensors)
    shutil.copyfile(demo / "tokenizer.model", folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def write_shards(folder: Path, shards: Mapping[str, Mapping[str, NDArray[Any]]]) -> Path:
    """Writes each shard into its own file, and a correct index. ``shards`` has the tensors of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        (folder / file).write_bytes(safetensors_bytes(tensors))
    write_index(folder, {name: file for file, tensors in shards.items() for name in tensors})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
