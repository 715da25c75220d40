"""Keeps the texts of a client apart from the control tokens that a template writes: :class:`Hiding`.

A template writes the prompt as one text. If a message spells a control token, this text looks like a control
token that the template wrote. So gemlet replaces the first character of the spelled token with a private
character before the template runs. gemlet restores the first character after it has split the prompt at the
control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemlet.chat.base import Segments
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Hiding"]

_PRIVATE = range(0xF0000, 0xFFFFE)  # characters for private use, to which Unicode gives no meaning


class Hiding:
    """Hides tokens in the values that a template gets, and splits the text that the template writes.

    Args:
        tokenizer: the tokenizer of the model.
        template: the text of the template. Control tokens are always hidden. Other added tokens of the
            vocabulary are hidden only if the template contains them.

    >>> import gemlet
    >>> hiding = Hiding(gemlet.load().tokenizer, "")
    >>> value, stands_for = hiding.hide("<end_of_turn>!")
    >>> hiding.segments(value + "<end_of_turn>", stands_for)
    [('<end_of_turn>!', False), ('<end_of_turn>', True)]
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        control = tokenizer.control_ids
        self._added = set()
        self._names = set()
        for name, token_id in tokenizer.named_tokens.items():
            if token_id in control:
                self._names.add(name)
            elif name in template and not name.isspace():
                self._names.add(name)
                self._added.add(name)
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)

    def hide(self, value: Any) -> tuple[Any, Mapping[str, str]]:
        """A copy of the JSON value ``value`` in which no text spells a token or the beginning of one, and a
        mapping: private character -> the character that it replaces."""
        text = json.dumps(value, ensure_ascii=False)
        used = set(text)
        firsts = sorted({name[0] for name in self._names} & used)
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        private = dict(zip(firsts, free, strict=False))
        return self._hide(value, private), {code: first for first, code in private.items()}

    def _hide(self, value: Any, private: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            for first in private:
                value = self._hide_text(value, first, private[first])
            return value
        if isinstance(value, list):
            return [self._hide(item, private) for item in value]
        if isinstance(value, dict):
            return {self._hide(key, private): self._hide(item, private) for key, item in value.items()}
        return value

    def _hide_text(self, text: str, first: str, private: str) -> str:
        parts: list[str] = []
        start = 0
        at = text.find(first)
        while at >= 0:
            if self._is_token(text, at):
                parts += (text[start:at], private)
                start = at + 1
            at = text.find(first, at + 1)
        return "".join([*parts, text[start:]]) if parts else text

    def _is_token(self, text: str, at: int) -> bool:
        if any(text[at : at + length] in self._names for length in self._lengths):
            return True
        # The client's next text may be the rest of the token.
        rest = text[at : at + self._lengths[0]]
        return at + len(rest) == len(text) and any(name.startswith(rest) for name in self._names)

    def segments(self, text: str, stands_for: Mapping[str, str]) -> Segments:
        """The parts of ``text``, which the template wrote. ``stands_for`` is the mapping that :meth:`hide`
        made. A marker with an empty name separates two texts that may not be encoded as one text."""
        out = Segments()
        for part in self._tokenizer.split(text):
            if isinstance(part, int):
                out.marker(self._tokenizer.id_to_piece(part))
                continue
            for private, first in stands_for.items():
                # A filter of the template may have written the private character as an escape of JSON.
                part = part.replace(json.dumps(private)[1:-1], first)
                before, *after = part.split(private)
                for rest in after:
                    before += first
                    if any((first + rest).startswith(name) for name in self._added):
                        out.text(before)
                        out.marker("")
                        before = ""
                    before += rest
                part = before
            out.text(part)
        return out
