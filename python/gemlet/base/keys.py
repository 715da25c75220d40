"""The keys of a JSON object, read one by one, each with a type and a range: :class:`Keys`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.text import show
from gemlet.errors import ConfigError

__all__ = ["Keys", "says_nothing"]

MAX_END_IDS = 64


def says_nothing(value: object) -> bool:
    """Whether ``value`` leaves its key unset: null, false, an empty string, list or object.

    >>> says_nothing(None), says_nothing([]), says_nothing({"bits": None}), says_nothing(0)
    (True, True, True, False)
    """
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    return value is None or value is False or value == "" or value == []


class Keys:
    """One JSON object and its place in the file. Reads check type and range, and their errors name the key.

    ``passed_over`` lists the keys that gemlet does not know and that change nothing. An object inside this
    one (:meth:`inner`) adds to the same list.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        where: str,
        prefix: str,
        defaults: Mapping[str, Any] | None = None,
        passed_over: list[str] | None = None,
    ) -> None:
        self.raw = raw
        self.where = where
        self.prefix = prefix
        self.defaults = {} if defaults is None else defaults
        self.passed_over: list[str] = [] if passed_over is None else passed_over

    def inner(self, raw: Mapping[str, Any], name: str, defaults: Mapping[str, Any] | None = None) -> Keys:
        """Reads the object ``raw``, which is the value of the key ``name`` in this object."""
        return Keys(raw, self.where, f"{self.prefix}{name}.", defaults, self.passed_over)

    def pass_over(self, key: str) -> None:
        """Adds ``key`` to the list ``passed_over``."""
        self.passed_over.append(f"{self.prefix}{key}")

    def label(self, key: str) -> str:
        return f"{self.where}: {self.prefix}{key}"

    def wrong(self, key: str, expected: str) -> ConfigError:
        got = f"is {show(self.get(key))}" if key in self.raw else "is missing"
        return ConfigError(f"{self.label(key)} {got}; expected {expected}")

    def get(self, key: str) -> Any:
        return self.raw.get(key, self.defaults.get(key))

    def refuse_unknown(
        self,
        ignored: frozenset[str],
        fixed: Mapping[str, tuple[Any, ...]],
        neutral: Mapping[str, float] | None = None,
    ) -> None:
        """Raises :class:`ConfigError` for a key that is neither in ``defaults`` nor in ``ignored``, and for a
        key of ``fixed`` whose value is not one of those in ``fixed``.

        An unknown key is passed over if its value is empty (:func:`says_nothing`) or equals the key's number
        in ``neutral``. A key of ``fixed`` that is null is passed over if ``fixed`` allows zero or false.
        """
        for key, value in self.raw.items():
            if key in fixed and value is None and not all(fixed[key]):
                self.pass_over(key)
            elif key in fixed:
                # type() too: 0 == False and 1.0 == 1 in Python
                if not any(type(value) is type(choice) and value == choice for choice in fixed[key]):
                    supported = " or ".join(show(c) for c in fixed[key])
                    raise self.wrong(key, f"{supported} (gemlet supports nothing else)")
            elif key not in self.defaults and key not in ignored:
                is_number = type(value) in (int, float)
                if says_nothing(value) or (is_number and neutral and neutral.get(key) == value):
                    self.pass_over(key)
                    continue
                raise ConfigError(
                    f"{self.where}: unknown key {show(self.prefix + key)} (value {show(value)}); expected "
                    "only keys gemlet knows, because any other may change what the model computes. If "
                    "another tool wrote it and it changes nothing, remove it from the file"
                )

    def integer(self, key: str, limit: int, low: int = 1) -> int:
        value = self.get(key)
        if type(value) is float and value.is_integer():  # 64.0, as some tools write integers
            value = int(value)
        if type(value) is not int or not low <= value <= limit:
            raise self.wrong(key, f"an integer from {low} to {limit}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def cap(self, key: str) -> float:
        """A soft cap of logits. Null means no cap and becomes 0.0."""
        return 0.0 if self.get(key) is None else self.number(key, 1e-3, 1e6)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not True and value is not False:
            raise self.wrong(key, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object or null")
        return value

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """A token id; None for null and for -1, which some tools write for "none"."""
        value = self.get(key)
        if value is None or (type(value) is int and value == -1):
            return None
        if type(value) is not int or not 0 <= value < vocab_size:
            raise self.wrong(key, f"a token id from 0 to {vocab_size - 1}, or null")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """The token ids of a key that has one id, a list of ids, or null for none; -1 means none as well. Ids
        outside the vocabulary are passed over, because the model never generates them."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        ids = [i for i in ids if not (type(i) is int and i == -1)]
        if len(ids) > MAX_END_IDS or any(type(i) is not int or i < 0 for i in ids):
            raise self.wrong(key, f"up to {MAX_END_IDS} token ids from 0 to {vocab_size - 1}")
        if any(i >= vocab_size for i in ids):
            self.pass_over(key)
        return tuple(i for i in ids if i < vocab_size)
