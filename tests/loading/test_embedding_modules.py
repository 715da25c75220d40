"""The files of sentence-transformers that name the steps of an embedding model after its layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemlet
from golden.folders import HERE

FOLDER = HERE / "embeddinggemma"
SETTINGS, LIMITS = "config_sentence_transformers.json", "sentence_bert_config.json"


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "1_Pooling",
            {"pooling_mode_cls_token": True},
            r"pools by \['cls_token', 'mean_tokens'\]; expected the mean",
        ),
        ("1_Pooling", {"pooling_mode": "max"}, r"pools by \['max'\]"),
        ("1_Pooling", {"include_prompt": False}, "include_prompt is False"),
        ("2_Dense", {"bias": True}, "bias is True"),
        ("2_Dense", {"in_features": 47}, "in_features is 47; expected 48"),
        ("3_Dense", {"out_features": "40"}, "out_features is '40'"),
        (
            "3_Dense",
            {"activation_function": "torch.nn.modules.activation.Tanh"},
            "activation_function is '.*Tanh'",
        ),
        ("3_Dense", {"activation_function": "mine.Identity"}, "activation_function is 'mine.Identity'"),
    ],
)
def test_modules_that_gemlet_does_not_compute_are_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    change_json(folder / file / "config.json", **changes)
    with pytest.raises(gemlet.ConfigError, match=message):
        gemlet.load(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "contains a JSON dict; expected a list"),
        ([{"path": "", "type": 3}], "entry 0 is .*; expected an object with a type"),
        ([{"path": "../up", "type": "sentence_transformers.Transformer"}], "entry 0 is"),
        (
            [{"path": "", "type": "sentence_transformers.Transformer"}, {"path": "1_LSTM", "type": "a.LSTM"}],
            "'a.LSTM'.*; expected Transformer",
        ),
        (
            [
                {"path": "", "type": "sentence_transformers.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.Pooling"},
                {"path": "3_Dense", "type": "sentence_transformers.Dense"},
            ],
            "in '3_Dense'; expected 2_Dense",
        ),
        (
            [
                {"path": "", "type": "sentence_transformers.Transformer"},
                {"path": "1_Pooling", "type": "mine.Pooling"},
            ],
            "'mine.Pooling'.*; expected Transformer, Pooling",
        ),
        (
            [
                {"path": "1_Pooling", "type": "sentence_transformers.Transformer"},
                {"path": "", "type": "sentence_transformers.Pooling"},
            ],
            "puts the Transformer in '1_Pooling'; expected it in the folder itself",
        ),
    ],
)
def test_other_lists_of_modules_are_refused(tmp_path: Path, modules: Any, message: str) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(gemlet.ConfigError, match=message):
        gemlet.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_lower_case": True},
        {"max_seq_length": 0},
        {"transformer_task": "fill-mask"},
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        {"module_output_name": "sentence_embedding"},
    ],
)
def test_a_transformer_with_other_outputs_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    said = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
        "do_lower_case": False,
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(said))
    gemlet.inspect(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps(said | changes))
    with pytest.raises(gemlet.ConfigError, match=f"sentence_bert_config.json: {next(iter(changes))} is"):
        gemlet.inspect(folder)


def test_dense_files_are_checked(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    weights = folder / "2_Dense" / "model.safetensors"
    weights.write_bytes((folder / "3_Dense" / "model.safetensors").read_bytes())
    with pytest.raises(
        gemlet.TensorError, match=r"'2_Dense/linear.weight' has shape \[40, 88\]; expected \[88, 48\]"
    ):
        gemlet.load(folder)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(gemlet.ModelFileError, match=r"2_Dense.*cut short"):
        gemlet.load(folder)
    weights.unlink()
    with pytest.raises(gemlet.ModelFileError, match=r"2_Dense/model.safetensors: cannot be opened"):
        gemlet.load(folder)


def test_the_files_say_how_many_numbers_are_kept(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    ids = [[2, 5, 7, 1]]
    with gemlet.load(folder) as model:
        size = model.config.embedding_size
        expected = model.embed(ids, dimensions=6)
    save = folder / SETTINGS
    for kept, shape in ((6, 6), (size + 5, size), (None, size)):
        save.write_text(json.dumps({"truncate_dim": kept, "similarity_fn_name": "dot"}))
        gemlet.convert(folder, tmp_path / f"packed{kept}")
        for path in (folder, tmp_path / f"packed{kept}"):
            with gemlet.load(path) as model:
                found = model.embed(ids)
                assert found.shape == (1, shape)
                assert model.embed(ids, dimensions=size).shape == (1, size)
                assert abs(float(np.linalg.norm(found)) - 1) < 1e-5
                if kept == 6 and path == folder:
                    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            SETTINGS,
            {"model_type": "SparseEncoder"},
            "model_type is 'SparseEncoder'.*one vector",
        ),
        (SETTINGS, {"model_type": "CrossEncoder"}, "model_type is 'CrossEncoder'"),
        (SETTINGS, {"model_type": "ColBERT"}, "model_type is 'ColBERT'"),
        (SETTINGS, {"max_active_dims": 64}, "max_active_dims is 64.*sparse"),
        (SETTINGS, {"truncate_dim": 0}, "truncate_dim is 0"),
        (SETTINGS, {"truncate_dim": -5}, "truncate_dim is -5"),
        (SETTINGS, {"truncate_dim": "256"}, "truncate_dim is '256'"),
        (LIMITS, {"query_length": 32}, "query_length"),
        (LIMITS, {"query_expansion": {"a": 1}}, "query_expansion"),
        (LIMITS, {"processing_kwargs": {"text": {"max_length": 32}}}, "processing_kwargs"),
        (
            LIMITS,
            {"tokenizer_name_or_path": "a/b"},
            "tokenizer_name_or_path",
        ),
        (LIMITS, {"model_args": {"revision": "a"}}, "model_args"),
    ],
)
def test_keys_that_ask_for_something_else_are_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / file).write_text(json.dumps(changes))
    with pytest.raises(gemlet.ConfigError, match=message):
        gemlet.load(folder)


def test_keys_that_change_no_embedding_are_passed_over(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    about = {
        "__version__": {"pytorch": "2"},
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
    }
    (folder / SETTINGS).write_text(json.dumps({**about, "authors": "me", "max_active_dims": None}))
    plain = {"unpad_inputs": None, "query_length": None, "processing_kwargs": {}, "do_lower_case": False}
    loading = {"model_args": {"dtype": "bfloat16", "attn_implementation": "sdpa"}}
    (folder / LIMITS).write_text(json.dumps(plain | loading))
    assert "authors" in gemlet.inspect(folder).passed_over
    with gemlet.load(folder) as model, gemlet.load(FOLDER) as expected:
        np.testing.assert_array_equal(model.embed([[2, 5, 1]]), expected.embed([[2, 5, 1]]))
