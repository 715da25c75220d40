"""Keeps a client's text apart from a template's own tokens: :class:`Hiding`.

A template gives one text. In it, a control token that a message spells would look like the template's own. So
the first character of such a token is replaced by a private character before the template runs, and put back
after the text has been cut at the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemlet.chat.base import Segments
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Hiding"]

_PRIVATE = range(0xF0000, 0xFFFFE)  # a plane of characters that mean nothing


class Hiding:
    """Hides tokens in the values for a template, and takes its text apart.

    Args:
        tokenizer: the tokenizer of the model.
        template: the text of the template. Control tokens are always hidden, and added tokens of the
            vocabulary only if they are in this text.

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
        """The template's text in parts. A marker with an empty name separates two texts that may not be
        encoded as one."""
        out = Segments()
        for part in self._tokenizer.split(text):
            if isinstance(part, int):
                out.marker(self._tokenizer.id_to_piece(part))
                continue
            for private, first in stands_for.items():
                part = part.replace(json.dumps(private)[1:-1], first)  # a filter may leave ASCII only
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
