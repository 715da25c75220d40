"""EmbeddingGemma 2 as llama.cpp's converter writes it: the text in one file, and the towers in another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.errors import ConfigError, UnsupportedError
from support import vision
from support.embedding import FOLDER, PROMPTS, golden, media_of
from support.gguf_models import convert_folder
from support.mmproj import write_mmproj, write_model
from support.tokenizer_files import ARRAY, BOOL, F32, U32

GOLDEN = golden()
HEARS = [index for index in PROMPTS if media_of(GOLDEN, index)["audio"][0]]


def vector(model: gemlet.Model, index: int) -> NDArray[np.float32]:
    """The embedding of a golden prompt with its images and sounds."""
    ids = GOLDEN[f"ids.{index}"].tolist()
    return model.embed([ids], **media_of(GOLDEN, index), image_tokens=70)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden folder. Values that an mmproj file cannot store are as in the published model."""
    made = tmp_path_factory.mktemp("embeddinggemma2") / "folder"
    shutil.copytree(FOLDER, made)
    config = json.loads((made / "config.json").read_text())
    config["audio_config"] |= {"attention_chunk_size": 12, "attention_context_left": 13}
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_a_gguf_file_gives_the_vectors_of_its_folder(folder: Path, tmp_path: Path) -> None:
    with gemlet.load(folder, weights="f32", threads=2) as model:
        expected = [vector(model, index) for index in PROMPTS]
        layers = model.config.layers
    write_mmproj(FOLDER, tmp_path / "mmproj-tiny-f32.gguf")
    with gemlet.load(write_model(FOLDER, tmp_path / "tiny-f32.gguf"), weights="f32", threads=2) as model:
        assert model.config.layers == layers
        assert model.config.towers
        for index in PROMPTS:
            # The file has the softplus of one vector, which is rounded.
            bound = 1e-4 if index in HEARS else 0
            assert np.abs(vector(model, index) - expected[index]).max() <= bound, index
        assert model.embed(["\u4e00\u4e01"]).shape == (1, 40)


def test_a_file_without_towers_embeds_texts(tmp_path: Path) -> None:
    path = convert_folder(FOLDER, tmp_path / "tiny.gguf")
    with gemlet.load(path, weights="f32", threads=2) as model:
        assert np.abs(vector(model, 0) - GOLDEN["embedding.0"]).max() < 1e-5
        with pytest.raises(UnsupportedError, match="sees no images"):
            vector(model, 1)
        with pytest.raises(UnsupportedError, match="embed"):
            model.generate([2, 5])
    found = gemlet.inspect(path)
    assert found.config.family == "embeddinggemma2"
    assert found.problem is None


def test_a_gguf_model_with_towers_can_be_packed(tmp_path: Path) -> None:
    write_mmproj(FOLDER, tmp_path / "mmproj-tiny-f32.gguf")
    path = write_model(FOLDER, tmp_path / "tiny-f32.gguf")
    gemlet.convert(path, tmp_path / "packed", weights="f32")
    with (
        gemlet.load(path, weights="f32", threads=2) as model,
        gemlet.load(tmp_path / "packed", threads=2) as packed,
    ):
        for index in (0, 4):
            np.testing.assert_array_equal(vector(packed, index), vector(model, index))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"attention__sliding_window": (U32, 11)},
            ConfigError,
            "sliding_window is 11; expected an even number",
        ),
        ({"attention__causal": (BOOL, True)}, ConfigError, "attention.causal is True"),
        ({"attention__causal": None}, ConfigError, None),
        ({"pooling_type": (U32, 3)}, ConfigError, "pooling_type is 3"),
        ({"embedding_length_out": (U32, 41)}, ConfigError, "embedding_length_out is 41"),
        ({"embedding_length_per_layer_input": None}, ConfigError, "hidden_size_per_layer_input"),
        ({"attention__shared_kv_layers": (U32, 2)}, ConfigError, "shared_kv_layers is 2"),
        ({"rope__scaling__factor": (F32, 8.0)}, ConfigError, "factor"),
        ({"attention__head_count_kv": (ARRAY, (U32, [2, 2, 3, 2, 1]))}, ConfigError, "num_key_value_heads"),
    ],
)
def test_other_metadata(changes: Any, error: type[Exception], message: str | None, tmp_path: Path) -> None:
    path = convert_folder(FOLDER, tmp_path / "tiny.gguf", **changes)
    if message is None:  # converters may leave it out
        with gemlet.load(path, threads=2) as model:
            assert model.config.bidirectional
        return
    with pytest.raises(error, match=message):
        gemlet.load(path, threads=2)


def test_an_mmproj_of_another_model(tmp_path: Path) -> None:
    path = write_model(FOLDER, tmp_path / "tiny-f32.gguf")
    for name in ("gemma3", "gemma4-unified"):
        other = write_mmproj(vision.FOLDERS / name, tmp_path / f"{name}.gguf")
        with pytest.raises(ConfigError, match="does not belong to"):
            gemlet.load(path, threads=2, mmproj=str(other))
