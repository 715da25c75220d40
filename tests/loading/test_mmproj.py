"""GGUF models with the mmproj files of llama.cpp see and hear the same as the Hugging Face folders from which
they were made."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.errors import ConfigError, GemletError, InvalidRequestError, ModelFileError, TensorError
from gemlet.weights.cuts import Rearranged
from support import audio, vision
from support.extras import optional
from support.gguf_models import (
    TYPES,
    convert_tensors,
    decode,
    metadata,
    q8_0,
    read_folder,
    typed,
    write_gguf,
)
from support.mmproj import tokenizer_entries, tower_tensors, write_mmproj, write_model
from support.tokenizer_files import ARRAY, BOOL, F32, STRING, U32

FOLDERS = {
    name: vision.FOLDERS / name
    for name in ("gemma3", "gemma3-resaved", "gemma3n", "gemma4-small", "gemma4-large", "gemma4-unified")
} | {f"audio-{name}": audio.FOLDERS / name for name in ("gemma3n", "gemma4", "gemma4-unified")}


# Values that such a file cannot store; every published model has these.
PUBLISHED = {
    "gemma3n": {"conf_attention_chunk_size": 12, "conf_attention_context_left": 13},
    "gemma4": {"attention_chunk_size": 12, "attention_context_left": 13},
}


def folder_of(name: str, made: Path) -> Path:
    """The golden folder. Values that such a file cannot store are as in published models."""
    config = json.loads((FOLDERS[name] / "config.json").read_text())
    changed = PUBLISHED.get(config["model_type"], {}) if config.get("audio_config") else {}
    if not changed:
        return FOLDERS[name]
    config["audio_config"] |= changed
    config.pop("audio_soft_tokens_per_image", None)
    shutil.copytree(FOLDERS[name], made, dirs_exist_ok=True)
    (made / "config.json").write_text(json.dumps(config))
    return made


def logits(model: gemlet.Model, name: str) -> NDArray[np.float32]:
    """The results of a golden prompt with its image or sounds, with as many placeholders as the model
    wants."""
    if not name.startswith("audio-"):
        budget = None if name.startswith("gemma3") else 70
        images = vision.images_of(name, 0)
        return model.logits(vision.golden(name)["ids.0"], images=images, image_tokens=budget)
    found, waves = audio.golden(name[6:])["ids.0"].tolist(), audio.waves(name[6:], 0)
    place = model.config.audio.token_id
    if model.config.audio.places:
        at = found.index(place)
        found = [*found[:at], *[place] * model.config.audio.places, *[i for i in found[at:] if i != place]]
    return model.logits(found, audio=waves)


def write(name: str, folder: Path, **arguments: Any) -> Path:
    write_mmproj(FOLDERS[name], folder / "mmproj-tiny-f32.gguf", **arguments)
    return write_model(FOLDERS[name], folder / "tiny-f32.gguf")


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_gguf_file_gives_the_logits_of_its_folder(name: str, tmp_path: Path) -> None:
    with gemlet.load(folder_of(name, tmp_path / "folder"), weights="f32", threads=2) as model:
        expected, towers = logits(model, name), model.config.towers
    with gemlet.load(write(name, tmp_path), threads=2) as model:
        assert model.config.towers == towers
        # The file has the softplus of one vector, which is rounded.
        assert difference(logits(model, name), expected) <= (2e-5 if name == "audio-gemma4" else 0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize(
    "name", ["gemma3", "gemma3n", "gemma4-small", "gemma4-unified", "audio-gemma3n", "audio-gemma4"]
)
def test_types_of_values(name: str, kind: str, tmp_path: Path) -> None:
    """The file gives the same results as a file in F32 with the rounded values."""
    rounded = {
        tensor: decoded(kind, values)
        for tensor, (stored, values) in typed(tower_tensors(*read_folder(FOLDERS[name])), kind).items()
        if stored == kind
    }
    with gemlet.load(write(name, tmp_path, tensors=rounded), weights="f32", threads=2) as model:
        expected = logits(model, name)
    with gemlet.load(write(name, tmp_path, kind=kind), weights="f32", threads=2) as model:
        assert difference(logits(model, name), expected) == 0
    assert rounded or (kind == "Q8_0" and "gemma3n" not in name)


def decoded(kind: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if kind == "Q8_0":
        return decode(kind, q8_0(values))
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    bits = (
        np.frombuffer(TYPES[kind][1](np.ascontiguousarray(values)).tobytes(), "<u2").astype(np.uint32) << 16
    )
    return bits.view(np.float32).reshape(values.shape)


def test_blocks_of_values_are_rearranged() -> None:
    values = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)
    rows = q8_0(values)
    ((made, dtype),) = Rearranged.transposed((6, 64)).apply(
        iter([(rows[:4], "q8_0"), (rows[4:], "q8_0")]), ()
    )
    np.testing.assert_array_equal(made, decode("Q8_0", rows).T)
    assert dtype == "f32"


def test_early_files_name_the_matrices_of_mlps_the_other_way_round(tmp_path: Path) -> None:
    with gemlet.load(write("gemma3", tmp_path), threads=2) as model:
        expected = logits(model, "gemma3")
    tensors = tower_tensors(*read_folder(FOLDERS["gemma3"]))
    swapped: dict[str, Any] = {name: None for name in tensors if ".ffn_" in name}
    for name in [*swapped]:
        other = name.replace("_up", "_x").replace("_down", "_up").replace("_x", "_down")
        swapped[other] = tensors[name]
    with gemlet.load(write("gemma3", tmp_path, tensors=swapped), threads=2) as model:
        np.testing.assert_array_equal(logits(model, "gemma3"), expected)


def test_an_unused_token_stands_for_images_if_there_is_no_other(tmp_path: Path) -> None:
    """Gemma 3's files in GGUF end before the row of the token that stands for an image."""
    config, tensors = read_folder(FOLDERS["gemma3"])
    config |= {"image_token_index": 262144}
    tensors = {n: t[:140] if "embed_tokens" in n else t for n, t in tensors.items()}
    config["text_config"]["vocab_size"], config["boi_token_index"], config["eoi_token_index"] = 140, 137, 138
    pieces = {133: ("<unused7>", 1)}
    entries = [*metadata(config), *tokenizer_entries(config, pieces)]
    path = write_gguf(tmp_path / "model.gguf", entries, typed(convert_tensors(config, tensors), "F32"))
    write_mmproj(FOLDERS["gemma3"], tmp_path / "mmproj.gguf")
    image = vision.images_of("gemma3", 0)[0]
    with gemlet.load(path, threads=1) as model:
        assert model.config.vision.token_id == 133
        soft = model.logits([2, 137, *[133] * 16, 138], images=[image])
        assert np.isfinite(soft).all()
        assert 133 in model.config.placeholder_ids


