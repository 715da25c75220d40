"""Token ids from a caller, checked."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError

__all__ = ["token_id_array"]


def token_id_array(ids: object, *, vocab_size: int, name: str) -> NDArray[np.int32]:
    """``ids`` as an int32 array ``[n]``, after checking that each is an integer in ``[0, vocab_size)``."""
    expected = f"integers from 0 to {vocab_size - 1}"
    if isinstance(ids, (list, tuple)):
        ids = _array(ids, expected, name)
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InvalidRequestError(
                f"{name}: got an array {ids.dtype}{list(ids.shape)}, expected a row of {expected}"
            )
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
            wrong = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
            raise InvalidRequestError(
                f"{name}: token id {int(ids[wrong])} at position {wrong}, expected {expected}"
            )
    else:
        kinds = f"{'text, or ' if name == 'prompt' else ''}a list of {expected}"
        raise InvalidRequestError(f"{name}: got {show_argument(ids)}, expected {kinds}")
    if len(ids) == 0:
        or_prompt = " or prompt" if name == "prompt" else ""
        raise InvalidRequestError(f"{name}: it is empty, expected at least one token id{or_prompt}")
    return np.array(ids, dtype=np.int32)


def _array(ids: Sequence[object], expected: str, name: str) -> NDArray[np.integer[Any]]:
    """``ids`` as an array of integers, after checking that each is one of 64 bits."""
    if set(map(type, ids)) != {int}:  # the usual case first: a loop in Python takes ten times as long
        for position, token_id in enumerate(ids):
            if isinstance(token_id, bool) or not isinstance(token_id, numbers.Integral):
                raise _wrong(name, position, token_id, expected)
    values = [int(token_id) for token_id in cast("Sequence[int]", ids)]
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        position = next(i for i, token_id in enumerate(values) if not -(2**63) <= token_id < 2**63)
        raise _wrong(name, position, ids[position], expected) from None


def _wrong(name: str, position: int, token_id: object, expected: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name}: token id {show_argument(token_id)} at position {position}, expected {expected}"
    )
