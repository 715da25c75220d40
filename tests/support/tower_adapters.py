"""Reads the golden adapters that change image or audio towers, and the prompts and media of their
checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from golden.folders import HERE, read_tensors
from support import audio, vision

FOLDERS = HERE / "tower_adapters"
EMBEDDING = "embeddinggemma2"  # the golden results of this checkpoint are vectors instead of logits
_ALL = sorted(folder.name for folder in FOLDERS.iterdir())
NAMES = [name for name in _ALL if not name.startswith(EMBEDDING)]
EMBEDDING_NAMES = [name for name in _ALL if name.startswith(EMBEDDING)]


def base_of(name: str) -> Path:
    config = json.loads((FOLDERS / name / "adapter_config.json").read_text())
    return HERE / str(config["base_model_name_or_path"])


def logits_of(name: str) -> Any:
    return read_tensors(FOLDERS / name / "golden.safetensors")["logits"]


def plain_logits_of(name: str) -> Any:
    """The logits of the checkpoint without an adapter."""
    return read_tensors(base_of(name) / "golden.safetensors")[f"logits.{prompt_of(name)}"]


def inputs_of(name: str) -> tuple[list[int], dict[str, Any]]:
    """The ids of the prompt, and the images and sounds of the prompt as keyword arguments."""
    base, index = base_of(name), prompt_of(name)
    golden = read_tensors(base / "golden.safetensors")
    ids = golden[f"ids.{index}"].tolist()
    if base.parent.name == "audio":
        return ids, {"audio": audio.waves(base.name, index)}
    media: dict[str, Any] = {"images": vision.images_of(base.name, index)}
    sounds = vision.VARIANTS[base.name].prompts[index].sounds
    if sounds:
        media["audio"] = [golden[f"wave.{index}.{i}"] for i in range(len(sounds))]
    return ids, media


def embedding_of(name: str) -> Any:
    return read_tensors(FOLDERS / name / "golden.safetensors")["embedding"]


def prompt_of(name: str) -> int:
    return int(read_tensors(FOLDERS / name / "golden.safetensors")["prompt"][0])