def test_the_matching_mmproj_file_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_model(FOLDERS["gemma3"], tmp_path / "tiny-it-f32.gguf")
    # This file is for another model.
    write_mmproj(FOLDERS["gemma4-small"], tmp_path / "mmproj-tiny-it-bf16.gguf")
    with gemlet.load(path, threads=1) as model:
        assert model.config.towers == frozenset()
        with pytest.raises(gemlet.UnsupportedError):
            logits(model, "gemma3")
    ours = write_mmproj(FOLDERS["gemma3"], tmp_path / "mmproj-F16.gguf")
    with gemlet.load(path, threads=1) as model:
        assert model.config.towers == {"vision"}
    for options in ({"vision": False}, {"mmproj": False}, {"vision": False, "audio": False}):
        with gemlet.load(path, threads=1, **options) as model:
            assert model.config.towers == frozenset()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ours.rename(elsewhere / "towers.bin")
    for where in (elsewhere / "towers.bin", str(elsewhere / "towers.bin")):
        with gemlet.load(path, threads=1, mmproj=where) as model:
            assert np.isfinite(logits(model, "gemma3")).all()


def test_several_files_that_could_be_meant(tmp_path: Path) -> None:
    path = write("gemma3", tmp_path)
    for name in ("mmproj-one-f32.gguf", "mmproj-two-f32.gguf"):
        shutil.copy(tmp_path / "mmproj-tiny-f32.gguf", tmp_path / name)
    gemlet.load(path, threads=1).close()  # the file with the name of the model is used
    (tmp_path / "mmproj-tiny-f32.gguf").unlink()
    with pytest.raises(InvalidRequestError, match="mmproj-one-f32"):
        gemlet.load(path, threads=1)


def test_files_for_other_models_are_refused_where_they_are_named(tmp_path: Path) -> None:
    path = write_model(FOLDERS["gemma3"], tmp_path / "model.gguf")
    other = write_mmproj(FOLDERS["gemma4-small"], tmp_path / "other.gguf")
    with pytest.raises(ConfigError, match="gemma4v, but the model is gemma3"):
        gemlet.load(path, mmproj=other)
    with pytest.raises(ConfigError, match="does not belong to"):
        gemlet.load(path, mmproj=shutil.copy(path, tmp_path / "again.gguf"))
    narrow = {"mm.input_projection.weight": np.ones((36, 41), np.float32)}
    write_mmproj(FOLDERS["gemma3"], other, tensors=narrow)
    with pytest.raises(ConfigError, match="41 numbers, but the model's tokens have 40"):
        gemlet.load(path, mmproj=other)
    with pytest.raises(InvalidRequestError, match="is not a GGUF file"):
        gemlet.load(FOLDERS["gemma3"], mmproj=other)
    with pytest.raises(InvalidRequestError, match="mmproj"):
        gemlet.load(path, mmproj=5)  # type: ignore[arg-type]


def test_a_tower_without_all_of_its_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, lacking in (("gemma3", "v.post_ln.bias"), ("audio-gemma4", "a.blk.1.attn_k.weight")):
        path = write(name, tmp_path, tensors={lacking: None})
        with gemlet.load(path, threads=1) as model:  # it loads as a text model
            assert model.config.towers == frozenset()
        assert lacking in caplog.text
        with pytest.raises(TensorError, match=lacking):
            gemlet.load(path, mmproj=tmp_path / "mmproj-tiny-f32.gguf")


def test_tensors_that_gemlet_does_not_know_are_refused(tmp_path: Path) -> None:
    path = write("gemma3", tmp_path, tensors={"v.blk.0.ls1.weight": np.ones(36, np.float32)})
    with pytest.raises(TensorError, match=r"v\.blk\.0\.ls1\.weight.*mmproj=False"):
        gemlet.load(path)
    gemlet.load(path, mmproj=False, threads=1).close()


def test_a_packed_folder_keeps_the_towers(tmp_path: Path) -> None:
    for name in ("gemma3", "gemma4-unified", "audio-gemma3n"):
        folder = tmp_path / name
        folder.mkdir()
        path = write(name, folder, entries={"clip.vision.image_mean": (ARRAY, (F32, [0.4, 0.5, 0.6]))})
        gemlet.convert(path, folder / "packed", weights="bf16")
        with gemlet.load(path, weights="bf16", threads=2) as model:
            expected, settings = logits(model, name), model.config.vision and model.config.vision.settings
        with gemlet.load(folder / "packed", threads=2) as model:
            np.testing.assert_array_equal(logits(model, name), expected)
            assert settings is None or model.config.vision.settings == settings
        assert name != "gemma3" or settings.mean[2] == pytest.approx(0.6)
        with gemlet.load(path, weights="bf16", threads=2, cache=True) as model:
            np.testing.assert_array_equal(logits(model, name), expected)


def test_inspect_describes_the_towers(tmp_path: Path) -> None:
    path = write("gemma4-small", tmp_path)
    found = gemlet.inspect(path)
    assert found.config.towers == {"vision"}
    assert found.parameters > gemlet.inspect(path, vision=False).parameters


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("gemma3", {"clip.projector_type": None}),
    ("gemma3", {"clip.projector_type": (STRING, "idefics3")}),
    ("gemma3", {"clip.projector_type": (U32, 3)}),
    ("gemma3", {"clip.use_gelu": (BOOL, False)}),
    ("gemma3", {"clip.use_silu": (BOOL, True)}),
    ("gemma3", {"clip.vision.image_size": (U32, 0)}),
    ("gemma3", {"clip.vision.image_size": (U32, 4294967295)}),
    ("gemma3", {"clip.vision.image_size": (STRING, "896")}),
    ("gemma3", {"clip.vision.patch_size": (U32, 0)}),
    ("gemma3", {"clip.vision.block_count": None}),
    ("gemma3", {"clip.vision.block_count": (U32, 1 << 19)}),
    ("gemma3", {"clip.vision.attention.head_count": (U32, 7)}),
    ("gemma3", {"clip.vision.attention.layer_norm_epsilon": (F32, float("nan"))}),
    ("gemma3", {"clip.vision.projector.scale_factor": (U32, 1000)}),
    ("gemma3", {"clip.vision.image_mean": (ARRAY, (F32, [float("inf")] * 3))}),
    ("gemma3", {"clip.vision.image_std": (ARRAY, (F32, [0.0] * 3))}),
    ("gemma3", {"clip.vision.image_std": (ARRAY, (F32, [0.5] * 2))}),
    ("gemma4-small", {"clip.vision.attention.head_count": (U32, 1 << 18)}),
    ("gemma4-small", {"clip.vision.projector_type": (STRING, "gemma4uv")}),
    ("audio-gemma4", {"clip.audio.attention.head_count": (U32, 5)}),
    ("audio-gemma4", {"clip.audio.num_mel_bins": (U32, 1 << 30)}),
    ("audio-gemma4", {"clip.audio.projector_type": (STRING, "gemma3na")}),
    ("audio-gemma3n", {"clip.vision.projector_type": (STRING, "gemma4v")}),
]


@pytest.mark.parametrize(
    ("name", "entries"), WRONG, ids=[f"{n}-{next(iter(e))}-{i}" for i, (n, e) in enumerate(WRONG)]
)
def test_wrong_metadata_is_a_typed_error(name: str, entries: dict[str, Any], tmp_path: Path) -> None:
    path = write(name, tmp_path, entries=entries)
    with pytest.raises((ConfigError, ModelFileError, TensorError)):
        gemlet.load(path, mmproj=tmp_path / "mmproj-tiny-f32.gguf", threads=1)


@pytest.mark.parametrize(
    "name", ["gemma3", "gemma4-small", "gemma4-unified", "audio-gemma3n", "audio-gemma4"]
)
def test_damaged_files_are_typed_errors(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path)
    mmproj = tmp_path / "mmproj-tiny-f32.gguf"
    whole = mmproj.read_bytes()
    mmproj.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ModelFileError, match="mmproj=False"):
        gemlet.load(path)
    mmproj.unlink()
    random = np.random.default_rng(5)
    head = whole.index(b"v.patch_embd" if b"v.patch_embd" in whole else b"a.blk.0") + 6000
    broken = tmp_path / "broken.gguf"
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, min(head, len(whole)), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        broken.write_bytes(damaged)
        with contextlib.suppress(GemletError):
            gemlet.inspect(path, mmproj=broken)


def test_a_value_that_is_not_finite(tmp_path: Path) -> None:
    tensors = {"a.blk.0.per_dim_scale.weight": np.zeros(12, np.float32)}
    path = write("audio-gemma4", tmp_path, tensors=tensors)
    with pytest.raises(TensorError, match="per_dim_scale"):
        gemlet.load(path, threads=1)


def test_names_are_those_of_the_package() -> None:
    gguf = optional("gguf")
    known = {name.replace(".{bid}", "") for name in gguf.TENSOR_NAMES.values()}
    for name, folder in FOLDERS.items():
        for tensor in tower_tensors(*read_folder(folder)):
            plain = re.sub(r"\.\d+(?=\.)|\.(weight|bias|(in|out)put_(min|max))$", "", tensor)
            plain = re.sub(r"\.(weight|bias)$", "", plain)
            if name == "gemma3n" and plain.startswith("v.blk."):
                continue  # only the converter uses these names
            # The package on PyPI is older than this model.
            assert plain in known or (name == "gemma4-unified" and plain == "v.patch_norm"), tensor
