"""Turns the texts and token ids of a caller into checked token ids: :class:`Reader`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, TypeGuard

from gemlet.base.arrays import NDArray, is_array
from gemlet.base.records import record
from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from gemlet.generation.token_ids import token_id_array
from gemlet.model.resident import Resident
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Reader"]


@record(frozen=True)
class Reader:
    """Makes token ids of text, and checks token ids against the vocabulary and the context length.

    In all methods, ``name`` is the name of the caller's argument, for errors.
    """

    resident: Resident
    tokenizer: Tokenizer | None
    config: TextConfig

    def encode(
        self,
        text: str,
        name: str = "prompt",
        *,
        truncate: bool = False,
        allow_control: bool = True,
        add_bos: bool = True,
    ) -> list[int]:
        """The token ids of ``text``. With ``truncate``, only the first ids are returned, as many as fit into
        the context. Without ``allow_control``, control tokens in the text are plain text.

        Raises :class:`InvalidRequestError` if the model has no tokenizer, or if the text is empty or not
        valid Unicode. Raises :class:`ContextLengthError` before encoding, if the text is certainly too long.
        """
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"{name}: got text, but {self.resident.name} has no tokenizer; pass token ids instead"
            )
        if not text:
            raise InvalidRequestError(f"{name}: it is empty, expected at least one character")
        room = self.resident.context_length
        if not truncate:
            self.tokenizer.check_length(len(text), room, name, self._remedy)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"{name}: character {error.start} is half of a surrogate pair, expected valid Unicode: "
                f"{show_argument(text[max(0, error.start - 10) : error.end])}"
            ) from None
        if truncate:
            return self.tokenizer.first_ids(text, room)
        return self.tokenizer.encode(text, add_bos, allow_control=allow_control)

    def checked(self, ids: object, name: str = "prompt") -> array[int]:
        """Checks ``ids`` as :meth:`raw` does, and checks that all ids stand for text. Returns an array.

        Raises the errors of :meth:`raw`. Raises :class:`UnsupportedError` for an id that does not stand for
        text.
        """
        found = self.raw(ids, name)
        for position in self.places_of_other_tables(found)[:1]:
            raise UnsupportedError(
                f"{name}: token id {found[position]} at position {position} stands for an image or a sound, "
                f"like all ids from {self.config.text_ids} on in this model, but this call reads only text; "
                "leave the id out, or encode the text with allow_control=False"
            )
        return found

    def places_of_other_tables(self, ids: array[int]) -> list[int]:
        """The positions of the ids that do not stand for text. Gemma 3n embeds them with other tables."""
        first = self.config.text_ids
        return [] if first is None else [at for at, token in enumerate(ids) if token >= first]

    def raw(self, ids: object, name: str = "prompt") -> array[int]:
        """Checks that ``ids`` are in the vocabulary and fit into the context. Returns an array.

        Raises :class:`InvalidRequestError` and :class:`ContextLengthError`.
        """
        room = self.resident.context_length
        if _is_row(ids) and len(ids) > room:  # this check comes first, because it is fast for millions of ids
            raise ContextLengthError(
                f"{name}: {len(ids)} tokens, but the context holds {room}; {self._remedy}"
            )
        return token_id_array(ids, vocab_size=self.resident.vocab_size, name=name)

    @property
    def _remedy(self) -> str:
        if self.resident.context_length < self.config.max_position_embeddings:
            return "shorten it, or load the model with a larger max_context"
        return "shorten it"


def _is_row(ids: object) -> TypeGuard[Sequence[object] | NDArray[Any]]:
    return isinstance(ids, (list, tuple, array)) or (is_array(ids) and ids.ndim == 1)
