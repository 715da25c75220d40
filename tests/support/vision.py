"""The golden folders with images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor

import gemlet
from golden.variants_vision import VISION_VARIANTS, VisionPrompt, VisionVariant
from support.inside import core_of
from support.paths import TESTS
from support.tokenizer_files import MARKERS, trained_model

FOLDERS = TESTS / "golden" / "vision"
VARIANTS = {variant.name: variant for variant in VISION_VARIANTS}


def golden(name: str) -> dict[str, Any]:
    return dict(load_file(FOLDERS / name / "golden.safetensors"))


def prompts_of(names: list[str]) -> list[tuple[str, int]]:
    return [(name, index) for name in names for index in range(len(VARIANTS[name].prompts))]


def levels_of(name: str, index: int) -> Any:
    """What the tower sees, of all images of a prompt, of one size."""
    found = golden(name)
    count = sum(key.startswith(f"levels.{index}.") for key in found)
    return np.stack([found[f"levels.{index}.{i}"] for i in range(count)])


def images_of(name: str, index: int) -> list[Any]:
    found = golden(name)
    return [found[f"image.{index}.{i}"] for i in range(_count(VARIANTS[name].prompts[index]))]


def _count(prompt: VisionPrompt) -> int:
    return len(prompt.images) if prompt.frames is None else prompt.frames[0]


def pan_and_scan(variant: VisionVariant, index: int) -> dict[str, Any] | None:
    """The argument for the options that the reference was given."""
    options = variant.prompts[index].options
    if not options.get("do_pan_and_scan"):
        return None
    begin = "pan_and_scan_"
    return {key.removeprefix(begin): value for key, value in options.items() if key.startswith(begin)}


def tower_of(model: gemlet.Model) -> Any:
    assert model.config.vision is not None
    return model.config.vision.tower(core_of(model))


IMAGE_MARKERS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def write_with_vocabulary(folder: Path) -> Path:
    """The golden Gemma 3 with a vocabulary that has the tokens of images."""
    options = {"user_defined_symbols": (*MARKERS, *IMAGE_MARKERS)}
    vocabulary = trained_model(**options)
    processor = SentencePieceProcessor(model_proto=vocabulary)
    begin, end, place = map(processor.piece_to_id, IMAGE_MARKERS)
    config = json.loads((FOLDERS / "gemma3" / "config.json").read_text())
    config |= {"boi_token_index": begin, "eoi_token_index": end, "image_token_index": place}
    config["text_config"]["vocab_size"] = processor.get_piece_size()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(vocabulary)
    shutil.copy(FOLDERS / "gemma3" / "preprocessor_config.json", folder)
    blob = (FOLDERS / "gemma3" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8:start]), b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = blob[start + begin : start + end]
        if name.endswith("embed_tokens.weight"):
            entry["shape"][0], entry["dtype"] = processor.get_piece_size(), "F32"
            random = np.random.default_rng(3).standard_normal(entry["shape"])
            values = (0.2 * random).astype(np.float32).tobytes()
        entry["data_offsets"] = [len(data), len(data) + len(values)]
        data += values
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder
