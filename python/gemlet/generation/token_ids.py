"""Checks the token ids that a caller gives: :func:`token_id_array`."""

from __future__ import annotations

import numbers
from array import array
from collections.abc import Sequence
from typing import cast

from gemlet.base.arrays import is_array
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError

__all__ = ["token_id_array"]


def token_id_array(ids: object, *, vocab_size: int, name: str) -> array[int]:
    """``ids`` as an array of int32, after checking that each is an integer in ``[0, vocab_size)``."""
    expected = f"integers from 0 to {vocab_size - 1}"
    if isinstance(ids, (list, tuple)):
        found = _integers(ids, expected, name)
    elif is_array(ids):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidRequestError(
                f"{name}: got an array {ids.dtype}{list(ids.shape)}, expected a row of {expected}"
            )
        found = ids.tolist()
    elif isinstance(ids, array) and ids.typecode == "i":
        found = ids
    else:
        kinds = f"{'text, or ' if name == 'prompt' else ''}a list of {expected}"
        raise InvalidRequestError(f"{name}: got {show_argument(ids)}, expected {kinds}")
    if len(found) == 0:
        or_prompt = " or prompt" if name == "prompt" else ""
        raise InvalidRequestError(f"{name}: it is empty, expected at least one token id{or_prompt}")
    if min(found) < 0 or max(found) >= vocab_size:
        wrong = next(at for at, token_id in enumerate(found) if not 0 <= token_id < vocab_size)
        raise InvalidRequestError(
            f"{name}: token id {show_argument(found[wrong])} at position {wrong}, expected {expected}"
        )
    return array("i", found)


def _integers(ids: Sequence[object], expected: str, name: str) -> Sequence[int]:
    """``ids`` as Python integers, after checking that each is an integer."""
    if set(map(type, ids)) <= {int}:  # the usual case first: a loop in Python takes ten times as long
        return cast("Sequence[int]", ids)
    for position, token_id in enumerate(ids):
        if isinstance(token_id, bool) or not isinstance(token_id, numbers.Integral):
            raise InvalidRequestError(
                f"{name}: token id {show_argument(token_id)} at position {position}, expected {expected}"
            )
    return [int(token_id) for token_id in cast("Sequence[int]", ids)]
