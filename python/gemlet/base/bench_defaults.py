"""The lengths that ``gemlet bench`` measures by default."""

from __future__ import annotations

__all__ = ["PROMPT_LENGTHS", "REPLY_LENGTHS"]

PROMPT_LENGTHS = (512,)  # tokens to prefill (the option --pp)
REPLY_LENGTHS = (128,)  # tokens to generate (the option --tg)
