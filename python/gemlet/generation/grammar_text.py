"""Turns a caller's JSON schema, regex, choices or grammar into llguidance's Lark: :func:`grammar_text`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.records import record
from gemlet.base.strict_json import parse_json_object
from gemlet.base.text import show
from gemlet.chat.base import CallGrammar
from gemlet.errors import InvalidRequestError
from gemlet.generation.closed_schema import closed

__all__ = ["FORMS", "MOST_BYTES", "GrammarText", "call_text", "grammar_text"]

FORMS = ("json_schema", "regex", "choice", "grammar")  # the arguments; a call has at most one of them
MOST_BYTES = 256 << 10  # of a JSON schema, an expression, all choices together or a grammar
MOST_CHOICES = 10_000

# At most one space separates the parts of JSON. With free white space, a model may write spaces forever.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# The model chooses among all tokens that fit. Otherwise llguidance itself would encode text that has no
# alternative.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'


@record(frozen=True)
class GrammarText:
    """A grammar in Lark.

    Attributes:
        name: the argument that the grammar comes from, for error messages.
        lark: the text of the grammar.
        control: the control tokens that the grammar names.
    """

    name: str
    lark: str
    control: tuple[str, ...] = ()


def grammar_text(options: Mapping[str, Any]) -> GrammarText | None:
    """The grammar of a call's ``options``; None if they have none of :data:`FORMS`.

    Raises:
        InvalidRequestError: several forms are given, or the given form has a wrong type, is empty or is
            too long.

    >>> grammar_text({"choice": ["yes", "no"], "regex": None})
    GrammarText(name='choice', lark='start: /yes|no/\\n%llguidance {"no_forcing": true}\\n', control=())
    """
    given = [name for name in FORMS if options.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequestError(f"{' and '.join(given)} are given; expected only one of them")
    name, value = given[0], options[given[0]]
    lark = {"json_schema": _of_schema, "regex": _of_regex, "choice": _of_choice, "grammar": _of_lark}[name](
        value
    )
    return GrammarText(name, lark + _NO_FORCING)


def call_text(grammar: CallGrammar) -> GrammarText:
    """The grammar of a reply that has to call tools.

    >>> call_text(CallGrammar('start: "[now()]"', ())).name
    'tool_choice'
    """
    return GrammarText("tool_choice", _checked("tool_choice", grammar.lark) + _NO_FORCING, grammar.control)


def _of_schema(value: object) -> str:
    expected = "a JSON schema: a mapping, its JSON text or a model class of pydantic"
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        value = value.model_json_schema()  # type: ignore[attr-defined]
    if isinstance(value, str):
        schema = parse_json_object(
            _checked("json_schema", value).encode(), where="json_schema", error=InvalidRequestError
        )
    elif isinstance(value, Mapping):
        schema = dict(value)
    else:
        raise InvalidRequestError(f"json_schema: got {show(value)}, expected {expected}")
    own = schema.get("x-guidance", {})
    if not isinstance(own, Mapping):
        raise InvalidRequestError(f"json_schema: x-guidance is {show(own)}, expected llguidance's options")
    try:
        read = closed(json.loads(json.dumps(schema, allow_nan=False)))
        text = json.dumps({**read, "x-guidance": {**_JSON, **own}}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise InvalidRequestError(f"json_schema: it is not JSON: {problem}; expected {expected}") from None
    return "start: %json " + _checked("json_schema", text)


def _of_regex(value: object) -> str:
    return f"start: /{_in_slashes(_text('regex', value))}/"


def _in_slashes(pattern: str) -> str:
    """``pattern`` for use between slashes in Lark: slashes and line breaks are escaped."""
    out = []
    escaped = False
    for character in pattern:
        if character == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    if escaped:
        raise InvalidRequestError("regex: it ends with a backslash; expected a character after it")
    return "".join(out)


def _of_choice(value: object) -> str:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRequestError(f"choice: got {show(value)}, expected a list of texts")
    if not 1 <= len(value) <= MOST_CHOICES:
        raise InvalidRequestError(f"choice: {len(value)} texts, expected 1 to {MOST_CHOICES}")
    texts = [_text(f"choice[{i}]", one) for i, one in enumerate(value)]
    _checked("choice", "".join(texts))
    return f"start: /{'|'.join(''.join(map(_escaped, text)) for text in texts)}/"


def _escaped(character: str) -> str:
    plain = character.isascii() and character.isalnum()
    return character if plain else f"\\x{{{ord(character):x}}}"


def _of_lark(value: object) -> str:
    return _text("grammar", value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name}: got {show(value)}, expected a text")
    if not value:
        raise InvalidRequestError(f"{name}: it is empty, expected at least one character")
    return _checked(name, value)


def _checked(name: str, text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InvalidRequestError(
            f"{name}: character {error.start} is the lone surrogate U+{code:04X}"
        ) from None
    if size > MOST_BYTES:
        raise InvalidRequestError(f"{name}: {size} bytes, expected at most {MOST_BYTES}")
    return text
