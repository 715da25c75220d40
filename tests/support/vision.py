"""Reads the golden folders with images, and writes them with vocabularies."""

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
from support.tokenizer_files import MARKERS, pieces_of, tokenizer_json, trained_model

FOLDERS = TESTS / "golden" / "vision"
VARIANTS = {variant.name: variant for variant in VISION_VARIANTS}


def golden(name: str) -> dict[str, Any]:
    return dict(load_file(FOLDERS / name / "golden.safetensors"))


def prompts_of(names: list[str]) -> list[tuple[str, int]]:
    return [(name, index) for name in names for index in range(len(VARIANTS[name].prompts))]


def levels_of(name: str, index: int) -> Any:
    """The input of the image tower for all images of a prompt. The images have the same size."""
    found = golden(name)
    count = sum(key.startswith(f"levels.{index}.") for key in found)
    return np.stack([found[f"levels.{index}.{i}"] for i in range(count)])


def images_of(name: str, index: int) -> list[Any]:
    found = golden(name)
    return [found[f"image.{index}.{i}"] for i in range(_count(VARIANTS[name].prompts[index]))]


def _count(prompt: VisionPrompt) -> int:
    return len(prompt.images) if prompt.frames is None else prompt.frames[0]


def pan_and_scan(variant: VisionVariant, index: int) -> dict[str, Any] | None:
    """The argument ``pan_and_scan`` with the options with which the golden results were made."""
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
    """Writes the golden Gemma 3 with a vocabulary that has the tokens of images."""
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
    _write_with_rows("gemma3", folder, {"embed_tokens": processor.get_piece_size()})
    return folder


def write_shieldgemma2(folder: Path) -> Path:
    """Writes the golden Gemma 3 with a vocabulary as a ShieldGemma 2. The config names this family, and the
    text "Yes" is token 7."""
    path = write_with_vocabulary(folder) / "config.json"
    verdicts = {"yes_token_index": 7, "no_token_index": 9}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "shieldgemma2"} | verdicts))
    return folder


GEMMA3N_MARKERS = ("<start_of_image>", "<start_of_audio>")
# The ids of these pieces follow the text pieces, and their embeddings are in separate tables.
GEMMA3N_IMAGE_PIECES = ("<end_of_image>", "<image_soft_token>", *[f"<image{i}>" for i in range(6)])
GEMMA3N_AUDIO_PIECES = ("<end_of_audio>", "<audio_soft_token>", *[f"<audio{i}>" for i in range(10)])


def write_gemma3n_with_vocabulary(folder: Path) -> Path:
    """Writes the golden Gemma 3n with a vocabulary that has the tokens of images and sound."""
    markers = (*MARKERS, *GEMMA3N_MARKERS)
    pieces, types, merges = pieces_of(trained_model(user_defined_symbols=markers), markers)
    first, more = len(pieces), (*GEMMA3N_IMAGE_PIECES, *GEMMA3N_AUDIO_PIECES)
    data = tokenizer_json([*pieces, *more], [*types, *[3] * len(more)], merges)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((FOLDERS / "gemma3n" / "config.json").read_text())
    audio = first + len(GEMMA3N_IMAGE_PIECES)
    config |= {"boi_token_id": pieces.index("<start_of_image>"), "eoi_token_id": first}
    config |= {"boa_token_id": pieces.index("<start_of_audio>"), "eoa_token_id": audio}
    config |= {"image_token_id": first + 1, "audio_token_id": audio + 1}
    config["vision_config"]["vocab_offset"] = first
    config["audio_config"]["vocab_offset"] = audio
    config["text_config"] |= {"vocab_size": first + len(more), "vocab_size_per_layer_input": first}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(FOLDERS / "gemma3n" / "preprocessor_config.json", folder)
    rows = {"embed_tokens": first + len(more), "embed_tokens_per_layer": first}
    _write_with_rows("gemma3n", folder, rows)
    return folder


def _write_with_rows(name: str, folder: Path, rows: dict[str, int]) -> None:
    """Writes the weights of a golden folder. The tables named in ``rows`` get this many random rows
    instead."""
    blob = (FOLDERS / name / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8:start]), b""
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = blob[start + begin : start + end]
        table = tensor.removesuffix(".weight").rpartition(".")[2]
        if table in rows:
            entry["shape"][0], entry["dtype"] = rows[table], "F32"
            random = np.random.default_rng(3).standard_normal(entry["shape"])
            values = (0.2 * random).astype(np.float32).tobytes()
        entry["data_offsets"] = [len(data), len(data) + len(values)]
        data += values
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


GEMMA4_MARKERS = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>", "<|tool>", "<tool|>"),
    *("<|image>", "<image|>", "<|image|>", "<|video|>"),
)


def write_gemma4_with_vocabulary(folder: Path) -> Path:
    """Writes the golden Gemma 4 with a vocabulary that has the tokens of chats, images and videos."""
    vocabulary = trained_model(user_defined_symbols=(*MARKERS, *GEMMA4_MARKERS))
    processor = SentencePieceProcessor(model_proto=vocabulary)
    config = json.loads((FOLDERS / "gemma4-small" / "config.json").read_text())
    for name, piece in zip(("boi", "eoi", "image", "video"), GEMMA4_MARKERS[-4:], strict=True):
        config[f"{name}_token_id"] = processor.piece_to_id(piece)
    rows = processor.get_piece_size()
    config["text_config"] |= {"vocab_size": rows, "vocab_size_per_layer_input": rows}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(vocabulary)
    shutil.copy(FOLDERS / "gemma4-small" / "processor_config.json", folder)
    _write_with_rows("gemma4-small", folder, {"embed_tokens": rows, "embed_tokens_per_layer": rows})
    return folder
