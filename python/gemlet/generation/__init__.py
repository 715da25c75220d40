"""Generating text: how (:class:`GenerationConfig`), the loop (:class:`TextStream`) and the answer.

>>> import gemlet
>>> with gemlet.load() as model:
...     answer = model.generate("The door opened", max_tokens=8, seed=1)
>>> answer.completion_tokens, answer.finish_reason
(8, 'length')
"""

from __future__ import annotations

from gemlet.generation.async_stream import AsyncTextStream
from gemlet.generation.options import GenerationConfig, GenerationOptions
from gemlet.generation.result import Chunk, FinishReason, Generation, TokenLogprob
from gemlet.generation.stream import TextStream

__all__ = [
    "AsyncTextStream",
    "Chunk",
    "FinishReason",
    "Generation",
    "GenerationConfig",
    "GenerationOptions",
    "TextStream",
    "TokenLogprob",
]
