"""Turns texts, images and sounds into unit vectors with an embedding model: :class:`Embedding`."""

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

# One input: a text, token ids, or the parts of a message.
TextToEmbed = str | Sequence[int] | NDArray["np.integer[Any]"] | Sequence[Mapping[str, Any]]


def checked_dimensions(dimensions: object, size: int) -> int:
    """The number of values to keep of each vector, which has ``size`` values. Raises
    :class:`InvalidRequestError` if ``dimensions`` is not from 1 to ``size``."""
    if type(dimensions) is not int or not 1 <= dimensions <= size:
        raise InvalidRequestError(
            f"dimensions: got {show_argument(dimensions)}, expected an integer from 1 to {size}, or None"
        )
    return dimensions


def unit_vectors(x: NDArray[np.float32], model_name: str, *, divide: bool = True) -> NDArray[np.float32]:
    """The rows of ``x`` [n, dim]. With ``divide``, each row is divided by its length. Raises
    :class:`TensorError` if a row is not finite."""
    if not np.isfinite(x).all():
        raise TensorError(
            f"{model_name}: an embedding is not finite; the weights are damaged, or too large for their "
            "format"
        )
    if not divide:
        return x
    length = np.sqrt(np.sum(x * x, axis=1, keepdims=True, dtype=np.float64))
    return (x / np.maximum(length, 1e-12)).astype(np.float32)


@record(frozen=True)
class _Work:
    """The checked inputs of a call, and the array for the result. Texts without tokens are left out of the
    first three lists.

    Attributes:
        places: the index of each text among all texts of the call.
        texts: the token ids of each text.
        media: the images and sounds of each text.
        result: zeros, with a row for each text of the call.
        adapter: the adapter to compute with, or None.
    """

    places: list[int]
    texts: list[array[int]]
    media: list[PlacedMedia]
    result: NDArray[np.float32]
    adapter: _core.Adapter | None


@record(frozen=True)
class Embedding:
    """The methods of :class:`gemlet.Model` that embed texts. ``prompts`` is None for a model that writes text
    and makes no embeddings."""

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
        """Turns each text into a vector of length 1 that stands for its meaning. The model has to be an
        embedding model such as EmbeddingGemma.

        The vector is the mean of the model's last hidden states over all tokens. It passes through the
        model's dense layers and is then divided by its length. The dot product of two vectors is the cosine
        of their angle.

        Args:
            texts: one text, or several texts. Instead of a text, an item may also be token ids, which are
                used unchanged, or the parts of a message: ``[{"type": "text", "text": "a dog"},
                {"type": "image", "image": "dog.jpg"}]``. White space at the ends of a text is removed, and
                BOS and EOS are put around the text.
            prompt: the name of the prompt (:attr:`prompts`) to put before every text: "query" for a text to
                search with, "document" for a text to be found. None: the model's default prompt.
            dimensions: how many values of each vector to keep, from the first value on. The shorter vector is
                divided by its length again. Models with Matryoshka training (Kusupati et al. 2022,
                arXiv 2205.13147) allow this. None: ``truncate_dim`` of the model's files, or all values.
            images: for a model that sees. The images of one text, or a list of images for each of several
                texts. An image is a path, the bytes of a file, a Pillow image or an array. The images replace
                the image markers in the text (EmbeddingGemma 2: ``<|image|>``), or the placeholders in token
                ids. An empty text may have only images.
            videos: for a model that sees; given like ``images`` (marker ``<|video|>``). A video is a file, or
                ``(frames, frames per second)``. The model sees one frame of every second, and 32 frames of a
                longer video. Each frame takes at most 70 tokens.
            audio: for a model that hears; given like ``images`` (marker ``<|audio|>``). A sound is a path,
                the bytes of a file, an array at 16 kHz, or ``(samples, rate)``. All images and sounds of a
                call are in memory at once, in the size in which the model sees them. Split thousands of them
                over several calls.
            image_tokens: the most soft tokens of an image: 70, 140, 280, 560 or 1120. None: the number in the
                model's files.
            adapter: the name of a loaded adapter to compute with; None: no adapter.
            truncate: cut a text that is longer than the context, instead of raising an error. A text with
                images or sounds is never cut.
            empty: the result for an empty text. "error" raises an error; "zero" gives a row of zeros.

        Returns:
            float32 ``[n, dimensions]``, a row for each text. All texts are checked before the first is
            computed. An error names the index of every text that is wrong.

        Raises:
            UnsupportedError: the model writes text instead of embeddings, or it does not see or hear.
            InvalidRequestError: an empty text, an unknown prompt, an image or sound that cannot be read, a
                wrong number of dimensions, text for a model without a tokenizer, a token id out of range, or
                an adapter that is not loaded.
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
        """The token ids that :meth:`embed` makes of each text, including the prompt, BOS, EOS, and the
        placeholders of images and sounds. With the same images and sounds, :meth:`embed` gives the same
        vectors for these ids as for the texts.

        Raises:
            UnsupportedError, InvalidRequestError, ContextLengthError, ModelClosedError: as in :meth:`embed`.

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
        """:meth:`embed` for programs with an event loop. No thread waits for the vectors. Cancelling the task
        ends the work. Long texts are encoded in a thread.

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
        size = self.reader.config.embedding_size
        kept = size if prompts.dimensions is None else min(size, prompts.dimensions)
        count = kept if dimensions is None else checked_dimensions(dimensions, size)
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
        """Writes the embedding ``vector`` [1, n] to ``place``, a row of the result. The vector is cut to the
        length of the row."""
        cut = vector[:, : len(place)]
        place[:] = unit_vectors(cut, self.reader.resident.name, divide=self.reader.config.unit_vectors)[0]
