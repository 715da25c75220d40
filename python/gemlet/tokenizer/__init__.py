"""From text to token ids and back: :class:`Tokenizer`; :class:`StreamDecoder` where ids arrive one by one."""

from __future__ import annotations

from gemlet.tokenizer.decoding import StreamDecoder
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
