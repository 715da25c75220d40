"""Tells whether a call has one prompt or several, and checks how many texts the call asks for."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.arrays import NDArray, is_array, np
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError
from gemlet.generation.result import Generation

__all__ = [
    "FIRST",
    "ManyPrompts",
    "Prompt",
    "arranged",
    "check_count",
    "check_one",
    "counts_of",
    "prompts_of",
    "seeds_of",
]

Prompt = str | Sequence[int] | NDArray["np.integer[Any]"]
ManyPrompts = list[str] | list[list[int]] | list[NDArray["np.integer[Any]"]]
_MOST = 16  # the most continuations of a prompt
_MOST_TEXTS = 65_536  # the most continuations of all prompts of one call
FIRST = 16  # a list is recognized as a list of prompts or messages by this many of its first elements


def prompts_of(prompt: object) -> list[object] | None:
    """The prompts, if ``prompt`` is a list of texts or of lists of token ids. None if it is a single prompt.

    >>> prompts_of(["The door", [2, 5]]), prompts_of([2, 5]), prompts_of("The door")
    (['The door', [2, 5]], None, None)
    """
    # Only the first elements are looked at: a list of token ids may have millions.
    if not isinstance(prompt, (list, tuple)) or not any(_is_prompt(one) for one in prompt[:FIRST]):
        return None
    check_count(len(prompt))
    for index, one in enumerate(prompt):
        if not _is_prompt(one):
            raise InvalidRequestError(
                f"prompt[{index}]: got {show_argument(one)}, expected a text or a list of token ids"
            )
    return list(prompt)


def check_count(prompts: int, continuations: int = 1) -> None:
    """Raises :class:`InvalidRequestError` if one call asks for too many continuations."""
    if prompts * continuations > _MOST_TEXTS:
        each = f" with {continuations} continuations of each" if continuations > 1 else ""
        raise InvalidRequestError(
            f"prompt: got {prompts} prompts{each}, expected at most {_MOST_TEXTS} texts in one call; "
            "split them over several calls"
        )


def check_one(prompt: object, name: str) -> None:
    """Raises :class:`InvalidRequestError` if the argument ``name`` is a list of prompts."""
    if (several := prompts_of(prompt)) is not None:
        raise InvalidRequestError(f"{name}: got a list of {len(several)} prompts, expected one")


def seeds_of(seed: object, count: int) -> list[Any]:
    """A list with a seed for each of ``count`` prompts. ``seed`` is one seed for all prompts, or a list of
    seeds."""
    if not isinstance(seed, (list, tuple)):
        return [seed] * count
    if len(seed) != count:
        raise InvalidRequestError(
            f"seed: got a list of {len(seed)} seeds, expected one seed, or a list of {count} seeds, one for "
            "each prompt"
        )
    return list(seed)


def _is_prompt(value: object) -> bool:
    return isinstance(value, (str, list, tuple)) or is_array(value)


def counts_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """The number of continuations of each prompt that a call returns (``n``), and the number that it
    generates (``best_of``)."""
    n, best_of = (options.get(name) for name in ("n", "best_of"))
    for name, value in (("n", n), ("best_of", best_of)):
        is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and not (is_count and 1 <= int(value) <= _MOST):
            raise InvalidRequestError(
                f"{name}: got {show_argument(value)}, expected an integer from 1 to {_MOST}"
            )
    count = 1 if n is None else int(n)
    if best_of is not None and best_of < count:
        raise InvalidRequestError(f"best_of: got {best_of}, expected at least {count}, which is n")
    return count, count if best_of is None else int(best_of)


def arranged(
    prompt: object, options: Mapping[str, Any], results: list[Generation]
) -> Generation | list[Generation]:
    """The results in the form that the call returns. With ``best_of``, only the best results of each prompt
    are kept. The result is a list only if ``prompt`` is a list of prompts, or if ``n`` is given."""
    count, written = counts_of(options)
    if options.get("best_of") is not None:
        groups = [results[start : start + written] for start in range(0, len(results), written)]
        results = [one for group in groups for one in sorted(group, key=_mean_logprob, reverse=True)[:count]]
    return results[0] if prompts_of(prompt) is None and options.get("n") is None else results


def _mean_logprob(result: Generation) -> float:
    logprobs = result.logprobs or []
    return sum(one.logprob for one in logprobs) / len(logprobs) if logprobs else -math.inf
