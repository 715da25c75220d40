"""From the texts that an embedding model reads to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.text import show_argument
from gemlet.config.sentence_transformers import Prompts
from gemlet.errors import InvalidRequestError, TensorError, UnsupportedError
from gemlet.model.resident import Resident
from gemlet.model.rows import rows_of

__all__ = ["checked_dimensions", "embed_all", "unit_vectors", "writes_no_text"]


def writes_no_text(prompts: Prompts | None, source: str) -> Prompts:
    """The prompts of an embedding model; raises :class:`UnsupportedError` for a model that writes text."""
    if prompts is None:
        raise UnsupportedError(
            f"embed: {source} writes text and makes no embeddings; use generate(), or load a model "
            "like EmbeddingGemma (google/embeddinggemma-300m)"
        )
    return prompts


def checked_dimensions(dimensions: object, size: int) -> int:
    """How many numbers of each vector to keep, ``size`` for None; raises :class:`InvalidRequestError`."""
    count = size if dimensions is None else dimensions
    if type(count) is not int or not 1 <= count <= size:
        raise InvalidRequestError(
            f"dimensions: got {show_argument(dimensions)}, expected 1 to {size}, or None"
        )
    return count


def unit_vectors(x: NDArray[np.float32], model_name: str, *, divide: bool = True) -> NDArray[np.float32]:
    """Rows of ``x`` [n, dim], divided by their length if ``divide``. Raises :class:`TensorError` for one that
    is not finite."""
    if not np.isfinite(x).all():
        raise TensorError(
            f"{model_name}: an embedding is not finite; the weights are damaged, or too large for it"
        )
    if not divide:
        return x
    length = np.sqrt(np.sum(x * x, axis=1, keepdims=True, dtype=np.float64))
    return (x / np.maximum(length, 1e-12)).astype(np.float32)


def embed_all(
    resident: Resident,
    texts: Sequence[Sequence[int]],
    adapter: _core.Adapter | None,
    count: int,
    *,
    divide: bool,
) -> NDArray[np.float32]:
    """float32 ``[n, count]``: the first ``count`` numbers of each text's embedding, divided by their length
    if ``divide``."""
    result = np.zeros((len(texts), count), dtype=np.float32)
    places = [i for i, text in enumerate(texts) if text]  # a text without tokens stays zero
    for index, vector in rows_of(resident, [texts[i] for i in places], adapter, "embedding"):
        result[places[index]] = unit_vectors(vector[:, :count], resident.name, divide=divide)[0]
    return result
