"""Reads the golden EmbeddingGemma 2, and writes its folder with a vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor

from golden.folders import read_tensors
from golden.variants_embedding import EMBEDDINGGEMMA2_PROMPTS
from support.paths import TESTS
from support.tokenizer_files import MARKERS, trained_model

FOLDER = TESTS / "golden" / "embeddinggemma2"
PROMPTS = range(len(EMBEDDINGGEMMA2_PROMPTS))
_IDS = {"boi_token_id": "<|image>", "image_token_id": "<|image|>", "eoi_token_id": "<image|>"}
_IDS |= {"boa_token_id": "<|audio>", "audio_token_id": "<|audio|>", "eoa_token_index": "<audio|>"}
_IDS |= {"video_token_id": "<|video|>"}


def golden() -> dict[str, NDArray[Any]]:
    return read_tensors(FOLDER / "golden.safetensors")


def media_of(found: dict[str, NDArray[Any]], index: int) -> dict[str, list[list[Any]]]:
    """The images, videos and sounds of prompt number ``index``, as keyword arguments."""

    def named(kind: str) -> list[NDArray[Any]]:
        return [found[key] for key in sorted(found) if key.startswith(f"{kind}.{index}.")]

    video = EMBEDDINGGEMMA2_PROMPTS[index].video
    videos = [] if video is None else [(named("frame"), video[3])]
    return {"images": [named("image")], "videos": [videos], "audio": [named("wave")]}


def write_with_vocabulary(folder: Path) -> Path:
    """Writes the golden folder with a vocabulary that has the tokens of images and sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = trained_model(user_defined_symbols=(*MARKERS, *_IDS.values()))
    pieces = SentencePieceProcessor(model_proto=vocabulary)
    config = json.loads((FOLDER / "config.json").read_text())
    config |= {name: pieces.piece_to_id(piece) for name, piece in _IDS.items()}
    config["text_config"]["vocab_size"] = pieces.get_piece_size()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(vocabulary)
    for name in ("processor_config.json", "modules.json", "config_sentence_transformers.json"):
        shutil.copy(FOLDER / name, folder)
    random = np.random.default_rng(3)
    tensors = widened(FOLDER / "model.safetensors")
    table = "language_model.embed_tokens.weight"
    shape = (pieces.get_piece_size(), tensors[table].shape[1])
    save_file(
        tensors | {table: random.normal(0, 0.2, shape).astype(np.float32)}, folder / "model.safetensors"
    )
    return folder


def widened(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a bfloat16 file, converted to float32."""
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    found = {}
    for name, entry in json.loads(blob[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            bits = np.frombuffer(blob[start + begin : start + end], "<u2").astype("<u4") << 16
            found[name] = bits.view("<f4").reshape(entry["shape"])
    return found
