"""Batches of texts to embed, and the files of sentence-transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from golden.folders import HERE

pytestmark = pytest.mark.tier

FOLDER = HERE / "embeddinggemma"


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(FOLDER, threads=1, max_context=32) as loaded:
        yield loaded


GOOD = [[2, 17, 5, 1], [2, 80, 1]]
LONG, EMPTY = [7] * 40, list[int]()


def test_every_wrong_text_is_named_and_none_is_computed(model: gemlet.Model) -> None:
    with pytest.raises(gemlet.ContextLengthError, match=r"^texts\[1\]: 40 tokens, but the context holds 32"):
        model.embed([GOOD[0], LONG, GOOD[1]])
    with pytest.raises(gemlet.ContextLengthError, match=r"texts\[1\].*; 2 texts are wrong, .* 1, 3$"):
        model.embed([GOOD[0], LONG, GOOD[1], LONG])
    with pytest.raises(
        gemlet.InvalidRequestError, match=r"texts\[0\].*; 3 texts are wrong, .* 0, 1, 3$"
    ) as caught:
        model.embed([EMPTY, LONG, GOOD[0], [999_999]])
    assert caught.value.indices == (0, 1, 3)
    with pytest.raises(gemlet.InvalidRequestError, match=r"100 texts are wrong, .*, 31, \.\.\.$"):
        model.embed([EMPTY] * 100)


@pytest.mark.parametrize("texts", [b"text", {"a": 1}, {"a", "b"}, 3])
def test_values_that_are_not_lists_of_texts_are_refused(model: gemlet.Model, texts: Any) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match="expected a string or a list of strings"):
        model.embed(texts)


@pytest.mark.parametrize("text", [None, 3, b"text"])
def test_values_that_are_not_texts_are_refused(model: gemlet.Model, text: Any) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=r"texts\[1\]: got .*, expected a text or a list of"):
        model.embed([GOOD[0], text])


def test_long_texts_are_cut_if_the_caller_says_so(model: gemlet.Model) -> None:
    found = model.embed([GOOD[0], LONG, GOOD[1]], truncate=True)
    np.testing.assert_array_equal(found, model.embed([GOOD[0], LONG[:32], GOOD[1]]))


def test_empty_texts_are_zero_if_the_caller_says_so(model: gemlet.Model) -> None:
    found = model.embed([EMPTY, GOOD[0], EMPTY, GOOD[1]], empty="zero")
    assert not found[[0, 2]].any()
    np.testing.assert_array_equal(found[[1, 3]], model.embed(GOOD))
    assert not model.embed([EMPTY], empty="zero").any()


@pytest.mark.parametrize(("name", "value"), [("truncate", 1), ("empty", "skip")])
def test_wrong_arguments_are_named(model: gemlet.Model, name: str, value: Any) -> None:
    with pytest.raises(gemlet.InvalidRequestError, match=f"^{name}: got"):
        model.embed(GOOD, **{name: value})


# --- the files of sentence-transformers ---------------------------------------------------------------------


def changed(folder: Path, name: str, **values: Any) -> Path:
    shutil.copytree(FOLDER, folder)
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values))
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("2_Dense/config.json", "use_residual", True),
        ("2_Dense/config.json", "module_input_name", "token_embeddings"),
        ("3_Dense/config.json", "module_output_name", "other"),
        ("sentence_bert_config.json", "do_lower_case", True),
        ("sentence_bert_config.json", "max_seq_length", 0),
    ],
)
def test_settings_that_would_change_the_vectors_are_refused(
    tmp_path: Path, file: str, key: str, value: Any
) -> None:
    with pytest.raises(gemlet.ConfigError, match=f"{key} is"):
        gemlet.load(changed(tmp_path / "a", file, **{key: value}))


def test_an_unknown_key_of_a_dense_layer_is_refused_unless_it_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(gemlet.ConfigError, match="unknown key 'gate'"):
        gemlet.load(changed(tmp_path / "a", "2_Dense/config.json", gate=1))
    gemlet.load(changed(tmp_path / "b", "2_Dense/config.json", gate=None)).close()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("2_Dense/config.json", {"use_residual": False, "module_input_name": "sentence_embedding"}),
        ("2_Dense/config.json", {"use_residual": None, "module_input_name": None}),
        ("sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False}),
        ("sentence_bert_config.json", {"max_seq_length": 10**30}),
        ("2_Dense/config.json", {"bias": None}),
    ],
)
def test_settings_that_change_nothing_are_accepted(
    tmp_path: Path, file: str, values: dict[str, Any], model: gemlet.Model
) -> None:
    with gemlet.load(changed(tmp_path / "a", file, **values), threads=1, max_context=32) as loaded:
        np.testing.assert_array_equal(loaded.embed(GOOD), model.embed(GOOD))


def test_texts_are_no_longer_than_the_folder_says(tmp_path: Path, model: gemlet.Model) -> None:
    folder = changed(tmp_path / "a", "sentence_bert_config.json", max_seq_length=16)
    gemlet.convert(folder, tmp_path / "packed", weights="f32")
    for path in (folder, tmp_path / "packed"):
        with gemlet.load(path, threads=1) as loaded:
            assert loaded.context_length == 16
            with pytest.raises(gemlet.ContextLengthError, match="17 tokens"):
                loaded.embed([[7] * 17])


def test_vectors_are_not_divided_where_no_module_does_it(tmp_path: Path, model: gemlet.Model) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "a")
    modules = json.loads((folder / "modules.json").read_text())
    assert modules[-1]["type"].endswith("Normalize")
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with gemlet.load(folder, threads=1, max_context=32) as loaded:
        raw = loaded.embed(GOOD)
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(length - 1).max() > 0.01
    np.testing.assert_allclose(raw / length, model.embed(GOOD), atol=1e-6)


def test_a_null_prompt_is_no_prompt(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "q: ", "plain": None}, "default_prompt_name": None}
    folder = changed(tmp_path / "a", "config_sentence_transformers.json", **prompts)
    with gemlet.load(folder, threads=1) as loaded:
        assert loaded.prompts["plain"] == ""
