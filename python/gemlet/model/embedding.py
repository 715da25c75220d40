"""From the texts that an embedding model reads to unit vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.sentence_transformers import Prompts
from gemlet.errors import InvalidRequestError, TensorError, UnsupportedError
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.off_loop import off_loop
from gemlet.model.reading import Reader
from gemlet.model.rows import arows_of, rows_of

__all__ = ["Embedding", "checked_dimensions", "unit_vectors"]


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


@record(frozen=True)
class Embedding:
    """Texts as vectors. ``prompts`` is None for a model that writes text."""

    reader: Reader
    adapters: LoadedAdapters
    prompts: Prompts | None

    @public
    def embed(
        self,
        texts: str | Iterable[str | Sequence[int] | NDArray[np.integer[Any]]],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        adapter: str | None = None,
        truncate: bool = False,
        empty: Literal["error", "zero"] = "error",
    ) -> NDArray[np.float32]:
        """The meaning of each text as a vector of length 1: of an embedding model such as EmbeddingGemma.

        The mean of the model's last hidden states over all tokens, then its dense layers, then the division
        by the length; the dot product of two vectors is the cosine of their angle.

        Args:
            texts: one text, or several; instead of a text also token ids, which are taken as they are.
                Around a text come BOS and EOS, and white space at its ends does not count.
            prompt: the name of the prompt (:attr:`prompts`) to put before every text: "query" for what is
                searched for, "document" for what is searched. None: the model's default.
            dimensions: keep the first numbers of each vector, and divide by the length again. Models trained
                as Matryoshka (Kusupati et al. 2022, arXiv 2205.13147) allow it. None: all.
            adapter: the name of a loaded adapter to compute with; None: the model alone.
            truncate: cut a text that is longer than the context instead of raising.
            empty: "error", or "zero" for a row of zeros where a text is empty.

        Returns:
            float32 ``[n, dimensions]``, a row for each text. All are checked before any is computed, and an
            error names the place of every one that is wrong.

        Raises:
            UnsupportedError: the model writes text and makes no embeddings.
            InvalidRequestError: an empty text, an unknown prompt, a wrong number of dimensions, text for a
                model without tokenizer, a token id out of range, an adapter that is not loaded.
            ContextLengthError: a text is longer than the context.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     model.embed([[2, 5, 1], [2, 7, 9, 1]], dimensions=4).shape
        (2, 4)
        """
        ids, result, low_rank = self._checked(texts, prompt, dimensions, adapter, truncate, empty)
        for index, vector in rows_of(self.reader.resident, [text for _, text in ids], low_rank, "embedding"):
            self._put(result[ids[index][0]], vector)
        return result

    @public
    def embedding_ids(
        self,
        texts: str | Iterable[str | Sequence[int] | NDArray[np.integer[Any]]],
        prompt: str | None = None,
        *,
        truncate: bool = False,
    ) -> list[list[int]]:
        """The token ids that :meth:`embed` reads for each text: with the prompt, BOS and EOS. Given to
        :meth:`embed` in the place of the texts, they have the same vectors.

        Raises:
            UnsupportedError, InvalidRequestError, ContextLengthError, ModelClosedError: as :meth:`embed`.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     model.embedding_ids([[2, 5, 1]])
        [[2, 5, 1]]
        """
        prompts = self._checked_prompts()
        return self.reader.for_embedding(texts, prompts.find(prompt), truncate=truncate)

    @public
    async def aembed(
        self,
        texts: str | Iterable[str | Sequence[int] | NDArray[np.integer[Any]]],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        adapter: str | None = None,
        truncate: bool = False,
        empty: Literal["error", "zero"] = "error",
    ) -> NDArray[np.float32]:
        """:meth:`embed` for programs with an event loop. No thread waits for the vectors; a task that is
        cancelled ends the work. Long texts are encoded in a thread.

        >>> import asyncio, gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     asyncio.run(model.aembed([[2, 5, 1], [2, 7, 9, 1]], dimensions=4)).shape
        (2, 4)
        """
        check = partial(self._checked, texts, prompt, dimensions, adapter, truncate, empty)
        ids, result, low_rank = await off_loop(check, texts, {})
        async for index, vector in arows_of(self.reader.resident, [text for _, text in ids], low_rank):
            self._put(result[ids[index][0]], vector)
        return result

    def _checked(
        self,
        texts: object,
        prompt: str | None,
        dimensions: object,
        adapter: str | None,
        truncate: bool,
        empty: Literal["error", "zero"],
    ) -> tuple[list[tuple[int, list[int]]], NDArray[np.float32], _core.Adapter | None]:
        """The texts that have tokens, each with its place; zeros for all vectors; the adapter."""
        prompts = self._checked_prompts()
        count = checked_dimensions(dimensions, self.reader.config.embedding_size)
        ids = self.reader.for_embedding(texts, prompts.find(prompt), truncate=truncate, empty=empty)
        result = np.zeros((len(ids), count), dtype=np.float32)
        return [(i, text) for i, text in enumerate(ids) if text], result, self.adapters.find(adapter).core

    def _checked_prompts(self) -> Prompts:
        resident = self.reader.resident
        resident.check_open()
        if self.prompts is None:
            raise UnsupportedError(
                f"embed: {resident.name} writes text and makes no embeddings; use generate(), or load a "
                "model like EmbeddingGemma (google/embeddinggemma-300m)"
            )
        return self.prompts

    def _put(self, place: NDArray[np.float32], vector: NDArray[np.float32]) -> None:
        """The embedding ``vector`` [1, n], cut to the size of its ``place`` in the result."""
        cut = vector[:, : len(place)]
        place[:] = unit_vectors(cut, self.reader.resident.name, divide=self.reader.config.unit_vectors)[0]
