"""Reads the golden folders with sound, and makes WAV files and a model folder from them."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import gemlet
from gemlet import _core
from golden.folders import read_tensors
from golden.variants_audio import AUDIO_VARIANTS
from support.inside import core_of
from support.paths import TESTS
from support.tokenizer_files import gemma4_json

BEGIN, PLACE, END = 256000, 258881, 258883
IDS = {"audio_token_id": PLACE, "boa_token_id": BEGIN, "boi_token_id": 255999, "eoa_token_index": END}
IDS |= {"eoi_token_id": 258882, "image_token_id": 258880, "video_token_id": 258884}

FOLDERS = TESTS / "golden" / "audio"
VARIANTS = {variant.name: variant for variant in AUDIO_VARIANTS}
PROMPTS = [(name, index) for name, variant in VARIANTS.items() for index in range(len(variant.prompts))]


def golden(name: str) -> dict[str, NDArray[Any]]:
    return read_tensors(FOLDERS / name / "golden.safetensors")


def waves(name: str, index: int) -> list[NDArray[np.float32]]:
    found = golden(name)
    return [found[f"wave.{index}.{i}"] for i in range(len(VARIANTS[name].prompts[index]))]


def encoder_of(model: gemlet.Model) -> _core.Conformer:
    audio = model.config.audio
    assert audio is not None
    assert audio.encoder is not None
    assert audio.settings is not None
    return _core.Conformer(core_of(model), audio.encoder.to_core(audio.settings.bins))


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, relative to the largest expected magnitude."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def write_with_vocabulary(folder: Path) -> Path:
    """Writes Gemma 4's golden checkpoint with the vocabulary of the real model. The embedding tables repeat
    the rows of the golden tables, so that they are large enough."""
    config = json.loads((FOLDERS / "gemma4" / "config.json").read_text()) | IDS
    config["text_config"] |= {"vocab_size": 262144, "vocab_size_per_layer_input": 262144}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    tensors: dict[str, NDArray[Any]] = dict(read_tensors(FOLDERS / "gemma4" / "model.safetensors"))
    for name, tensor in tensors.items():
        if "embed_tokens" in name:
            tensors[name] = np.resize(tensor, (262144, tensor.shape[1]))
    save_file(tensors, folder / "model.safetensors")
    return folder


def wav(samples: NDArray[np.float32], rate: int = 16000) -> bytes:
    """A WAV file with 16 bits for each sample."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()
