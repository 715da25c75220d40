"""MTP drafters in GGUF and in packed folders give the same draft tokens as the folder from which they
were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import gemlet
from gemlet.errors import ConfigError, GemletError, TensorError, UnsupportedError
from golden.variants_gemma4 import DRAFTERS
from support.gguf_models import convert_folder, convert_tensors, metadata, typed, write_gguf
from support.inside import core_of, drafter_of, testing
from support.paths import TESTS
from support.tokenizer_files import STRING, U32, gguf_entry

GOLDEN = TESTS / "golden"
NAMES = [one.name for one in DRAFTERS]
TARGET = GOLDEN / "gemma4-e2b"


def gguf_of(name: str, path: Path, *, centroids: bool = True, **changes: Any) -> Path:
    """The file as llama.cpp's converter writes it, without the centroids, or the same file with them."""
    folder = GOLDEN / "drafters" / name
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    written = typed(convert_tensors(config, tensors), "F32")
    if centroids and config.get("use_ordered_embeddings"):
        config["num_centroids"] = len(tensors["masked_embedding.centroids.weight"])
        written["masked_embd_centroids.weight"] = ("F32", tensors["masked_embedding.centroids.weight"])
        written["masked_embd_ordering"] = ("I64", tensors["masked_embedding.token_ordering"].reshape(-1))
    return write_gguf(path, metadata(config, **changes), written)


def check_drafts(name: str, drafter: Path) -> None:
    golden = load_file(GOLDEN / "drafters" / name / "golden.safetensors")
    with gemlet.load(TARGET, threads=1, weights="f32", drafter=drafter) as model:
        for i in range(4):
            known, drafts, logits = (golden[f"{kind}.{i}"] for kind in ("known", "drafts", "logits"))
            ids, found = testing.assistant_logits(
                core_of(model), drafter_of(model), known.tolist(), len(drafts)
            )
            assert ids == drafts.tolist()
            np.testing.assert_allclose(found, logits, atol=2e-4 * np.abs(logits).max())


@pytest.mark.parametrize("name", NAMES)
def test_packed_folders(name: str, tmp_path: Path) -> None:
    gemlet.convert(GOLDEN / "drafters" / name, tmp_path / "packed", weights="f32", threads=1)
    check_drafts(name, tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="drafter="):
        gemlet.load(tmp_path / "packed")


@pytest.mark.parametrize("name", ["e2b-plain"])
def test_gguf_files_and_what_is_packed_of_them(name: str, tmp_path: Path) -> None:
    path = gguf_of(name, tmp_path / "mtp-model.gguf")
    check_drafts(name, path)
    check_drafts(name, tmp_path)  # the folder in which it lies
    gemlet.convert(path, tmp_path / "packed", weights="f32", threads=1)
    check_drafts(name, tmp_path / "packed")


def test_a_folder_given_as_drafter_means_its_drafting_file(tmp_path: Path) -> None:
    convert_folder(TARGET, tmp_path / "model.gguf")
    gguf_of("e2b-plain", tmp_path / "mtp-model.gguf")
    with gemlet.load(tmp_path, drafter=tmp_path, threads=1) as model:
        assert drafter_of(model).config.target_size == 36
        assert core_of(model).config.target_size == 0
    assert gemlet.inspect(tmp_path).config.target_size == 0
    assert gemlet.inspect(tmp_path, drafter=tmp_path).problem is None
    gemlet.convert(tmp_path, tmp_path / "packed", threads=1)
    assert gemlet.inspect(tmp_path / "packed").config.target_size == 0


@pytest.mark.parametrize("centroids", [True, False])
def test_texts_are_the_same_with_and_without_the_centroids(centroids: bool, tmp_path: Path) -> None:
    """llama.cpp's files of E2B and E4B have no centroids, so all of the head is computed."""
    path = gguf_of("e2b", tmp_path / "mtp.gguf", centroids=centroids)
    asked: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "seed": 4}
    with gemlet.load(TARGET, threads=1) as plain, gemlet.load(TARGET, threads=1, drafter=path) as model:
        assert (drafter_of(model).config.centroids > 0) == centroids
        assert model.generate([5, 6], **asked).token_ids == plain.generate([5, 6], **asked).token_ids


@pytest.mark.parametrize("form", ["folder", "gguf", "packed"])
def test_inspect_describes_one(form: str, tmp_path: Path) -> None:
    drafter = GOLDEN / "drafters" / "e2b"
    if form == "gguf":
        drafter = gguf_of("e2b", tmp_path / "mtp.gguf")
    elif form == "packed":
        gemlet.convert(drafter, tmp_path / "packed", weights="q8", threads=1)
        drafter = tmp_path / "packed"
    found = gemlet.inspect(drafter)
    assert found.config.target_size == 36
    assert found.problem is not None
    assert "drafter=" in found.problem
    assert "hidden size 36" in str(found)
    assert "keys and values of the last such layer of the model" in str(found)
    assert found.plan.kv_cache == 0
    assert gemlet.inspect(TARGET, drafter=drafter).problem is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embedding_length_out": None}, ConfigError, "embedding_length_out is missing"),
        ({"embedding_length_out": (U32, 40)}, TensorError, "nextn.pre_projection"),
        ({"nextn_predict_layers": (U32, 1)}, ConfigError, "nextn_predict_layers"),
        ({"mystery": (U32, 3)}, ConfigError, "mystery"),
    ],
)
def test_gguf_files_that_cannot_be(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = gguf_of("e2b-plain", tmp_path / "mtp.gguf", **changes)
    with pytest.raises(error, match=message):
        gemlet.load(TARGET, drafter=path)


def test_the_first_form_of_llama_cpp_is_refused(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "mtp.gguf", [gguf_entry("general.architecture", STRING, "gemma4_assistant")], {}
    )
    with pytest.raises(GemletError, match="gemma4-assistant"):
        gemlet.load(TARGET, drafter=path)


def test_a_packed_folder_whose_order_is_damaged(tmp_path: Path) -> None:
    gemlet.convert(GOLDEN / "drafters" / "e2b", tmp_path / "packed", weights="f32", threads=1)
    path = tmp_path / "packed" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = (7).to_bytes(4, "little")  # the order comes last
    path.write_bytes(bytes(data))
    with pytest.raises(TensorError, match="token_order"):
        gemlet.load(TARGET, drafter=tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["use_ordered_embeddings"] = False
    shutil.copytree(tmp_path / "packed", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(TensorError, match="unexpected tensor"):
        gemlet.load(TARGET, drafter=tmp_path / "other")
