"""Regular expressions that are compiled at their first use: :func:`late_pattern`. Otherwise importing gemlet
would compile about a hundred of them, and generating text needs only a few."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

__all__ = ["late_pattern"]


class _Pattern:
    """Stands for a compiled pattern, which :func:`re.compile` makes at the first use of an attribute.

    >>> _Pattern(r"\\d+").sub("#", "from 1 to 12")
    'from # to #'
    """

    def __init__(self, *given: Any) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        found = getattr(re.compile(*self._given), name)  # re caches compiled patterns
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    from re import compile as late_pattern
else:
    late_pattern = _Pattern
