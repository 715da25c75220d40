"""Token ids from a caller, checked."""

from __future__ import annotations

import numbers

import numpy as np
from numpy.typing import NDArray

from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError

__all__ = ["token_id_array"]


def token_id_array(ids: object, *, vocab_size: int, name: str) -> NDArray[np.int32]:
    """``ids`` as an int32 array ``[n]``, after checking that each is an integer in ``[0, vocab_size)``."""
    expected = f"integers from 0 to {vocab_size - 1}"
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
    elif isinstance(ids, (list, tuple)):
        for position, token_id in enumerate(ids):
            if (
                isinstance(token_id, bool)
                or not isinstance(token_id, numbers.Integral)
                or not 0 <= int(token_id) < vocab_size
            ):
                raise InvalidRequestError(
                    f"{name}: token id {show_argument(token_id)} at position {position}, expected {expected}"
                )
    else:
        kinds = f"{'text, or ' if name == 'prompt' else ''}a list of {expected}"
        raise InvalidRequestError(f"{name}: got {show_argument(ids)}, expected {kinds}")
    if len(ids) == 0:
        raise InvalidRequestError(f"{name}: it is empty, expected at least one token id")
    return np.array(ids, dtype=np.int32)
