"""The checks on the values of :class:`gemlet.GenerationConfig`."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence

from gemlet.base.arrays import is_array, is_bool
from gemlet.base.late import hashlib
from gemlet.base.sampling_options import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_INT,
    MAX_SUPPRESSED,
    MOST_ALTERNATIVES,
    MOST_SALT_CHARACTERS,
    MOST_STOP_CHARACTERS,
    MOST_STOP_IDS,
    MOST_STOPS,
    OPTIONS,
)
from gemlet.base.text import show_argument
from gemlet.errors import InvalidRequestError

__all__ = [
    "check_cache_salt",
    "check_flag",
    "check_number",
    "check_priority",
    "check_timeout",
    "invalid",
    "one_seed",
    "strings",
    "token_biases",
    "token_ids",
    "top_count",
]

_MAX_BREAKER_CHARACTERS = 40


def invalid(name: str, value: object, expected: str) -> InvalidRequestError:
    """The error about a wrong ``value`` of the option ``name``."""
    return InvalidRequestError(f"{name}: got {show_argument(value)}, expected {expected}")


def _integer(name: str, value: object, low: int, high: int, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise invalid(name, value, expected)
    return int(value)


def _real(name: str, value: object, low: float, high: float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise invalid(name, value, expected)
    try:
        number = float(value)
    except (OverflowError, ValueError):
        raise invalid(name, value, expected) from None
    if not low <= number <= high:  # also false for NaN
        raise invalid(name, value, expected)
    return number


def check_number(name: str, value: object) -> int | float:
    """Checks an option that is a number (:mod:`gemlet.base.sampling_options`)."""
    option = OPTIONS[name]
    if option.kind is float:
        return _real(name, value, option.low, option.high, option.meaning)
    if isinstance(value, float) and value.is_integer():  # 64.0, as JSON may have it
        value = int(value)
    return max(0, _integer(name, value, int(option.low), int(option.high), option.meaning))  # top_k -1: all


def one_seed(name: str, value: object) -> int | None:
    """A seed. Other tools write -1 for a new seed every time; it becomes None."""
    seed = _integer(name, value, -1, 2**64 - 1, "None (or -1) for a new one, or an integer up to 2**64 - 1")
    return None if seed == -1 else seed


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """A list of token ids. For ids that end a text, a single id is allowed too."""
    most = MOST_STOP_IDS if name == "stop_token_ids" else MAX_SUPPRESSED
    expected = f"up to {most} token ids"
    if name == "stop_token_ids" and isinstance(value, numbers.Integral):
        value = (value,)
    if is_array(value) and value.ndim == 1:
        value = value[: most + 1].tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) > most:
        raise invalid(name, value, expected)
    return tuple(_integer(name, item, 0, MAX_INT, expected) for item in value)


def token_biases(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Pairs (id, number) in the order of the ids, from a mapping or from such pairs. An id may be a string,
    as in JSON."""
    expected = (
        f"up to {MAX_BIASES} pairs {{token id: number from -{MAX_BIAS} to {MAX_BIAS}}} "
        "(suppress_tokens forbids tokens)"
    )
    if not isinstance(value, (Mapping, list, tuple)) or len(value) > MAX_BIASES:
        raise invalid(name, value, expected)
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise invalid(name, pair, expected)
        key, bias = pair
        if isinstance(key, str) and re.fullmatch("[0-9]{1,10}", key):
            key = int(key)
        token_id = _integer(name, key, 0, MAX_INT, expected)
        if token_id in biases:
            raise InvalidRequestError(f"{name}: the token id {token_id} appears twice")
        biases[token_id] = _real(name, bias, -MAX_BIAS, MAX_BIAS, expected)
    return tuple(sorted(biases.items()))


def top_count(name: str, value: object) -> int:
    """The number of tokens whose log probabilities are given."""
    return _integer(name, value, 0, MOST_ALTERNATIVES, f"None or an integer from 0 to {MOST_ALTERNATIVES}")


def check_flag(name: str, value: object, default: bool = False) -> bool:
    """``value`` as a bool, ``default`` for None; raises :class:`InvalidRequestError`."""
    if value is None:
        return default
    if not is_bool(value):
        raise invalid(name, value, "True or False")
    return bool(value)


def check_timeout(value: object) -> float | None:
    """A number of seconds; None for no limit. Raises :class:`InvalidRequestError`."""
    if value is None:
        return None
    return _real("timeout", value, 0.0, math.inf, "seconds, at least 0, or None")


def check_priority(value: object) -> int:
    """An integer, 0 for None; raises :class:`InvalidRequestError`."""
    return 0 if value is None else _integer("priority", value, -100, 100, "an integer from -100 to 100")


def check_thinking_budget(value: object) -> int | None:
    """The most tokens of thoughts; None for no limit. Raises :class:`InvalidRequestError`."""
    expected = f"an integer from 0 to {MAX_INT}, or None"
    return None if value is None else _integer("thinking_budget", value, 0, MAX_INT, expected)


def check_cache_salt(value: object) -> int:
    """The salt as a number for the core; 0 for None. Raises :class:`InvalidRequestError`."""
    if value is None:
        return 0
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_SALT_CHARACTERS:
        raise invalid("cache_salt", value, f"None, or 1 to {MOST_SALT_CHARACTERS} characters")
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") | 1


def strings(name: str, value: object) -> tuple[str, ...]:
    """Checks an option that is one string or several."""
    most = MOST_STOP_CHARACTERS if name == "stop" else _MAX_BREAKER_CHARACTERS
    expected = f"a string or up to {MOST_STOPS} strings, each of 1 to {most} characters"
    if name == "stop":
        expected += " (an empty one would stop everywhere)"
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or len(value) > MOST_STOPS:
        raise invalid(name, value, expected)
    for text in value:
        if not isinstance(text, str) or not 1 <= len(text) <= most:
            raise invalid(name, text, expected)
        if name != "stop" and any("\ud800" <= c <= "\udfff" for c in text):
            raise invalid(name, text, f"{expected}, of valid Unicode")
    return tuple(value)
