"""What a caller gives a model to read, as checked token ids: :class:`Reader`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemlet.base.text import show_argument
from gemlet.config.text_config import TextConfig
from gemlet.errors import ContextLengthError, InvalidRequestError
from gemlet.generation.token_ids import token_id_array
from gemlet.model.resident import Resident
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Reader"]


@dataclass(frozen=True)
class Reader:
    """Makes token ids of text, and checks them against the vocabulary and the context.

    ``name`` in the methods is the argument that errors are about.
    """

    resident: Resident
    tokenizer: Tokenizer | None
    config: TextConfig

    def encode(self, text: str, name: str = "prompt") -> list[int]:
        """The ids of ``text``; raises :class:`InvalidRequestError` where there is no tokenizer, and for text
        that is empty or no valid Unicode."""
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"{name}: got text, but {self.resident.name} has no tokenizer; pass token ids instead"
            )
        if not text:
            raise InvalidRequestError(f"{name}: it is empty, expected at least one character")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"{name}: character {error.start} is half of a surrogate pair, expected valid Unicode: "
                f"{show_argument(text[max(0, error.start - 10) : error.end])}"
            ) from None
        return self.tokenizer.encode(text)

    def checked(self, ids: object, name: str = "prompt") -> NDArray[np.int32]:
        """``ids`` as an array, which are ids of the vocabulary and fit into the context.

        Raises :class:`InvalidRequestError` or :class:`ContextLengthError`.
        """
        tokens = token_id_array(ids, vocab_size=self.resident.vocab_size, name=name)
        room = self.resident.context_length
        if len(tokens) > room:
            remedy = "shorten it"
            if room < self.config.max_position_embeddings:
                remedy += ", or load the model with a larger max_context"
            raise ContextLengthError(f"{name}: {len(tokens)} tokens, but the context holds {room}; {remedy}")
        return tokens

    def for_embedding(self, texts: object, prompt: str) -> list[list[int]]:
        """The ids of each text to embed, with ``prompt`` before it; ids are taken as they are.

        Raises what the other methods do, and :class:`InvalidRequestError` for no list of texts.
        """
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Iterable):
            raise InvalidRequestError(
                f"texts: got {show_argument(texts)}, expected a string or a list of them"
            )
        return [self._text_to_embed(text, prompt, f"texts[{i}]") for i, text in enumerate(texts)]

    def _text_to_embed(self, text: object, prompt: str, name: str) -> list[int]:
        if not isinstance(text, str):
            return list(map(int, self.checked(text, name)))
        stripped = text.strip()
        ids = self.encode((prompt + stripped).strip() if stripped else "", name)
        end = self.config.eos_token_ids[:1] if self.tokenizer is not None else ()
        return list(map(int, self.checked([*ids, *end], name)))
