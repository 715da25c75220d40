"""All readers of files in gemlet, as functions of the file's bytes.

Each function takes any bytes and may raise only :class:`gemlet.GemletError`. If it accepts a file, it uses
the contents as gemlet does. READERS has the functions by name, with good files to start from."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

import gemlet
from fuzz import media
from fuzz.mutate import mutate_json, mutate_safetensors
from gemlet.adapters.opening import open_adapter
from gemlet.checkpoint.gguf_format import read_gguf
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config import parse_config, read_config, read_end_ids, read_sampling
from gemlet.config.sentence_transformers import read_dense_layers, read_prompts
from gemlet.loading.inspect import inspect
from gemlet.tokenizer import Tokenizer
from gemlet.tokenizer import stored as _stored_vocabulary
from gemlet.tokenizer.files import read_vocabulary
from gemlet.weights.gguf_names import gguf_name
from gemlet.weights.hf_names import tensor_name
from gemlet.weights.slots import expected_slots
from golden.variants_embedding import EMBEDDINGGEMMA2
from support.adapter_forms import gguf_adapter
from support.gguf_models import convert_tensors, metadata, typed, write_gguf
from support.tiny_models import CONFIGS, SIZES, safetensors_bytes, weights_of
from support.tokenizer_files import tokenizer_json as make_tokenizer_json
from support.tokenizer_files import trained_gguf, trained_merges, trained_model, trained_pieces

DEMO = Path(gemlet.__file__).parent / "demo"
ENOUGH = 1 << 16  # the reader uses at most so many bytes of a tensor, or so many tokens


@dataclass(frozen=True)
class Reader:
    """``run`` may raise only GemletError. ``seeds`` returns good files. ``mutate`` changes more than single
    bytes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes] | None = None


@cache
def _folder() -> Path:
    """A folder in memory if possible, because a fuzzer writes it ten thousand times a second."""
    shared = "/dev/shm"
    folder = tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _file(name: str) -> tuple[Path, int]:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    return path, os.open(path, os.O_WRONLY | os.O_CREAT)


def _write(name: str, data: bytes) -> Path:
    """Writes ``data`` into a file that stays open. This takes half the time of a new file."""
    path, descriptor = _file(name)
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))
    return path


