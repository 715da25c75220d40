"""Makes GGUF models that several tests read: models of every family, with every block type, and split
models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golden.folders import HERE, read_tensors
from support.gguf_models import Tensors, Typed, convert_tensors, metadata, typed, write_gguf
from support.tiny_models import CONFIGS, weights_of
from support.tokenizer_files import I32, gguf_entry

BLOCKS = read_tensors(HERE / "blocks.safetensors")
BLOCK_TYPES = [name.removesuffix(".blocks") for name in BLOCKS if name.endswith(".blocks")]
# The configuration of one model of every family. The rows of a matrix consist of whole blocks if this is so
# in the published model.
BLOCKED: dict[str, dict[str, Any]] = {
    "gemma": CONFIGS["gemma"],
    "gemma2": CONFIGS["gemma2"],
    "gemma3_text": CONFIGS["gemma3_text"],
    "gemma3n_text": CONFIGS["gemma3n_text"] | {"hidden_size_per_layer_input": 32, "laurel_rank": 32},
    "gemma4_text": CONFIGS["gemma4_text"] | {"hidden_size_per_layer_input": 32},
    "gemma4_experts": CONFIGS["gemma4_experts"] | {"moe_intermediate_size": 32},
}


def model_of(family: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration of a model and its tensors, with GGUF's names."""
    return BLOCKED[family], convert_tensors(BLOCKED[family], weights_of(BLOCKED[family]))


def tensors_of(family: str = "gemma3_text", kind: str = "F32") -> Typed:
    return typed(convert_tensors(CONFIGS[family], weights_of(CONFIGS[family])), kind)


def split(folder: Path, parts: int = 3, more: Sequence[bytes] = (), **changes: int | None) -> list[Path]:
    """Writes a Gemma 3 in ``parts`` files, as llama.cpp's tool for splitting does. ``changes`` replace keys
    of the last part, and ``more`` are further entries of the last part."""
    tensors = tensors_of()
    names = sorted(tensors)
    paths = []
    for number in range(parts):
        keys: dict[str, tuple[int, int]] = {
            "split.no": (2, number),
            "split.count": (2, parts),
            "split.tensors.count": (I32, len(names)),
        }
        if number == parts - 1:
            for key, value in changes.items():
                keys.pop(key.replace("_", "."))
                if value is not None:
                    keys[key.replace("_", ".")] = (I32, value)
        entries = [gguf_entry(key, *value) for key, value in keys.items()]
        entries += metadata(CONFIGS["gemma3_text"]) if number == 0 else []
        entries += more if number == parts - 1 else []
        path = folder / f"model-{number + 1:05}-of-{parts:05}.gguf"
        paths.append(write_gguf(path, entries, {name: tensors[name] for name in names[number::parts]}))
    return paths
