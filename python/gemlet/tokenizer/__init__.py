"""Turns text into token ids and back: :class:`Tokenizer`, and :class:`StreamDecoder` for ids that arrive one
by one."""

from __future__ import annotations

from gemlet.tokenizer.decoding import StreamDecoder
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
