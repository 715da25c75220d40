"""Reads which token each row of a draft model's head belongs to. The rows are sorted by centroids, not by
token id."""

from __future__ import annotations

from math import prod

from gemlet.base.arrays import NDArray, np
from gemlet.base.text import show
from gemlet.checkpoint.tensor_files import TensorFiles
from gemlet.config.text_config import TextConfig
from gemlet.errors import TensorError

__all__ = ["read_token_order"]

_TYPES = {"I64": "<i8", "I32": "<i4"}


def read_token_order(checkpoint: TensorFiles, config: TextConfig, name: str) -> NDArray[np.int32] | None:
    """The values of the tensor ``name``; None for a model without centroids.

    Raises:
        TensorError: there is no such tensor, or it does not have each token exactly once.
    """
    if not config.centroids:
        return None
    info = checkpoint.tensors.get(name)
    size = config.vocab_size
    if info is None or info.dtype not in _TYPES or prod(info.shape) != size:
        got = "is missing" if info is None else f"has type {info.dtype} and shape {list(info.shape)}"
        where = next(iter(checkpoint.tensors.values()), info)
        path = checkpoint.path("model.safetensors" if where is None else where.file)
        raise TensorError(f"{path}: tensor {show(name)} {got}; expected [{size}] in I64 or I32")
    ids = np.frombuffer(checkpoint.files.read(info.file, info.begin, info.nbytes), _TYPES[info.dtype])
    if not np.array_equal(np.sort(ids), np.arange(size)):
        raise TensorError(
            f"{checkpoint.path(info.file)}: tensor {show(name)} lacks or repeats tokens; expected each of "
            f"the {size} tokens once"
        )
    return ids.astype(np.int32)
