"""Writes random tool calls in the ways in which models write them, also with mistakes, and changes texts at
random.

Names, keys and strings consist of words that occur only once, such as ``w12z``. So a test can find out if a
part of a reply was lost.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from support.replies import QUOTE

WORD = re.compile(r"w\d+z")
_BETWEEN = (
    *(
        "",
        "",
        " ",
        "\n",
        "\t",
        "'",
        '"',
        "\\",
        ",",
        ":",
        "=",
        ";",
        "&",
        "/",
        "|",
        "<|",
        "@",
        "`",
        "\u2019",
        "“",
        "é",
    ),
    *("世界", "😀", "{", "}", "[", "]", "(", ")", "\\n", '\\"'),
)
_OTHERS = (True, False, None, 0, 1, -3, 1.5, -2e-3, 1e20, 12345678901234567890)
_REPEATED: tuple[Any, ...] = (1, None, "x", [1, "y"], {"u": "q", "v": [2]})
_CHANGES = (
    *(QUOTE, '"', "'", "{", "}", "[", "]", "(", ")", ",", ":", "=", " ", "\\", "\n", "@", "null", "1"),
    *("<|tool_call>", "<turn|>", "<|channel>", "thought\n", "<|turn>", "```"),
)


class Values:
    """Draws random arguments for tool calls.

    Args:
        is_bare: if True, all strings have the same meaning without quotes.
    """

    def __init__(self, rng: random.Random, *, is_bare: bool = False) -> None:
        self._rng = rng
        self._is_bare = is_bare
        self._words = 0

    def arguments(self) -> dict[str, Any]:
        return {self._key(): self._value(0) for _ in range(self._rng.randrange(4))}

    def _word(self) -> str:
        self._words += 1
        return f"w{self._words}z"

    def _text(self) -> str:
        parts = []
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 3))):
            parts += [self._word(), self._rng.choice(_BETWEEN)]
        text = "".join(parts if self._rng.random() < 0.5 else parts[:-1])
        return re.sub("[,()]", "", text).strip() if self._is_bare else text

    def _key(self) -> str:
        word = self._rng.choice(("", "", "@", "$", "_")) + self._word()
        return word if self._is_bare or self._rng.random() < 0.85 else self._text() or word

    def _value(self, depth: int) -> Any:
        kind = self._rng.random()
        if depth < 3 and kind < 0.15:
            return [self._value(depth + 1) for _ in range(self._rng.randrange(4))]
        if depth < 3 and kind < 0.3:
            return {self._key(): self._value(depth + 1) for _ in range(self._rng.randrange(4))}
        return self._text() if kind < 0.6 else self._rng.choice((*_OTHERS, self._rng.randrange(10**6)))


class LooseWriter:
    """Writes tool calls as Gemma 4 does, with typical deviations from its format. Each string is written with
    one of ``quotes``. An empty element means no quotes. An element of two quotes means that the string begins
    with the first quote and ends with the second quote."""

    QUOTES = (
        *((QUOTE,), (QUOTE,), ('"',), ("'",), (QUOTE, '"'), (QUOTE, "'"), (QUOTE, '"', "'"), ("“",), ("`",)),
        *(("", QUOTE), ("",), (QUOTE + '"',), ('"' + QUOTE,), ("'" + QUOTE,)),
    )
    HEADS = ("call:", "call:", "call:", ":", "call::", "call ", "", "Call:", "tool_call:")

    def __init__(self, rng: random.Random, quotes: tuple[str, ...]) -> None:
        self._rng = rng
        self._quotes = quotes
        self._colon = rng.choice((":", ":", ":", ": ", "=", " = ", " : "))
        self._comma = rng.choice((",", ",", ", ", " , ", ",\n"))
        self._words = rng.choice((("true", "false", "null"), ("True", "False", "None")))
        self._quotes_keys = rng.random() < 0.2

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """A call, sometimes without its last bracket. A key may be written twice; its last value counts."""
        head, members, form = self._rng.choice(self.HEADS), self._members(arguments), self._rng.random()
        if form < 0.05:
            return f"{head}{name}({{{members}}})"
        opening, closing = self._rng.choice(("{}", "{}", "()"))
        return f"{head}{name}{opening}{members}{'' if form < 0.2 else closing}"

    def _members(self, members: dict[str, Any]) -> str:
        pairs = list(members.items())
        if pairs and self._rng.random() < 0.1:
            at = self._rng.randrange(len(pairs))
            pairs.insert(self._rng.randrange(at + 1), (pairs[at][0], self._rng.choice(_REPEATED)))
        return self._comma.join(self._key(key) + self._colon + self._value(value) for key, value in pairs)

    def _key(self, key: str) -> str:
        is_plain = re.fullmatch(r"[@$_]?\w+", key) and not self._quotes_keys
        return key if is_plain else self._string(key)

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, list):
            return "[" + self._comma.join(map(self._value, value)) + "]"
        if isinstance(value, dict):
            return "{" + self._members(value) + "}"
        if value is None or isinstance(value, bool):
            return self._words[2 if value is None else 0 if value else 1]
        return json.dumps(value)

    def _string(self, text: str) -> str:
        quote = self._rng.choice(self._quotes)
        if quote in ("", QUOTE) or (quote in "“`" and "\\" in text):
            return text if text and not quote else QUOTE + text + QUOTE
        first, last = quote[0], quote[1:] or {"“": "”"}.get(quote, quote)
        if quote.startswith(QUOTE):
            return QUOTE + text + quote[-1]
        if first in "\"'":
            text = text.replace("\\", "\\\\").replace(first, "\\" + first)
            text = text.replace("\n", "\\n").replace("\t", "\\t") if self._rng.random() < 0.5 else text
        return first + text + last


class PythonWriter:
    """Writes tool calls as models do that have no tokens for calls: as Python code or as JSON."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._quote = rng.choice(("'", '"', '"', "'''", '"""'))
        self._comma = rng.choice((",", ", ", " ,\n "))
        self._words = rng.choice((("true", "false", "null"), ("True", "False", "None")))
        self._is_json = rng.random() < 0.5

    def calls(self, calls: list[tuple[str, dict[str, Any]]]) -> str:
        """Several calls, in brackets or one on each line, and sometimes in a Markdown fence."""
        each = [self._call(name, arguments) for name, arguments in calls]
        text = f"[{', '.join(each)}]" if self._rng.random() < 0.6 else "\n".join(each)
        fence = self._rng.choice(("", "", "tool_code\n", "json\n", "\n", "python\n"))
        return f"```{fence}{text}\n```" if fence else text

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        if self._is_json:
            key = self._rng.choice(("parameters", "arguments"))
            return f'{{"name": "{name}", "{key}": {self._value(arguments)}}}'
        if all(re.fullmatch(r"[^\W\d]\w*", key) for key in arguments):
            members = (f"{key}={self._value(value)}" for key, value in arguments.items())
            return f"{name}({self._comma.join(members)})"
        return f"{name}(**{self._value(arguments)})"

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, list):
            return "[" + self._comma.join(map(self._value, value)) + "]"
        if isinstance(value, dict):
            members = (f"{self._string(key)}: {self._value(item)}" for key, item in value.items())
            return "{" + self._comma.join(members) + "}"
        if value is None or isinstance(value, bool):
            return self._words[2 if value is None else 0 if value else 1]
        return json.dumps(value)

    def _string(self, text: str) -> str:
        text = text.replace("\\", "\\\\").replace(self._quote[0], "\\" + self._quote[0])
        if len(self._quote) == 1:
            text = text.replace("\n", "\\n").replace("\t", "\\t")
        return self._quote + text + self._quote


def changed(rng: random.Random, text: str) -> str:
    """``text`` after a few random changes, which delete, add or repeat parts."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, kind = rng.randrange(len(text) + 1), rng.random()
        end = min(len(text), at + rng.randrange(4))
        if kind < 0.4:
            text = text[:at] + text[end:]
        elif kind < 0.8:
            text = text[:at] + rng.choice(_CHANGES) + text[at:]
        else:
            text = text[:at] + text[at:end] + text[at:]
    return text
