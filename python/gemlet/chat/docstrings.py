"""Splits a docstring into its texts about the function, the arguments and the result: :func:`read_docstring`.

The styles of Google, NumPy and Sphinx are supported. Each has its marks: ``Args:``, a line of dashes under
``Parameters``, or ``:param name:``. All text without such a mark is the description of the function.
"""

from __future__ import annotations

from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, record

__all__ = ["Docstring", "read_docstring"]

_ARGUMENTS = ("args", "arguments", "parameters", "params", "keyword args", "keyword arguments")
_OTHER_ARGUMENTS = ("other parameters",)
_RETURNS = ("returns", "return", "yields", "yield")
_OTHERS = ("raises", "raise", "attributes", "warns")
# Headers that end the section before them in NumPy's style. In Google's style they are ordinary text.
_NUMPY_OTHERS = ("examples", "example", "notes", "note", "see also", "references", "warnings", "methods")
_GOOGLE_HEADER = late_pattern(r"(\s*)([A-Za-z ]+):\s*")
_DASHES = late_pattern(r"\s*-{3,}\s*")
# name: text, name (type): text, *names: text
_GOOGLE_ENTRY = late_pattern(r"(\s*)\*{0,2}(\w+)(?:\s*\((?:[^()]|\([^()]*\))*\))?\s*:(?:\s+(.*)|\s*)")
_NUMPY_ENTRY = late_pattern(r"\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*(?=\s*(?::|$))")
_FIELD = late_pattern(r"\s*[:@](\w+)(?:\s+([^:]*?))?\s*:(?:\s+(.*)|\s*)")
_FIELD_ARGUMENTS = ("param", "parameter", "arg", "argument", "key", "keyword", "kwarg")


@record(frozen=True)
class Docstring:
    """The parts of a docstring. ``arguments`` maps the name of an argument to its text. ``returns`` is the
    text about the result, and empty if there is none.

    >>> Docstring("Adds.", {"x": "The first."}).arguments["x"]
    'The first.'
    """

    description: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    returns: str = ""


@record
class _Section:
    name: str
    lines: list[str] = field(default_factory=list)
    is_numpy: bool = False


def read_docstring(text: str) -> Docstring:
    """The parts of the docstring ``text``, from which :func:`inspect.getdoc` has removed the indentation.

    >>> read_docstring("Adds.\\n\\nArgs:\\n    x: The first\\n        of two.\\n    y: The second.").arguments
    {'x': 'The first of two.', 'y': 'The second.'}
    """
    sections = [_Section("")]
    fields: list[tuple[str, str, list[str]]] = []  # Sphinx's fields: kind, argument, lines
    lines = text.split("\n")
    skip = False
    for index, line in enumerate(lines):
        if skip:
            skip = False
            continue
        following = lines[index + 1] if index + 1 < len(lines) else ""
        header = _numpy_header(line, following)
        if header:
            sections.append(_Section(header, is_numpy=True))
            skip = True
        elif header := _google_header(line):
            sections.append(_Section(header))
        elif (match := _FIELD.fullmatch(line)) and _is_field(match[1], match[2]):
            fields.append((match[1].lower(), match[2] or "", [match[3] or ""]))
        elif fields:
            fields[-1][2].append(line)
        else:
            sections[-1].lines.append(line)
    arguments: dict[str, str] = {}
    returns = ""
    for section in sections[1:]:
        if section.name in (*_ARGUMENTS, *_OTHER_ARGUMENTS):
            read = _numpy_entries if section.is_numpy else _google_entries
            arguments |= read(section.lines)
        elif section.name in _RETURNS:
            returns = returns or _returned(section)
    for kind, argument, its_lines in fields:
        words = " ".join(filter(None, (line.strip() for line in its_lines)))
        if kind in _FIELD_ARGUMENTS:
            arguments[argument.split()[-1].lstrip("*")] = words
        elif kind in _RETURNS:
            returns = returns or words
    return Docstring("\n".join(sections[0].lines).strip(), arguments, returns)


def _google_header(line: str) -> str:
    match = _GOOGLE_HEADER.fullmatch(line)
    name = match[2].strip().lower() if match else ""
    return name if name in (*_ARGUMENTS, *_RETURNS, *_OTHERS) and not line[:1].isspace() else ""


def _numpy_header(line: str, following: str) -> str:
    name = line.strip().lower()
    known = (*_ARGUMENTS, *_OTHER_ARGUMENTS, *_RETURNS, *_OTHERS, *_NUMPY_OTHERS)
    return name if name in known and _DASHES.fullmatch(following) else ""


def _is_field(kind: str, argument: str | None) -> bool:
    kind = kind.lower()
    if kind in _FIELD_ARGUMENTS:
        return bool(argument)
    return kind in (*_RETURNS, *_OTHERS, "type", "rtype", "except", "exception") or bool(
        argument and kind == "raises"
    )


def _google_entries(lines: list[str]) -> dict[str, str]:
    """The texts of entries ``name (type): text``. The text of an entry continues in the lines below that are
    indented more."""
    found: dict[str, list[str]] = {}
    name = ""
    indent: int | None = None
    for line in filter(str.strip, lines):
        own = len(line) - len(line.lstrip())
        match = _GOOGLE_ENTRY.fullmatch(line)
        if match and (indent is None or own <= indent):
            indent = own
            name = match[2]
            found[name] = [match[3] or ""]
        elif indent is not None and own == 0 < indent:
            break  # text below the section
        elif name:
            found[name].append(line)
    return {name: " ".join(filter(None, map(str.strip, texts))) for name, texts in found.items()}


def _numpy_entries(lines: list[str]) -> dict[str, str]:
    """The texts of entries ``name : type``. The text of an entry is in the indented lines below."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in filter(str.strip, lines):
        match = None if line[:1].isspace() else _NUMPY_ENTRY.match(line)
        if match:
            names = [name.strip().lstrip("*") for name in match[0].split(",")]
            for name in names:
                found[name] = []
        elif line[:1].isspace():
            for name in names:
                found[name].append(line.strip())
    return {name: " ".join(texts) for name, texts in found.items()}


def _returned(section: _Section) -> str:
    if not section.is_numpy:
        return "\n".join(section.lines).strip()
    inner = [line.strip() for line in section.lines if line[:1].isspace() and line.strip()]
    return " ".join(inner) if inner else "\n".join(section.lines).strip()
