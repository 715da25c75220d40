"""Matches PEFT's patterns of module names in bounded time, because the pattern in a file may be hostile.

PEFT reads ``target_modules`` and the keys of ``rank_pattern`` and ``alpha_pattern`` as regular expressions.
Python's ``re`` tries one path through a pattern after the other, and a pattern such as ``(a+)+b`` has 2**n
paths. This module uses Python's own parser for the pattern, but follows all paths at once. The set of places
in the name that the pattern can have reached is an integer with one bit for each place. Each node of the
pattern maps this set to the next set.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from gemlet.base.patterns import late_pattern

__all__ = ["ModulePatterns", "PatternError"]

_MAX_PATTERN = 2000  # characters
_MAX_STEPS = 1_000_000  # steps for all matches, about 3 seconds; a real pattern takes 150 per name
_CATEGORIES = {"DIGIT": late_pattern(r"\d"), "WORD": late_pattern(r"\w"), "SPACE": late_pattern(r"\s")}
_PLAIN = late_pattern(r"[\w.\-]*", re.ASCII)
# The parser of re: the module has this name since Python 3.11.
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


class PatternError(ValueError):
    """A pattern is wrong, has a part that gemlet does not support, or takes too long to match."""


class _Name:
    """A module name: for each character, the positions where it occurs, as bits."""

    def __init__(self, name: str) -> None:
        self.length = len(name)
        self.all = (1 << len(name)) - 1
        self.where: dict[str, int] = {}
        for place, character in enumerate(name):
            self.where[character] = self.where.get(character, 0) | 1 << place
        words = self.places(lambda character: _CATEGORIES["WORD"].fullmatch(character) is not None)
        boundary, end = words ^ (words << 1), self.all + 1
        self.anchors = {
            **dict.fromkeys(("AT_BEGINNING", "AT_BEGINNING_STRING"), 1),
            **dict.fromkeys(("AT_END", "AT_END_STRING"), end),
            "AT_BOUNDARY": boundary,
            "AT_NON_BOUNDARY": boundary ^ (2 * end - 1),
        }

    def places(self, wanted: Callable[[str], bool]) -> int:
        found = 0
        for character, places in self.where.items():
            found |= places if wanted(character) else 0
        return found


class ModulePatterns:
    """Matches module names against patterns. One limit on the number of steps holds for all matches of an
    instance.

    >>> patterns = ModulePatterns()
    >>> patterns.fullmatch(r".*\\.[02]\\..*(q|v)_proj", "model.layers.2.self_attn.q_proj")
    True
    >>> patterns.suffix_match("self_attn.q_proj", "model.layers.2.self_attn.q_proj")
    True
    """

    def __init__(self) -> None:
        self._parsed: dict[str, Any] = {}
        self._names: dict[str, _Name] = {}
        self._steps = 0
        self._any_case = False  # whether the part that is being matched ignores case

    def fullmatch(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches all of ``name``."""
        self._any_case = bool(self._parse(pattern).state.flags & re.IGNORECASE)
        try:
            return self._matches(pattern, name, 1)
        finally:
            self._any_case = False

    def suffix_match(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches all of ``name``, or all of the part after one of its dots."""
        if _PLAIN.fullmatch(pattern):  # re is quick and safe for such patterns, and some files have thousands
            return re.fullmatch(rf"(?:.*\.)?{pattern}", name) is not None
        if self._parse(pattern).state.flags & re.IGNORECASE:  # PEFT puts a prefix before the pattern
            raise PatternError(
                "it sets a flag, which is possible only at the start of a pattern of whole names"
            )
        return self._matches(pattern, name, 1 | self._name(name).where.get(".", 0) << 1)

    def _matches(self, pattern: str, name: str, starts: int) -> bool:
        text = self._name(name)
        return bool(self._sequence(self._parse(pattern), text, starts) >> text.length)

    def _name(self, name: str) -> _Name:
        if name not in self._names:
            self._names[name] = _Name(name)
        return self._names[name]

    def _parse(self, pattern: str) -> Any:
        if pattern not in self._parsed:
            if len(pattern) > _MAX_PATTERN:
                raise PatternError(f"it has {len(pattern)} characters, expected at most {_MAX_PATTERN}")
            self._count(5 * len(pattern))
            try:
                with warnings.catch_warnings():  # about syntax that will change its meaning in a later Python
                    warnings.simplefilter("ignore")
                    parsed = _parser.parse(pattern)
            except (re.error, RecursionError, OverflowError) as problem:
                raise PatternError(f"it cannot be read ({problem})") from None
            if parsed.state.flags & ~re.IGNORECASE != re.UNICODE:
                raise PatternError("it sets flags other than (?i), which gemlet does not read")
            self._parsed[pattern] = parsed
        return self._parsed[pattern]

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise PatternError("it takes too long to match")

    def _sequence(self, nodes: Any, name: _Name, places: int) -> int:
        for operation, argument in nodes:
            if not places:
                return 0
            places = self._node(operation.name, argument, name, places)
        return places

    def _node(self, operation: str, argument: Any, name: _Name, places: int) -> int:
        """The places where a node of the pattern can end if it begins at ``places``. Bit n stands for the
        place before character n."""
        self._count(1)
        if operation == "LITERAL":
            return (places & self._of(chr(argument), name)) << 1
        if operation == "ANY":
            return (places & name.all) << 1
        if operation == "NOT_LITERAL":
            return (places & ~self._of(chr(argument), name) & name.all) << 1
        if operation == "IN":
            self._count(len(argument) * len(name.where))
            cases = self._cases
            for kind, value in argument:
                if kind.name in ("LITERAL", "RANGE"):
                    cases(chr(value[1] if kind.name == "RANGE" else value))  # raises
            return (places & name.places(lambda one: _is_one(cases(one), argument))) << 1
        if operation == "AT":
            return places & name.anchors[argument.name]
        if operation == "BRANCH":
            reached = 0
            for branch in argument[1]:
                reached |= self._sequence(branch, name, places)
            return reached
        if operation == "SUBPATTERN" and not (argument[1] | argument[2]) & ~re.IGNORECASE:
            outside = self._any_case
            self._any_case = bool(argument[1] or (outside and not argument[2]))  # flags on, flags off
            reached = self._sequence(argument[3], name, places)
            self._any_case = outside
            return reached
        if operation in ("ASSERT", "ASSERT_NOT") and argument[0] > 0:  # looks ahead
            wanted = operation == "ASSERT"
            each = (1 << place for place in range(name.length + 1) if places >> place & 1)
            return sum(start for start in each if bool(self._sequence(argument[1], name, start)) == wanted)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, nodes = argument
            return self._repeat(least, most, nodes, name, places)
        raise PatternError(f"its part {operation.lower()} is one that gemlet does not match")

    def _cases(self, character: str) -> str:
        """The characters that match ``character``: itself, or if case is ignored, its lower and upper
        case."""
        if not self._any_case:
            return character
        if not character.isascii():  # re has special rules for such characters
            raise PatternError("it ignores case, which gemlet does only for ASCII characters")
        return character.lower() + character.upper()

    def _of(self, character: str, name: _Name) -> int:
        """The places in the name where this character occurs."""
        found = 0
        for one in self._cases(character):
            found |= name.where.get(one, 0)
        return found

    def _repeat(self, least: int, most: int, nodes: Any, name: _Name, places: int) -> int:
        # Each repetition moves forward or stays, so more repetitions than this reach no new place.
        enough = name.length + 2
        for _ in range(min(least, enough)):
            places = self._sequence(nodes, name, places)
        fresh = places
        for _ in range(min(most - least, enough)):  # only places that are new are followed further
            fresh = self._sequence(nodes, name, fresh) & ~places
            if not fresh:
                break
            places |= fresh
        return places


def _is_one(cases: str, choices: Any) -> bool:
    """Whether a character is in the set ``choices``, which comes from re's parser. ``cases`` are the
    character itself and, if case is ignored, its other case."""
    found, negated = False, False
    for operation, value in choices:
        if operation.name == "NEGATE":  # always the first
            negated = True
        elif operation.name == "LITERAL":
            found |= chr(value) in cases
        elif operation.name == "RANGE":
            found |= any(value[0] <= ord(one) <= value[1] for one in cases)
        else:
            category = value.name.removeprefix("CATEGORY_")
            inside = _CATEGORIES[category.removeprefix("NOT_")].fullmatch(cases[0]) is not None
            found |= inside != category.startswith("NOT_")
    return found != negated
