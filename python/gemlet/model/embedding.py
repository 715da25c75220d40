"""From texts to the forward passes of an embedding model, and from their results to unit vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.errors import TensorError
from gemlet.model.resident import Resident

__all__ = ["embed_all", "passes", "unit_vectors"]


def passes(texts: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[list[int]]]:
    """``texts`` in groups for one forward pass each, none of more than ``most_tokens`` but a single text.

    They are large enough not to wait for the weights, and take no more memory than the core plans for.
    """
    limit = min(_core.PASS_TOKENS, most_tokens)
    group: list[list[int]] = []
    tokens = 0
    for text in texts:
        if group and (tokens + len(text) > limit or len(group) == _core.PASS_TEXTS):
            yield group
            group, tokens = [], 0
        group.append(list(text))
        tokens += len(text)
    if group:
        yield group


def unit_vectors(x: NDArray[np.float32], model_name: str) -> NDArray[np.float32]:
    """Rows of ``x`` [n, dim] divided by their length; raises :class:`TensorError` if one is not finite."""
    if not np.isfinite(x).all():
        raise TensorError(
            f"{model_name}: an embedding is not finite; the weights are damaged, or too large for it"
        )
    length = np.sqrt(np.sum(x * x, axis=1, keepdims=True, dtype=np.float64))
    return (x / np.maximum(length, 1e-12)).astype(np.float32)


def embed_all(
    resident: Resident, texts: Sequence[Sequence[int]], adapter: _core.Adapter | None, count: int
) -> NDArray[np.float32]:
    """float32 ``[n, count]``: the first ``count`` numbers of each text's embedding, with length 1."""
    result = np.empty((len(texts), count), dtype=np.float32)
    at = 0
    for group in passes(texts, resident.context_length):
        vectors = resident.core.embed(group, adapter)
        result[at : at + len(group)] = unit_vectors(vectors[:, :count], resident.name)
        at += len(group)
    return result