def _read_tensors(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if info.nbytes <= ENOUGH:
                checkpoint.read(name)


def safetensors(data: bytes) -> None:
    _read_tensors(_write("single/model.safetensors", data).parent)


def index(data: bytes) -> None:
    folder = _write("sharded/model.safetensors.index.json", data).parent
    if not (folder / "a.safetensors").exists():
        (folder / "a.safetensors").write_bytes(safetensors_bytes(_few_weights()))
    _read_tensors(folder)


def config(data: bytes) -> None:
    folder = _write("config/config.json", data).parent
    read = read_config(folder)
    read_end_ids(folder, read)
    if read.vocab_size * read.hidden_size < 1 << 40 and read.num_layers < 100:
        read.to_core(weights="q4")


def generation_config(data: bytes) -> None:
    folder = _write("sampling/generation_config.json", data).parent
    gemlet.GenerationConfig(**read_sampling(folder))


def modules(data: bytes) -> None:
    """Puts each file of sentence-transformers into a folder with good other files."""
    folder = _folder() / "modules"
    config = parse_config(CONFIGS["gemma3_text"] | {"use_bidirectional_attention": True}, where="config.json")
    failed = []
    for name in MODULES:
        for other, content in MODULES.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(data if other == name else json.dumps(content).encode())
        try:
            read_prompts(str(folder))
            read_dense_layers(str(folder), config)
        except gemlet.GemletError as error:
            failed.append(error)
    if len(failed) == len(MODULES):
        raise failed[0]


def whole_folder(data: bytes) -> None:
    """config.json in a folder with the weights of another model. Differences are found before a weight is
    read."""
    folder = _write("whole/config.json", data).parent
    if not (folder / "model.safetensors").exists():
        weights = weights_of(CONFIGS["gemma3n_text"])
        (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
    str(inspect(folder, weights="q4", max_memory="8GB"))


def tokenizer_json(data: bytes) -> None:
    # The next file must not be read together with this one.
    _use(Tokenizer.from_file(_write("other.json", data)))


def tokenizer_model(data: bytes) -> None:
    _use(Tokenizer.from_file(_write("tokenizer.model", data)))


def _any_digest() -> AbstractContextManager[object]:
    """Accepts any digest, so that a changed tokenizer is read to its end."""
    return patch.object(_stored_vocabulary, "_digest", lambda described, tensors: "0" * 64)


def tokenizer_stored(data: bytes) -> None:
    with _any_digest():
        tokenizer = Tokenizer.from_file(_write(_stored_vocabulary.STORED_FILE, data))
    _use(tokenizer)


def gguf(data: bytes) -> None:
    path = _write("model.gguf", data)
    read_gguf(path)
    _use(Tokenizer.from_file(path))


def gguf_model(data: bytes) -> None:
    path = _write("whole.gguf", data)
    str(inspect(path, max_memory="8GB"))
    with gemlet.load(path, weights="q4", threads=1, max_context=1) as model:
        model.logits([2])


MODULES: dict[str, Any] = {
    "modules.json": [
        {"path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
        for path in ("", "1_Pooling", "2_Dense", "3_Normalize")
    ],
    "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": True},
    "2_Dense/config.json": {
        "in_features": SIZES["hidden_size"],
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    },
}
MLX = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}


@cache
def _factors() -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Slot -> A and B, for some matrices of the tiny Gemma."""
    shapes = expected_slots(parse_config(CONFIGS["gemma"], where="config.json"))
    return {
        slot: (np.ones((2, *cols), np.float32), np.ones((rows, 2), np.float32))
        for slot, (rows, *cols) in shapes.items()
        if slot.endswith(("q_proj", "down_proj"))
    }


@cache
def _adapter_tensors() -> bytes:
    tensors = {}
    for slot, (a, b) in _factors().items():
        at = "base_model.model." + tensor_name(slot, "gemma", "model.", "").removesuffix("weight")
        tensors |= {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b}
    return safetensors_bytes(tensors)


@cache
def _mlx_tensors() -> bytes:
    tensors = {}
    for slot, (a, b) in _factors().items():
        at = tensor_name(slot, "gemma", "model.", "").removesuffix("weight")
        tensors |= {f"{at}lora_a": np.ascontiguousarray(a.T), f"{at}lora_b": np.ascontiguousarray(b.T)}
    return safetensors_bytes(tensors)


def _gguf_adapters() -> list[bytes]:
    tensors = {}
    for slot, pair in _factors().items():
        tensors |= {f"{gguf_name(slot)}.lora_{factor}": t for factor, t in zip("ab", pair, strict=True)}
    return [gguf_adapter(tensors, 4.0)]


def _use_adapter(path: Path) -> None:
    model = parse_config(CONFIGS["gemma"], where="config.json")
    shapes = expected_slots(model)
    shapes["lm_head"] = shapes["embed_tokens"]
    with open_adapter(path, model) as files:
        for slot in {*files.terms.low_rank, *files.terms.own_rows}:
            row = np.ones((1, shapes[slot][1]), np.float32), "f32"
            list(files.change_rows(slot, lambda row=row: iter([row])))  # type: ignore[misc]


def _read_adapter(config: bytes, tensors: bytes) -> None:
    folder = _write("adapter/adapter_config.json", config).parent
    _write("adapter/adapter_model.safetensors", tensors)
    _use_adapter(folder)


def adapter_config(data: bytes) -> None:
    _read_adapter(data, _adapter_tensors())


def adapter(data: bytes) -> None:
    _read_adapter(json.dumps(ADAPTER).encode(), data)


def _read_mlx(config: bytes, tensors: bytes) -> None:
    folder = _write("mlx/adapter_config.json", config).parent
    _write("mlx/adapters.safetensors", tensors)
    _use_adapter(folder)


def adapter_mlx(data: bytes) -> None:
    _read_mlx(json.dumps(MLX).encode(), data)


def adapter_mlx_config(data: bytes) -> None:
    _read_mlx(data, _mlx_tensors())


def adapter_gguf(data: bytes) -> None:
    _use_adapter(_write("adapter.gguf", data))


def _adapter_configs() -> list[bytes]:
    patterns = {"rank_pattern": {r"layers\.\d+\.mlp": 2}, "alpha_pattern": {"q_proj": 2}, "use_rslora": True}
    regex = {
        "target_modules": r".*\.(q|down)_proj",
        "exclude_modules": ["lm_head"],
        "layers_to_transform": [0, 1, 2],
    }
    ends = {"modules_to_save": [], "trainable_token_indices": None, "use_dora": False}
    return [json.dumps({**ADAPTER, **more}).encode() for more in ({}, patterns, regex, ends)]


def _use(tokenizer: Tokenizer) -> None:
    for text in ("The door opened.", "<start_of_turn>é\u2581 \U0001f600\n\n  x", "\0a"):
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
    tokenizer.decode(range(min(tokenizer.vocab_size, 300)))


def _configs() -> list[bytes]:
    seeds = [json.dumps(config).encode() for config in (*CONFIGS.values(), EMBEDDINGGEMMA2)]
    return [*seeds, (DEMO / "config.json").read_bytes()]


def _safetensors() -> list[bytes]:
    small = {
        "a": np.ones((2, 3), np.float32),
        "b": np.arange(4, dtype=np.float16),
        "c": np.zeros(0, np.float32),
    }
    return [safetensors_bytes(small), safetensors_bytes({}), safetensors_bytes(_few_weights())]


def _indices() -> list[bytes]:
    return [
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(_few_weights(), "a.safetensors")}).encode()
    ]


@cache
def _few_weights() -> dict[str, np.ndarray]:
    """A model with few weights; only names and shapes matter."""
    return {name: values for name, values in weights_of(CONFIGS["gemma"]).items() if values.nbytes < 1000}


def _tokenizer_jsons() -> list[bytes]:
    pieces, _, types = trained_pieces()
    return [json.dumps(make_tokenizer_json(pieces, types, trained_merges())).encode()]


def _stored_tokenizers() -> list[bytes]:
    path = _folder() / "seed.safetensors"
    seeds = []
    for data in (trained_model(), _tokenizer_jsons()[0]):
        name = "other.json" if data[:1] == b"{" else "tokenizer.model"
        with _any_digest():
            _stored_vocabulary.write_stored(path, read_vocabulary(_write(name, data)))
        seeds.append(path.read_bytes())
    return seeds


def _gguf_models() -> list[bytes]:
    path = _folder() / "seed.gguf"
    seeds = []
    for config in CONFIGS.values():
        tensors = typed(convert_tensors(config, weights_of(config)), "Q4_0")
        seeds.append(write_gguf(path, metadata(config), tensors).read_bytes())
    return seeds


READERS = {
    "safetensors": Reader(safetensors, _safetensors, mutate=mutate_safetensors),
    "index": Reader(index, _indices, mutate=mutate_json),
    "config": Reader(config, _configs, mutate=mutate_json),
    "generation_config": Reader(
        generation_config, lambda: [(DEMO / "generation_config.json").read_bytes()], mutate=mutate_json
    ),
    "modules": Reader(
        modules, lambda: [json.dumps(content).encode() for content in MODULES.values()], mutate=mutate_json
    ),
    "whole_folder": Reader(
        whole_folder, lambda: [json.dumps(CONFIGS["gemma3n_text"] | SIZES).encode()], mutate=mutate_json
    ),
    "tokenizer_json": Reader(tokenizer_json, _tokenizer_jsons, mutate=mutate_json),
    "tokenizer_model": Reader(tokenizer_model, lambda: [trained_model()]),
    "tokenizer_stored": Reader(tokenizer_stored, _stored_tokenizers, mutate=mutate_safetensors),
    "adapter": Reader(adapter, lambda: [_adapter_tensors()], mutate=mutate_safetensors),
    "adapter_config": Reader(adapter_config, _adapter_configs, mutate=mutate_json),
    "adapter_mlx": Reader(adapter_mlx, lambda: [_mlx_tensors()], mutate=mutate_safetensors),
    "adapter_mlx_config": Reader(adapter_mlx_config, lambda: [json.dumps(MLX).encode()], mutate=mutate_json),
    "adapter_gguf": Reader(adapter_gguf, _gguf_adapters),
    "gguf": Reader(gguf, lambda: [trained_gguf()]),
    "gguf_model": Reader(gguf_model, _gguf_models),
    "media": Reader(media.media, media.calls, mutate=mutate_json),
    "preprocessor": Reader(media.preprocessor, media.settings_files, mutate=mutate_json),
    "image": Reader(media.image, media.image_files),
    "sound": Reader(media.sound, media.sound_files),
    "video": Reader(media.video, media.video_files),
    "senses": Reader(media.senses, media.numbers, mutate=media.other_numbers),
}
# The extra that a reader needs.
EXTRAS = {"image": "vision", "sound": "audio", "video": "video"}
