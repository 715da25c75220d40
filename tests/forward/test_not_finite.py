"""Weights that are finite, but too large: logits and embeddings that are not finite are errors, and no token
is chosen from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gemlet
from gemlet.errors import GemletError, TensorError
from support.tiny_models import CONFIGS, weights_of, write_folder

pytestmark = pytest.mark.tier

FAMILIES = ["gemma", "gemma3_text", "gemma3n_text", "gemma4_text"]
BAD = 17  # the token whose own row of the embedding is too large


def folder_with_a_bad_token(folder: Path) -> Path:
    config = CONFIGS["gemma3_text"] | {"max_position_embeddings": 512, "tie_word_embeddings": False}
    tensors = weights_of(config)
    tensors["model.embed_tokens.weight"][BAD] = 3e38
    return write_folder(folder, config, tensors=tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_logits_that_are_infinite_are_an_error(tmp_path: Path, family: str, weights: str) -> None:
    """The weights of the last norm make the logits overflow."""
    tensors = weights_of(CONFIGS[family])
    tensors["model.norm.weight"][:] = 3e38
    folder = write_folder(tmp_path / "model", CONFIGS[family], tensors=tensors)
    with gemlet.load(folder, weights=weights, threads=1) as model:
        with pytest.raises(TensorError, match=r"the logits after token 0 are not finite; the weights are"):
            model.logits([2, 7, 11])
        with pytest.raises(GemletError, match="the logits hold NaN or infinity"):
            model.generate([2, 7, 11], max_tokens=2)
        with pytest.raises(GemletError, match="the logits hold NaN or infinity"):
            model.generate([2, 7, 11], max_tokens=2, temperature=0)


@pytest.mark.parametrize("place", [0, 1, 127, 128, 299])
def test_the_error_names_the_first_token_whose_logits_are_not_finite(tmp_path: Path, place: int) -> None:
    ids = [3] * 300
    with gemlet.load(folder_with_a_bad_token(tmp_path), weights="f32", threads=1) as model:
        assert np.isfinite(model.logits(ids)).all()
        ids[place] = BAD
        with pytest.raises(TensorError, match=f"the logits after token {place} are not finite"):
            model.logits(ids)
        assert model.logits(ids[:place] or [3]).dtype == np.float32


def test_embeddings_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    config = CONFIGS["gemma3_text"] | {"use_bidirectional_attention": True}
    tensors = weights_of(config)
    tensors["model.embed_tokens.weight"][BAD] = 3e38
    folder = write_folder(tmp_path / "model", config, tensors=tensors)
    with gemlet.load(folder, weights="f32", threads=1) as model:
        assert np.isfinite(model.embed([[3, 4, 5]])).all()
        with pytest.raises(TensorError, match="an embedding is not finite; the weights are damaged"):
            model.embed([[3, 4, 5], [3, BAD, 5]])
