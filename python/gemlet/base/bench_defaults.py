"""The lengths that ``gemlet bench`` measures by default."""

from __future__ import annotations

__all__ = ["PROMPT_LENGTHS", "REPLY_LENGTHS"]

PROMPT_LENGTHS = (512,)  # tokens of the prompts, pp
REPLY_LENGTHS = (128,)  # tokens of the replies, tg
