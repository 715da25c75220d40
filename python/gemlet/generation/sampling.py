"""The core's sampler for a generation."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from gemlet import _core
from gemlet.base.late import log
from gemlet.base.text import asked_for
from gemlet.errors import InvalidRequestError
from gemlet.generation.options import GenerationConfig
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["check_ids", "make_sampler", "warn_of_not_followed"]


def make_sampler(
    config: GenerationConfig,
    *,
    vocab_limit: int,
    never: Sequence[int] = (),
    end_ids: Iterable[int] = (),
    prompt_tokens: int = 0,
    tokenizer: Tokenizer | None = None,
) -> tuple[_core.Sampler, int]:
    """The sampler and its seed, a new seed if ``config`` has none.

    Args:
        vocab_limit: ids from here on are never sampled (0: no limit).
        never: other ids that are never sampled.
        end_ids: the ids that end the text, not before ``min_tokens``.
        prompt_tokens: the number of tokens of the prompt, with which the text begins.
        tokenizer: used to find the tokens of ``dry_sequence_breakers``.
    """
    # 32 bits are enough to tell runs apart, and short enough to type again.
    seed = int.from_bytes(os.urandom(4), "little") if config.seed is None else config.seed
    breakers = None
    if config.dry_multiplier > 0 and tokenizer is not None:
        breakers = _sequence_breakers(tokenizer, config.dry_sequence_breakers)
    sampler = _core.Sampler(
        temperature=0.0 if config.greedy else config.temperature,
        top_k=config.top_k,
        top_p=1.0 if config.greedy else config.top_p,  # 0 means greedy
        min_p=config.min_p,
        typical_p=config.typical_p,
        repetition_penalty=config.repetition_penalty,
        frequency_penalty=config.frequency_penalty,
        presence_penalty=config.presence_penalty,
        dry_multiplier=config.dry_multiplier,
        dry_base=config.dry_base,
        dry_allowed_length=config.dry_allowed_length,
        dry_breakers=breakers,
        no_repeat_ngram=config.no_repeat_ngram_size,
        logit_bias=list(config.logit_bias),
        min_tokens=config.min_tokens,
        end_ids=sorted(end_ids) if config.min_tokens else [],
        suppressed=sorted({*config.suppress_tokens, *never}),
        vocab_limit=vocab_limit,
        seed=seed,
        prompt_tokens=prompt_tokens,
    )
    return sampler, seed


_MOST_KEPT = 4


class _BreakersOf:
    """Finds the tokens that spell strings, for one tokenizer, and keeps the latest result."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.stream_decoder(skip_control=False)
        backwards = [decoder.next_bytes(token_id)[::-1] for token_id in range(tokenizer.vocab_size)]
        # Sorted like this, tokens with the same ending are neighbours.
        self._ids = sorted(range(len(backwards)), key=backwards.__getitem__)
        self._backwards = [backwards[token_id] for token_id in self._ids]
        self._kept: dict[tuple[str, ...], _core.SequenceBreakers] = {}

    def find(self, tokenizer: Tokenizer, breakers: tuple[str, ...]) -> _core.SequenceBreakers:
        """The tokens that contain one of the strings ``breakers``, and those that end with its beginning,
        before the tokens of the rest (as llama.cpp looks for them)."""
        found = self._kept.get(breakers)
        if found is None:
            groups: list[tuple[list[int], list[int]]] = []
            for breaker in breakers:
                whole = breaker.encode()[::-1]
                groups.append(
                    ([i for i, text in zip(self._ids, self._backwards, strict=True) if whole in text], [])
                )
                for cut in range(1, len(breaker)):
                    beginning, rest = breaker[:cut].encode()[::-1], breaker[cut:]
                    first = bisect.bisect_left(self._backwards, beginning)
                    last = bisect.bisect_left(self._backwards, beginning + b"\xff" * 256)
                    groups.append((self._ids[first:last], tokenizer.encode(rest, add_bos=False)))
            found = _core.SequenceBreakers(groups)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[breakers] = found
        return found


_breakers_of: WeakKeyDictionary[Tokenizer, _BreakersOf] = WeakKeyDictionary()


def _sequence_breakers(tokenizer: Tokenizer, breakers: tuple[str, ...]) -> _core.SequenceBreakers:
    known = _breakers_of.get(tokenizer)
    if known is None:
        known = _breakers_of[tokenizer] = _BreakersOf(tokenizer)
    return known.find(tokenizer, breakers)


def check_ids(config: GenerationConfig, vocab_size: int) -> None:
    """Raises :class:`InvalidRequestError` for a token id that the model does not have."""
    given = {
        "logit_bias": [token_id for token_id, _ in config.logit_bias],
        "suppress_tokens": config.suppress_tokens,
        "stop_token_ids": config.stop_token_ids,
    }
    for name, ids in given.items():
        highest = max(ids, default=0)
        if highest >= vocab_size:
            raise InvalidRequestError(
                f"{name}: got the token id {highest}, expected integers from 0 to {vocab_size - 1}"
            )


def warn_of_not_followed(source: str, values: dict[str, object]) -> None:
    """Logs which keys of a model's files gemlet does not follow, and empties ``values``, so that this happens
    once."""
    if not values:
        return
    asked = asked_for(values)
    values.clear()
    log.warning(
        "%s: the checkpoint asks for %s, which gemlet cannot do; the text may differ from the reference's",
        source,
        asked,
    )
