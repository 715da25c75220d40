"""Checks the inputs of an embedding call, and turns them into token ids, images and sounds:
:class:`EmbeddingInputs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeGuard

from gemlet.base.arrays import NDArray, is_array
from gemlet.base.records import field, record
from gemlet.base.text import show_argument
from gemlet.chat.media_places import MEDIA_TYPES, take_parts
from gemlet.errors import ContextLengthError, InvalidRequestError
from gemlet.model.reading import Reader
from gemlet.model.senses import Inputs, Senses, of_prompts

__all__ = ["Embedded", "EmbeddingInputs"]

_SHOWN = 32  # the most indices of texts that an error names
_KINDS = ("image", "video", "audio")


@record(frozen=True)
class Embedded:
    """The input of one vector.

    Attributes:
        ids: the token ids, with placeholders for the ``inputs``. Empty if the vector is zero.
        name: the name of the argument, for errors.
        inputs: the images, videos and sounds. They are prepared, but not encoded yet.
    """

    ids: list[int]
    name: str
    inputs: Inputs = field(default_factory=Inputs)


@record(frozen=True)
class EmbeddingInputs:
    """Makes token ids of the texts to embed, and prepares the images, videos and sounds."""

    reader: Reader
    senses: Senses

    def read(
        self,
        texts: object,
        prompt: str,
        media: Mapping[str, object],
        *,
        truncate: object = False,
        empty: object = "error",
    ) -> list[Embedded]:
        """The inputs for ``texts``. Each text gets ``prompt`` in front; token ids are used unchanged. With
        ``truncate``, a text that is too long and has no media is cut. If ``empty`` is "zero", an empty text
        gets no token ids. ``media`` has the arguments of the call for images, videos and audio.

        Raises the errors of :class:`Reader`, with the index of every wrong text. Raises
        :class:`InvalidRequestError` if ``texts`` is neither a string nor a list.
        """
        if truncate is not True and truncate is not False:
            raise InvalidRequestError(f"truncate: got {show_argument(truncate)}, expected True or False")
        if not isinstance(empty, str) or empty not in ("error", "zero"):
            raise InvalidRequestError(f"empty: got {show_argument(empty)}, expected 'error' or 'zero'")
        is_one = isinstance(texts, str)
        if is_one:
            texts = [texts]
        # The vectors of a set would have no fixed order.
        other = isinstance(texts, (bytes, bytearray, Mapping, Set))
        if other or not isinstance(texts, Iterable) or (is_array(texts) and texts.ndim == 0):
            raise InvalidRequestError(
                f"texts: got {show_argument(texts)}, expected a string or a list of strings"
            )
        listed = list(texts)
        count = None if is_one else len(listed)
        images = of_prompts(media.get("images"), count, "images", "images")
        videos = of_prompts(media.get("videos"), count, "videos", "videos")
        sounds = of_prompts(media.get("audio"), count, "audio", "sounds")
        found: list[Embedded] = []
        wrong: list[InvalidRequestError] = []
        places: list[int] = []
        for i, (text, *given) in enumerate(zip(listed, images, videos, sounds, strict=True)):
            name = f"texts[{i}]"
            try:
                if empty == "zero" and _is_empty(text) and not any(map(len, given)):
                    found.append(Embedded([], name))
                    continue
                found.append(self._read(text, prompt, given, media, name, truncate))
                found[-1].inputs.keep_small()  # a call may have many images
            except InvalidRequestError as error:
                wrong.append(error)
                places.append(i)
        if wrong:
            problem = wrong[0]
            if len(wrong) > 1:
                shown = ", ".join(map(str, places[:_SHOWN])) + (", ..." if len(places) > _SHOWN else "")
                kind = ContextLengthError if all(isinstance(e, ContextLengthError) for e in wrong) else None
                problem = (kind or InvalidRequestError)(
                    f"{problem}; {len(wrong)} texts are wrong, and none was computed; their indices are "
                    f"{shown}"
                )
            problem.indices = tuple(places)
            raise problem
        return found

    def _read(
        self,
        text: object,
        prompt: str,
        given: Sequence[Sequence[object]],
        options: Mapping[str, object],
        name: str,
        truncate: bool,
    ) -> Embedded:
        images, videos, sounds = given
        inputs = self.senses.inputs(images, videos, sounds, options)
        if _is_parts(text):
            if inputs:
                raise InvalidRequestError(
                    f"{name}: got parts of a message, and also the arguments images, videos or audio; give "
                    "all media as parts"
                )
            return self._read_parts(text, prompt, options, name, truncate)
        if isinstance(text, str):
            stripped = text.strip()
            if inputs:
                stripped = stripped or self.senses.markers(inputs, self.reader.tokenizer, name)
                stripped = self.senses.with_places(stripped, inputs, self.reader.tokenizer, name)
            return Embedded(self._encode(stripped, prompt, name, truncate, inputs), name, inputs)
        if isinstance(text, (bytes, bytearray)) or not isinstance(text, Iterable):
            raise InvalidRequestError(
                f"{name}: got {show_argument(text)}, expected a text or a list of token ids"
            )
        ids = text
        if truncate and not inputs and _is_row(text):
            ids = text[: self.reader.resident.context_length]
        return Embedded(self._checked(ids, inputs, name), name, inputs)

    def _read_parts(
        self,
        parts: Sequence[Mapping[str, Any]],
        prompt: str,
        options: Mapping[str, object],
        name: str,
        truncate: bool,
    ) -> Embedded:
        """Reads the parts of a message as one input."""
        written, media = take_parts(parts, _KINDS, name)
        for i, part in enumerate(written):
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                known = ", ".join(sorted({"text", *MEDIA_TYPES}))
                raise InvalidRequestError(
                    f"{name}[{i}]: got {show_argument(part)}, expected a part with the type text and a "
                    f"string as text, or a part with one of the types {known}"
                )
        tokenizer = self.reader.tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                f"{name}: got parts of a message, but {self.reader.resident.name} has no tokenizer; pass "
                "token ids, and the media as images=, videos= and audio="
            )
        inputs, places = self.senses.of_parts(media, tokenizer, options)
        text = "".join(part["text"] for part in written).strip()
        for sentinel, place in places.items():
            text = text.replace(sentinel, "".join(piece for piece, _ in place))
        return Embedded(self._encode(text, prompt, name, truncate, inputs), name, inputs)

    def _encode(self, text: str, prompt: str, name: str, truncate: bool, inputs: Inputs) -> list[int]:
        truncate = truncate and not inputs  # a cut could remove a part of an image
        room = self.reader.resident.context_length
        own = self.reader.encode((prompt + text).strip() if text else "", name, truncate=truncate)
        end = self.reader.config.eos_token_ids[:1] if self.reader.tokenizer is not None else ()
        if truncate:
            own = own[: room - len(end)]
        return self._checked([*own, *end], inputs, name)

    def _checked(self, ids: object, inputs: Inputs, name: str) -> list[int]:
        return list(map(int, self.reader.raw(ids, name) if inputs else self.reader.checked(ids, name)))


def _is_empty(text: object) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return _is_row(text) and len(text) == 0


def _is_row(ids: object) -> TypeGuard[Sequence[object] | NDArray[Any]]:
    return isinstance(ids, (list, tuple)) or (is_array(ids) and ids.ndim == 1)


def _is_parts(text: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(text, (list, tuple)) and len(text) > 0 and all(isinstance(one, Mapping) for one in text)
