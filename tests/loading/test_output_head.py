"""The output head and the embedding table: the tensors decide whether they are one matrix.

Merges by several tools leave ``lm_head.weight`` in the file with flags that contradict it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import gemlet
from gemlet.errors import TensorError
from support.gguf_cases import model_of
from support.gguf_models import metadata, typed, write_gguf
from support.tiny_models import CONFIGS, weights_of

pytestmark = pytest.mark.tier

IDS = [2, 17, 5, 80, 33]
CONFIG = CONFIGS["gemma3_text"]
Tensors = dict[str, NDArray[Any]]
# The place of the flag: (outer, inner); None means absent.
FLAGS = [
    (None, None),
    (True, None),
    (None, True),
    (True, True),
    (False, None),
    (None, False),
    (False, True),
    (True, False),
]
LAYOUTS = {
    "single": ("model.", "lm_head.weight"),
    "published": ("language_model.model.", "language_model.lm_head.weight"),
    "saved": ("model.language_model.", "lm_head.weight"),
}


def write(folder: Path, layout: str, flags: tuple[Any, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    outer, inner = ({} if flag is None else {"tie_word_embeddings": flag} for flag in flags)
    text = CONFIG | inner
    config = (
        CONFIG | (outer or inner)
        if layout == "single"
        else {"model_type": "gemma3", "text_config": text} | outer
    )
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    with gemlet.load(folder, threads=1, **options) as model:
        return model.logits(IDS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flags", FLAGS)
def test_the_tensors_decide_whether_the_head_is_tied(
    tmp_path: Path, layout: str, flags: tuple[Any, Any]
) -> None:
    prefix, head = LAYOUTS[layout]
    tensors = dict(weights_of(CONFIG, prefix))
    table = tensors[f"{prefix}embed_tokens.weight"]
    other = np.random.default_rng(3).normal(0, 0.05, table.shape).astype(np.float32)
    tied = logits(write(tmp_path / "alone", layout, flags, tensors))
    np.testing.assert_array_equal(
        logits(write(tmp_path / "copy", layout, flags, tensors | {head: table})), tied
    )
    untied = write(tmp_path / "other", layout, flags, tensors | {head: other})
    assert not np.allclose(logits(untied), tied)
    hidden = logits(write(tmp_path / "clear", layout, (None, False), tensors | {head: other}))
    np.testing.assert_array_equal(logits(untied), hidden)
    only = {name: values for name, values in tensors.items() if "embed_tokens" not in name} | {head: table}
    np.testing.assert_array_equal(logits(write(tmp_path / "only", layout, flags, only)), tied)
    with pytest.raises(TensorError, match=f"'{head}' has shape"):
        gemlet.load(write(tmp_path / "wrong", layout, flags, tensors | {head: table[:-1]}))


def test_a_copy_in_another_type_is_the_same_matrix(tmp_path: Path) -> None:
    tensors = dict(weights_of(CONFIG, "model."))
    table = tensors["model.embed_tokens.weight"].astype(np.float16)
    exact = tensors | {"model.embed_tokens.weight": table.astype(np.float32)}
    tied = logits(write(tmp_path / "alone", "single", (None, None), exact), weights="f32")
    copy = write(tmp_path / "copy", "single", (False, False), exact | {"lm_head.weight": table})
    np.testing.assert_array_equal(logits(copy, weights="f32"), tied)
    found = gemlet.inspect(copy)
    assert found.config.tie_word_embeddings
    assert found.passed_over == ("tie_word_embeddings",)


def test_a_packed_folder_keeps_a_separate_output_matrix(tmp_path: Path) -> None:
    tensors = dict(weights_of(CONFIG, "model."))
    other = np.random.default_rng(3).normal(0, 0.05, tensors["model.embed_tokens.weight"].shape)
    for name, head in (("copy", tensors["model.embed_tokens.weight"]), ("other", other.astype(np.float32))):
        for flag in (True, False):
            folder = write(
                tmp_path / f"{name}{flag}", "single", (flag, flag), tensors | {"lm_head.weight": head}
            )
            packed = tmp_path / f"packed-{name}{flag}"
            gemlet.convert(folder, packed, weights="q8")
            np.testing.assert_array_equal(logits(packed), logits(folder, weights="q8"))


@pytest.mark.parametrize("family", ["gemma2", "gemma3n_text", "gemma4_text"])
def test_the_head_of_a_gguf_file(tmp_path: Path, family: str) -> None:
    """If a file has ``output.weight``, it is the head. GGUF has no key that says whether it does."""
    config, tensors = model_of(family)
    table = tensors["token_embd.weight"]
    heads = {"none": None, "equal": table.copy(), "other": table[::-1].copy()}
    found = {}
    for name, head in heads.items():
        own = {} if head is None else {"output.weight": head}
        path = write_gguf(tmp_path / f"{name}.gguf", metadata(config), typed(tensors | own, "F32"))
        found[name] = logits(path, weights="f32")
    assert np.array_equal(found["equal"], found["none"])
    np.testing.assert_allclose(found["other"], found["none"][:, ::-1], rtol=1e-5, atol=1e-6)
    for wrong, said in (
        ({"output.weight": table[1:]}, r"output\.weight.* has shape"),
        ({}, "token_embd.* is missing"),
    ):
        kept = tensors | wrong if wrong else {n: t for n, t in tensors.items() if n != "token_embd.weight"}
        path = write_gguf(tmp_path / "wrong.gguf", metadata(config), typed(kept, "F32"))
        with pytest.raises(TensorError, match=said):
            gemlet.load(path)
