"""Formats Python values as short text for error messages."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

from gemlet.base.patterns import late_pattern

__all__ = ["asked_for", "reason_of", "show", "show_argument"]

_ADDRESS = late_pattern(r" at 0x[0-9A-Fa-f]+")
_BREAK = late_pattern(r"\s*\n\s*")


def show(value: object, limit: int = 80) -> str:
    """``repr(value)``, cut to about ``limit`` characters. Error messages use it to show text of a file or a
    caller. It never fails, even for a value whose ``repr`` fails.

    >>> show("a" * 100, limit=12)
    "'aaa...aaaa'"
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = limit
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except Exception:  # a foreign __repr__ may raise anything, and so may a huge integer
        text = f"<{type(value).__name__}>"
    text = _in_a_line(text)
    return text if len(text) <= 2 * limit else text[: 2 * limit] + "..."


def show_argument(value: object) -> str:
    """``repr(value)``, cut short, for error messages. It never fails, even for a value whose ``repr`` fails,
    and reads only the beginning of a long value.

    >>> show_argument([5] * 1_000_000)
    '[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5...'
    """
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = short.maxdeque = 80
    short.maxstring = short.maxother = short.maxlong = 400
    try:
        text = short.repr(value)
    except Exception:  # a foreign __repr__ may raise anything, and so may a huge integer
        text = f"<{type(value).__name__}>"
    text = _in_a_line(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _in_a_line(text: str) -> str:
    """The ``repr`` of an object in one line, because that of an array may have many lines.

    >>> _in_a_line("array([[1],\\n       [2]])")
    'array([[1], [2]])'
    """
    return _BREAK.sub(" ", text) if "\n" in text else text


def reason_of(problem: object) -> str:
    """An error message of another library, without the addresses of objects in memory, which an attacker must
    not learn.

    >>> reason_of(ValueError("cannot identify image file <_io.BytesIO object at 0x7f819caaf9c0>"))
    "'cannot identify image file <_io.BytesIO object>'"
    """
    return show_argument(_ADDRESS.sub("", str(problem)))


def listed(names: Sequence[str], most: int = 40) -> str:
    """The first ``most`` of ``names`` as text, and the number of the other names. The names may come from a
    file of a stranger.

    >>> listed(["a", "b", "c"], 2)
    "'a', 'b' and 1 more"
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def asked_for(values: Mapping[str, object]) -> str:
    """Keys and values in one line.

    >>> asked_for({"num_beams": 4, "typical_p": 0.9})
    'num_beams=4, typical_p=0.9'
    """
    return ", ".join(f"{name}={show(value)}" for name, value in values.items())
