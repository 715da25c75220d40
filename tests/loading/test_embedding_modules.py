"""The files of sentence-transformers that say what an embedding model computes after its layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import gemlet
from golden.folders import HERE

FOLDER = HERE / "embeddinggemma"


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
        ({}, "holds a JSON dict; expected a list"),
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
