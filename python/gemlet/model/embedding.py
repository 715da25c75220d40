"""Turns texts, images and sounds into unit vectors, with an embedding model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from gemlet import _core
from gemlet.base.arrays import NDArray, np
from gemlet.base.front_door import public
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.sentence_transformers import Prompts
from gemlet.errors import InvalidRequestError, TensorError, UnsupportedError
from gemlet.model.embedding_inputs import EmbeddingInputs
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.off_loop import off_loop
from gemlet.model.reading import Reader
from gemlet.model.rows import PlacedMedia, arows_of, rows_of
from gemlet.model.senses import Senses

__all__ = ["Embedding", "TextToEmbed", "checked_dimensions", "unit_vectors"]

# A text, token ids, or the parts of a message.
TextToEmbed = str | Sequence[int] | NDArray["np.integer[Any]"] | Sequence[Mapping[str, Any]]


def checked_dimensions(dimensions: object, size: int) -> int:
    """The number of values of each vector to keep, ``size`` for None; raises :class:`InvalidRequestError`."""
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
class _Work:
    """The work of a call: the texts that have tokens, each with its index among all and its media; an array
    of zeros for all vectors; the adapter."""

    places: list[int]
    texts: list[array[int]]
    media: list[PlacedMedia]
    result: NDArray[np.float32]
    adapter: _core.Adapter | None


@record(frozen=True)
class Embedding:
    """Texts as vectors. ``prompts`` is None for a model that writes text."""

    reader: Reader
    adapters: LoadedAdapters
    senses: Senses
    prompts: Prompts | None

    @public
    def embed(
        self,
        texts: str | Iterable[TextToEmbed],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: Sequence[Any] | None = None,
        image_tokens: int | None = None,
        adapter: str | None = None,
        truncate: bool = False,
        empty: Literal["error", "zero"] = "error",
    ) -> NDArray[np.float32]:
        """The meaning of each text as a vector of length 1: of an embedding model such as EmbeddingGemma.

        The mean of the model's last hidden states over all tokens, then its dense layers, then the division
        by the length; the dot product of two vectors is the cosine of their angle.

        Args:
            texts: one text, or several; instead of a text also token ids, which are taken as they are, or
                the parts of a message, which are read one after the other: ``[{"type": "text", "text":
                "a dog"}, {"type": "image", "image": "dog.jpg"}]``. Around a text come BOS and EOS, and white
                space at its ends does not count.
            prompt: the name of the prompt (:attr:`prompts`) to put before every text: "query" for what is
                searched for, "document" for what is searched. None: the model's default.
            dimensions: keep the first numbers of each vector, and divide by the length again. Models trained
                as Matryoshka (Kusupati et al. 2022, arXiv 2205.13147) allow it. None: all.
            images: of a model that sees: the images of one text, or for several texts a list of images for
                each; a path, the bytes of a file, a Pillow image or an array. They replace the model's
                markers of images in the text (EmbeddingGemma 2: ``<|image|>``), or their placeholders in
                token ids. An empty text consists only of them.
            videos: of a model that sees, likewise (``<|video|>``): files, or ``(frames, frames per
                second)``. It sees a frame of every second, and 32 of a longer video, with at most 70 tokens
                each.
            audio: of a model that hears: sounds, likewise (``<|audio|>``); a path, the bytes of a file, an
                array at 16 kHz, or ``(samples, rate)``. All images and sounds of a call are in memory at
                once, as large as the model sees them; thousands take several calls.
            image_tokens: the most soft tokens of an image: 70, 140, 280, 560 or 1120. None: as the model's
                files say.
            adapter: the name of a loaded adapter to compute with; None: the model alone.
            truncate: cut a text that is longer than the context instead of raising. A text with images or
                sounds is never cut.
            empty: "error", or "zero" for a row of zeros where a text is empty.

        Returns:
            float32 ``[n, dimensions]``, a row for each text. All are checked before any is computed, and an
            error names the place of every one that is wrong.

        Raises:
            UnsupportedError: the model writes text and makes no embeddings, or it does not see, or hear.
            InvalidRequestError: an empty text, an unknown prompt, something that is not an image or sound, a
                wrong number of dimensions, text for a model without tokenizer, a token id out of range, an
                adapter that is not loaded.
            ContextLengthError: a text is longer than the context.
            ModelClosedError: the model is closed.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     model.embed([[2, 5, 1], [2, 7, 9, 1]], dimensions=4).shape
        (2, 4)
        """
        media = {"images": images, "videos": videos, "audio": audio, "image_tokens": image_tokens}
        work = self._checked(texts, prompt, dimensions, media, adapter, truncate, empty)
        rows = rows_of(self.reader.resident, work.texts, work.adapter, "embedding", media=work.media)
        for index, vector in rows:
            self._put(work.result[work.places[index]], vector)
        return work.result

    @public
    def embedding_ids(
        self,
        texts: str | Iterable[TextToEmbed],
        prompt: str | None = None,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: Sequence[Any] | None = None,
        image_tokens: int | None = None,
        truncate: bool = False,
    ) -> list[list[int]]:
        """The token ids that :meth:`embed` reads for each text: with the prompt, BOS and EOS, and with the
        placeholders of images and sounds. Given to :meth:`embed` instead of the texts, with the same images
        and sounds, they give the same vectors.

        Raises:
            UnsupportedError, InvalidRequestError, ContextLengthError, ModelClosedError: as :meth:`embed`.

        >>> import gemlet
        >>> with gemlet.load("tests/golden/embeddinggemma") as model:  # in a checkout
        ...     model.embedding_ids([[2, 5, 1]])
        [[2, 5, 1]]
        """
        media = {"images": images, "videos": videos, "audio": audio, "image_tokens": image_tokens}
        found = self._inputs.read(texts, self._checked_prompts().find(prompt), media, truncate=truncate)
        return [one.ids for one in found]

    @public
    async def aembed(
        self,
        texts: str | Iterable[TextToEmbed],
        prompt: str | None = None,
        dimensions: int | None = None,
        *,
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: Sequence[Any] | None = None,
        image_tokens: int | None = None,
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
        media = {"images": images, "videos": videos, "audio": audio, "image_tokens": image_tokens}
        check = partial(self._checked, texts, prompt, dimensions, media, adapter, truncate, empty)
        work = await off_loop(check, texts, media)
        async for index, vector in arows_of(self.reader.resident, work.texts, work.adapter, work.media):
            self._put(work.result[work.places[index]], vector)
        return work.result

    def _checked(
        self,
        texts: object,
        prompt: str | None,
        dimensions: object,
        media: Mapping[str, object],
        adapter: str | None,
        truncate: bool,
        empty: Literal["error", "zero"],
    ) -> _Work:
        prompts = self._checked_prompts()
        count = checked_dimensions(dimensions, self.reader.config.embedding_size)
        found = self._inputs.read(texts, prompts.find(prompt), media, truncate=truncate, empty=empty)
        chosen = self.adapters.find(adapter)
        work = _Work([], [], [], np.zeros((len(found), count), dtype=np.float32), chosen.core)
        for place, one in enumerate(found):
            if one.ids:
                ids = array("i", one.ids)
                work.places.append(place)
                work.media.append(self.senses.placed(ids, one.inputs, chosen, one.name))
                work.texts.append(ids)
        return work

    @property
    def _inputs(self) -> EmbeddingInputs:
        return EmbeddingInputs(self.reader, self.senses)

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
