"""One prompt or several, as a caller gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError
from gemlet.generation.result import Generation

__all__ = ["ManyPrompts", "Prompt", "prompts_of", "same_form", "seeds_of"]

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]
ManyPrompts = list[str] | list[list[int]] | list[NDArray[np.integer[Any]]]
_KINDS = (str, list, tuple, np.ndarray)


def prompts_of(prompt: object) -> list[object] | None:
    """The prompts where it is a list of them, texts or lists of token ids; None where it is a single one.

    >>> prompts_of(["The door", [2, 5]]), prompts_of([2, 5]), prompts_of("The door")
    (['The door', [2, 5]], None, None)
    """
    if not isinstance(prompt, (list, tuple)) or not any(isinstance(one, _KINDS) for one in prompt):
        return None
    for index, one in enumerate(prompt):
        if not isinstance(one, _KINDS):
            raise InvalidRequestError(
                f"prompt[{index}]: got {show_argument(one)}, expected a text or a list of token ids"
            )
    return list(prompt)


def seeds_of(seed: object, count: int) -> list[Any]:
    """A seed for each of ``count`` prompts: one for all, or a list of them."""
    if not isinstance(seed, (list, tuple)):
        return [seed] * count
    if len(seed) != count:
        raise InvalidRequestError(
            f"seed: got {len(seed)} of them, expected one, or {count} as for the prompts"
        )
    return list(seed)


def same_form(prompt: object, results: list[Generation]) -> Generation | list[Generation]:
    """The results as the prompts were given: the only one of a single prompt."""
    return results[0] if prompts_of(prompt) is None else results
