"""PEFT's patterns of module names, matched within a bound: a hostile pattern must not hang.

PEFT reads ``target_modules`` and the keys of ``rank_pattern`` and ``alpha_pattern`` as regular expressions.
Python's ``re`` tries one way through a pattern after the other, and ``(a+)+b`` has 2**n of them. Here all
are followed at once (Thompson 1968, "Regular expression search algorithm"): an integer holds, as bits, the
places of the name that the pattern can have got to, and every part of the pattern maps it to the next one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

__all__ = ["ModulePatterns", "PatternError"]

_MAX_PATTERN = 2000  # characters
_MAX_DEPTH = 20  # of groups
_MAX_REPEAT = 1000
_MAX_STEPS = 4_000_000  # of all matches together, about a second; real patterns take some hundred per name
_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
_CLASSES = {"d": string.digits, "w": string.ascii_letters + string.digits + "_", "s": string.whitespace}


class PatternError(ValueError):
    """A pattern that cannot be read, or takes too long."""


class _Text:
    """A module name: for every character the places where it stands, as bits; bit n is the end."""

    def __init__(self, name: str) -> None:
        self.end = 1 << len(name)
        self.all = self.end - 1
        self.where: dict[str, int] = {}
        for place, character in enumerate(name):
            self.where[character] = self.where.get(character, 0) | 1 << place
        self.after_dot = 1 | self.where.get(".", 0) << 1
        words = self.any_of(_CLASSES["w"])
        self.boundary = words ^ (words << 1)

    def any_of(self, characters: str) -> int:
        places = 0
        for character in characters:
            places |= self.where.get(character, 0)
        return places


_Step = Callable[[_Text, int], int]


class ModulePatterns:
    """Matches module names against patterns; all matches of one instance share a bound on their work.

    >>> patterns = ModulePatterns()
    >>> patterns.fullmatch(r".*\\.[02]\\..*(q|v)_proj", "model.layers.2.self_attn.q_proj")
    True
    >>> patterns.suffix_match("self_attn.q_proj", "model.layers.2.self_attn.q_proj")
    True
    """

    def __init__(self) -> None:
        self._compiled: dict[str, _Step] = {}
        self._texts: dict[str, _Text] = {}
        self._steps = 0

    def fullmatch(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches all of ``name``; :class:`PatternError` where it cannot be read."""
        text = self._text(name)
        return bool(self._compile(pattern)(text, 1) & text.end)

    def suffix_match(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches ``name`` from its start, or from behind one of its dots, to its end."""
        if _PLAIN.fullmatch(pattern):  # nothing to repeat: no trap for re, and models have thousands of these
            return re.fullmatch(rf"(?:.*\.)?{pattern}", name) is not None
        text = self._text(name)
        return bool(self._compile(pattern)(text, text.after_dot) & text.end)

    def _text(self, name: str) -> _Text:
        if name not in self._texts:
            self._texts[name] = _Text(name)
        return self._texts[name]

    def _compile(self, pattern: str) -> _Step:
        if pattern not in self._compiled:
            self._compiled[pattern] = _Parser(pattern, self._counted).parse()
        return self._compiled[pattern]

    def _counted(self, step: _Step) -> _Step:
        def run(text: _Text, places: int) -> int:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise PatternError("it takes too long to match")
            return step(text, places) if places else 0

        return run


class _Parser:
    """A pattern as one step; ``counted`` wraps every step that other steps may repeat."""

    def __init__(self, pattern: str, counted: Callable[[_Step], _Step]) -> None:
        if len(pattern) > _MAX_PATTERN:
            raise PatternError(f"it has {len(pattern)} characters, expected at most {_MAX_PATTERN}")
        self.rest = pattern
        self.length = len(pattern)
        self.counted = counted
        self.depth = 0

    def parse(self) -> _Step:
        step = self.alternatives()
        if self.rest:
            raise self.wrong("an unmatched )")
        return step

    def wrong(self, what: str) -> PatternError:
        return PatternError(f"{what} at character {self.length - len(self.rest)}, which gemlet does not read")

    def take(self, *starts: str) -> str:
        """The first of ``starts`` that comes next, taken; "" for none."""
        for start in starts:
            if self.rest.startswith(start):
                self.rest = self.rest[len(start) :]
                return start
        return ""

    def alternatives(self) -> _Step:
        branches = [self.sequence()]
        while self.take("|"):
            branches.append(self.sequence())
        if len(branches) == 1:
            return branches[0]

        def step(text: _Text, places: int) -> int:
            reached = 0
            for branch in branches:
                reached |= branch(text, places)
            return reached

        return self.counted(step)

    def sequence(self) -> _Step:
        steps = []
        while self.rest and self.rest[0] not in "|)":
            steps.append(self.repeated(self.atom()))

        def step(text: _Text, places: int) -> int:
            for part in steps:
                places = part(text, places)
            return places

        return self.counted(step)

    def repeated(self, inner: _Step) -> _Step:
        low, high = 1, 1
        if sign := self.take("*", "+", "?"):
            low, high = {"*": (0, _MAX_REPEAT), "+": (1, _MAX_REPEAT), "?": (0, 1)}[sign]
        elif count := re.match(r"\{(\d{0,4})(,?)(\d{0,4})\}", self.rest, re.ASCII):
            first, comma, last = count.groups()
            if not first and not last:
                raise self.wrong("a { that is not a count")
            low = int(first or 0)
            high = int(last or _MAX_REPEAT) if comma else low
            if not low <= high <= _MAX_REPEAT:
                raise self.wrong(f"the count {count.group()}")
            self.rest = self.rest[count.end() :]
        else:
            return inner
        self.take("?")  # lazy or not: the places reached are the same
        if self.rest[:1] in ("*", "+", "?", "{") and self.rest:
            raise self.wrong("a second repetition")

        def step(text: _Text, places: int) -> int:
            for _ in range(low):
                places = inner(text, places)
            fresh = places
            for _ in range(high - low):  # only from new places: each place is left once
                fresh = inner(text, fresh) & ~places
                if not fresh:
                    break
                places |= fresh
            return places

        return self.counted(step)

    def atom(self) -> _Step:
        if self.take("("):
            return self.group()
        if self.take("["):
            return self.character_class()
        if self.take("."):
            return self.counted(lambda text, places: (places & text.all) << 1)
        if self.take("^"):
            return lambda text, places: places & 1
        if self.take("$"):
            return lambda text, places: places & text.end
        if self.take(r"\b"):
            return lambda text, places: places & text.boundary
        if self.rest[0] in "*+?{":
            raise self.wrong("a repetition of nothing")
        return self.one_of(self.character())

    def group(self) -> _Step:
        kind = self.take("?:", "?=", "?!")
        if not kind and (named := re.match(r"\?P<\w+>", self.rest)):
            self.rest = self.rest[named.end() :]
        elif not kind and self.rest.startswith("?"):
            raise self.wrong("a group (?")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.wrong("a group too deep inside others")
        inner = self.alternatives()
        self.depth -= 1
        if not self.take(")"):
            raise self.wrong("a group without its end")
        if kind not in ("?=", "?!"):
            return inner

        def step(text: _Text, places: int) -> int:
            kept, place = 0, 1
            while place <= places:
                if places & place and (inner(text, place) != 0) == (kind == "?="):
                    kept |= place
                place <<= 1
            return kept

        return self.counted(step)

    def character(self) -> str:
        """The characters that the next one, or an escape, stands for."""
        if not self.take("\\"):
            taken, self.rest = self.rest[:1], self.rest[1:]
            return taken
        escaped = self.rest[:1]
        if not escaped or (escaped not in _CLASSES and (escaped.isalnum() or escaped == "_")):
            raise self.wrong(f"the escape \\{escaped}")
        self.rest = self.rest[1:]
        return _CLASSES.get(escaped, escaped)

    def character_class(self) -> _Step:
        negated = bool(self.take("^"))
        characters = ""
        while True:
            if not self.rest or (self.rest[0] == "]" and not characters):
                raise self.wrong("a [ without its end")
            if self.take("]"):
                break
            start = self.character()
            if len(start) == 1 and self.rest.startswith("-") and self.rest[1:2] != "]":
                self.take("-")
                end = self.character()
                if len(end) != 1 or not start <= end or ord(end) > 127:
                    raise self.wrong("a range")
                start = "".join(map(chr, range(ord(start), ord(end) + 1)))
            characters += start
        return self.one_of(characters, negated=negated)

    def one_of(self, characters: str, *, negated: bool = False) -> _Step:
        def step(text: _Text, places: int) -> int:
            wanted = text.any_of(characters)
            return (places & (text.all ^ wanted if negated else wanted)) << 1

        return self.counted(step)
