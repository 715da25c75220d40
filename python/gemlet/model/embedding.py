"""From texts to the forward passes of an embedding model, and from their results to unit vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gemlet.errors import TensorError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["passes", "unit_vectors"]


def passes(texts: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[list[int]]]:
    """``texts`` in groups for one forward pass each, none of more than ``most_tokens`` but a single text.

    They are large enough not to wait for the weights, and take no more memory than the core plans for.
    """
    from gemlet import _core

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
    import numpy as np

    if not np.isfinite(x).all():
        raise TensorError(
            f"{model_name}: an embedding is not finite; the weights are damaged, or too large for it"
        )
    length = np.sqrt(np.sum(x * x, axis=1, keepdims=True, dtype=np.float64))
    return (x / np.maximum(length, 1e-12)).astype(np.float32)
