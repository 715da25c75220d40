"""Models written by the ``gguf`` package. gemlet computes the same as the official implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.checkpoint.gguf_format import TENSOR_TYPES, GGUFFile, read_gguf
from gemlet.sources.gguf_keys import _DRAFTER, _MODEL_TYPES
from gemlet.sources.gguf_metadata import _IGNORED, Metadata
from gemlet.weights.gguf_names import _LAYER, _MODEL, ROPE_FREQS
from golden.folders import ALL_NAMES, EMBEDDING_NAMES, HERE, TOLERANCE, read_golden, tap_errors
from support.extras import optional
from support.gguf_models import NUMBERS, TYPES, convert_folder, decode, read_folder
from support.gguf_package import write_with_package
from support.inside import taps_of

pytestmark = [pytest.mark.tier, pytest.mark.extra("test")]
gguf = optional("gguf")

# GGUF has no architecture for VaultGemma.
NAMES = [name for name in (*ALL_NAMES, *EMBEDDING_NAMES) if name != "vaultgemma"]
OF_DRAFTERS = {
    "nextn.pre_projection",
    "nextn.post_projection",
    "masked_embd_centroids",
}  # unknown to the package
NEWER = {_DRAFTER, "gemma-embedding2"}  # architectures that the package does not know
SCALES = {"ffn_gate_inp.scale", "ffn_down_exps.scale"}  # these names of Gemma 4 do not end in "weight"

DENSE = ("dense_2", "dense_3")


def write(name: str, path: Path) -> Path:
    return write_with_package(*read_folder(HERE / name), path)


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_agrees_with_the_golden(tmp_path: Path, name: str) -> None:
    golden = read_golden(name)
    with gemlet.load(write(name, tmp_path / "model.gguf"), threads=1) as model:
        assert model.weights == "f32"
        errors = tap_errors(golden, taps_of(model, golden["ids"]))
        if name in EMBEDDING_NAMES:
            embedding = model.embed([golden["ids"].tolist()])[0]
            errors["embedding"] = np.abs(embedding - golden["embedding"]).max()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < TOLERANCE, f"{worst}: {errors[worst]:.1e}"


def test_these_models_have_every_architecture(tmp_path: Path) -> None:
    written = {read_gguf(write(name, tmp_path / name)).get("general.architecture", str) for name in NAMES}
    assert written | NEWER == set(_MODEL_TYPES)


def directory(file: GGUFFile) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tensor.shape, tensor.type) for name, tensor in file.tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_gguf_models_writes_the_same_files(tmp_path: Path, name: str) -> None:
    """support/gguf_models.py writes files byte by byte, so that other tests can damage them."""
    package = read_gguf(write(name, tmp_path / "package.gguf"))
    own = read_gguf(convert_folder(HERE / name, tmp_path / "own.gguf"))
    assert directory(own) == directory(package)
    of_tokenizer = {"bos_token_id": None, "pad_token_id": None, "eos_token_ids": ()}
    found = [gemlet.inspect(file.path).as_dict()["config"] | of_tokenizer for file in (own, package)]
    assert found[0] == found[1]


def test_tensor_names_are_those_of_the_package() -> None:
    known = {name.replace(".{bid}", "") for name in gguf.TENSOR_NAMES.values()}
    known |= {name.removeprefix("blk.") for name in known}
    assert {*_MODEL.values(), *_LAYER.values()} - SCALES - OF_DRAFTERS <= known
    assert {name.removesuffix(".scale") for name in SCALES} <= known
    read = {*_MODEL.values(), *(f"blk.{{bid}}.{name}" for name in _LAYER.values())}
    read.add(ROPE_FREQS.removesuffix(".weight"))
    for architecture in _MODEL_TYPES.keys() - NEWER:
        number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        assert {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[number]} <= read, architecture


def test_keys_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys that gemlet looks for, in any architecture, except the names in Ollama's files."""
    looked_for = set(_IGNORED)
    plain = Metadata.get

    def get(self: Metadata, key: str, default: Any = None) -> Any:
        looked_for.add(key)
        return plain(self, key, default)

    monkeypatch.setattr(Metadata, "get", get)
    for name in NAMES:
        gemlet.inspect(write(name, tmp_path / "model.gguf"))
    groups = [group for group in vars(gguf.Keys).values() if isinstance(group, type)]
    keys = [key for group in groups for key in vars(group).values() if isinstance(key, str)]
    known = {key.removeprefix("{arch}.").replace("{dense}", d) for key in keys for d in DENSE}
    rotations = {"rope.global.freq_base", "rope.local.freq_base", "rope.freq_base_local"}
    assert looked_for - known == rotations | {"head_dim", "altup.correct_scale", "altup.lr_multiplier"}


def test_types_and_sizes_of_blocks_are_those_of_the_package() -> None:
    for number, (name, values, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (values, size))
    assert NUMBERS.keys() == {name for name, _, _ in TENSOR_TYPES.values()}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_models_writes_the_blocks_of_the_package(kind: str) -> None:
    values = np.random.default_rng(0).normal(0, 1, (64, 256)).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    for blocks in (TYPES[kind][1](values), gguf.quantize(values, number)):
        np.testing.assert_array_equal(decode(kind, blocks), gguf.dequantize(blocks, number))


def test_tables_padded_for_images_and_audio(tmp_path: Path) -> None:
    """Later converters pad the tables of Gemma 3n to the same number of rows."""
    config, tensors = read_folder(HERE / "gemma3n-e4b")
    padded = {
        name: np.pad(values, ((0, 9), (0, 0))) if "embed_tokens" in name else values
        for name, values in tensors.items()
    }
    paths = [
        write_with_package(
            config | {"vocab_size": config["vocab_size"] + more}, values, tmp_path / f"{more}.gguf"
        )
        for more, values in ((0, tensors), (9, padded))
    ]
    ids = [2, 17, 5, 80, 33, 9, 41, 7]
    logits = []
    for path in paths:
        with gemlet.load(path, threads=1) as model:
            logits.append(model.logits(ids))
    np.testing.assert_array_equal(logits[1][:, : config["vocab_size"]], logits[0])


@pytest.mark.parametrize("version", [3, 2])
def test_a_model_in_parts(tmp_path: Path, version: int) -> None:
    golden = read_golden("gemma3-1b")
    write_with_package(*read_folder(HERE / "gemma3-1b"), tmp_path / "model.gguf", split_max_tensors=40)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    for part in parts:
        data = part.read_bytes()
        part.write_bytes(data[:4] + version.to_bytes(4, "little") + data[8:])
    with gemlet.load(tmp_path, threads=1) as model:
        assert model.end_ids == {1, 5}
        assert model.chat_format is not None
        assert model.tokenizer is not None
        assert model.tokenizer.encode("\u4e02\u4e03") == [2, 8, 9]
        errors = tap_errors(golden, taps_of(model, golden["ids"]))
    assert max(errors.values()) < TOLERANCE
