"""Reports how much of a prompt the prefix cache has, and where the prompt differs from the nearest kept text:
:func:`prefix_report`."""

from __future__ import annotations

from collections.abc import Sequence

from gemlet import _core
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["PrefixReport", "prefix_report"]

_AROUND = 16  # the number of tokens that the report shows of each text


@record(frozen=True)
class PrefixReport:
    """The result of :meth:`gemlet.Model.explain_prefix`. The nearest kept text is the text in the prefix
    cache that has the longest beginning in common with the prompt.

    Attributes:
        prompt_tokens: the number of tokens of the prompt.
        cached_tokens: the number of tokens of the prompt that need not be computed.
        common_tokens: the number of tokens that the prompt and the nearest kept text have in common at the
            start. This is more than ``cached_tokens`` if a sliding window needs keys and values that are no
            longer kept.
        byte: the index of the byte (UTF-8) at which the prompt begins to differ from the kept text. If the
            prompt is a text, this is an index in that text, without the BOS that gemlet adds. If the prompt
            is messages or token ids, this is an index in the text that they become, with BOS and other
            control tokens written by name. None if the kept text begins with the whole prompt, or if the
            model has no tokenizer.
        before: the end of the common text.
        prompt: the next characters of the prompt.
        kept: the next characters of the kept text; "" if the kept text ends there.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     result = model.generate("The door opened and", max_tokens=1)
    ...     print(model.explain_prefix("The door opened and"))
    4 of 5 tokens are cached
    """

    prompt_tokens: int
    cached_tokens: int
    common_tokens: int
    byte: int | None = None
    before: str = ""
    prompt: str = ""
    kept: str = ""

    def __str__(self) -> str:
        text = f"{self.cached_tokens} of {self.prompt_tokens} tokens are cached"
        if self.byte is None:
            return text
        ends = "ends" if not self.kept else f"has {show(self.kept)}"
        return (
            f"{text}; at token {self.common_tokens}, byte {self.byte}, after {show(self.before)}, the prompt "
            f"has {show(self.prompt)} and the nearest kept text {ends}"
        )


def prefix_report(
    cache: _core.PrefixCache,
    ids: Sequence[int],
    adapter: _core.Adapter | None,
    tokenizer: Tokenizer | None,
    cache_salt: int = 0,
    *,
    added_bytes: int = 0,
    media: Sequence[tuple[int, _core.Media]] = (),
) -> PrefixReport:
    """Compares the prompt ``ids`` with the content of ``cache``. The text of ``ids`` begins with
    ``added_bytes`` bytes that are not in the caller's text."""
    common, usable, kept = cache.nearest(list(ids), media=media, adapter=adapter, cache_salt=cache_salt)
    found = PrefixReport(len(ids), min(usable, len(ids) - 1), common)
    if tokenizer is None or common == len(ids):
        return found

    def text(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_control=False)

    decoder = tokenizer.stream_decoder(skip_control=False)
    size = sum(len(decoder.next_bytes(token)) for token in ids[:common])  # a token may be part of a character
    return PrefixReport(
        found.prompt_tokens,
        found.cached_tokens,
        found.common_tokens,
        byte=max(0, size - added_bytes) if common else 0,
        before=text(ids[max(0, common - _AROUND) : common]),
        prompt=text(ids[common : common + _AROUND]),
        kept=text(kept),
    )
