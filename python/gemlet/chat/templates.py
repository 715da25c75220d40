"""Finds the format of gemlet that a model's chat template describes.

This module compares the text of the template and never runs it, because a template in a model file is a
program by a stranger. A known template is recognised by its SHA-256. For an unknown template of Gemma 4,
pieces of its text show the nearest revision. :attr:`Gemma4Format.is_exact` is then False, because details of
the prompts may differ.
"""

from __future__ import annotations

import os
from typing import Any, overload

from gemlet.base.files import open_regular, own_path, read_from_start
from gemlet.base.front_door import public
from gemlet.base.late import hashlib, log
from gemlet.base.patterns import late_pattern
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat
from gemlet.chat.gemma4 import Gemma4Format, Gemma4Revision
from gemlet.chat.gemma4_tools import SchemaStyle
from gemlet.chat.shieldgemma import SHIELD_GEMMA
from gemlet.chat.shieldgemma2 import SHIELD_GEMMA_2
from gemlet.chat.translategemma import TranslateGemmaFormat, split_template
from gemlet.errors import ModelFileError

__all__ = [
    "ALL_PROPERTIES",
    "CANONICAL",
    "INTERLEAVED",
    "LAUNCH",
    "TOOL_MESSAGES",
    "gemma4_format",
    "read_chat_template",
]

_FOR_TOOLS = "tool_use"  # the name of the template that transformers uses for prompts with tools
_ADDITIONAL = "additional_chat_templates"  # the folder for named templates
_MAX_BYTES = 1 << 20  # the most bytes of a template; the official templates have 12 to 19 kB

LAUNCH = Gemma4Revision(
    name="launch",
    think="",
    schema=SchemaStyle(nullable_first=True, bare_commas=True),
    continues="never",
    keeps_reasoning="none",
    thought_end="\n",
    awaits_results=False,
    empty_thought="always",
)
INTERLEAVED = Gemma4Revision(
    name="interleaved",
    think="\n",
    schema=SchemaStyle(nullable_first=True, bare_commas=True),
    continues="after results",
    keeps_reasoning="calls",
    thought_end="",
    awaits_results=False,
    empty_thought="always",
)
TOOL_MESSAGES = Gemma4Revision(
    name="tool messages",
    think="\n",
    schema=SchemaStyle(nullable_first=False, bare_commas=False),
    continues="always",
    keeps_reasoning="calls",
    thought_end="\n",
    awaits_results=True,
    empty_thought="new turn",
)
ALL_PROPERTIES = Gemma4Revision(
    name="tool messages, all properties",
    think="\n",
    schema=SchemaStyle(nullable_first=False, bare_commas=False, drops_names=False),
    continues="always",
    keeps_reasoning="calls",
    thought_end="\n",
    awaits_results=True,
    empty_thought="new turn",
    closes="text",
)
CANONICAL = Gemma4Revision(
    name="canonical, July 2026",
    think="\n",
    schema=SchemaStyle(nullable_first=False, bare_commas=False, drops_names=False, null="null"),
    continues="always",
    keeps_reasoning="all",
    thought_end="\n",
    awaits_results=True,
    empty_thought="new turn",
    closes="turn",
    resumes_thinking=True,
)

# The SHA-256 of a template without white space at its ends -> the revision of the template.
_KNOWN = {
    "58c66fdee4afa29786fa0925a4c3659c8ebc28a2db93da6ae479d7d5886ce48f": LAUNCH,
    "df900edd2fcee5defc268bee887666c43c976d973bb3e87355b52423a651bf91": INTERLEAVED,
    "1d35a24a2a63cc600c0cab43628a6df4cd3318e959b03307cf5f9f7e29ecf783": TOOL_MESSAGES,
    "94899c0f917d93f6fe81c95744d1e8ddab2d21d39228d2e4aec1fb2a25bff413": ALL_PROPERTIES,
    "33204f1acb5bd0002713e16a593847f24ceeafe711ed88bda2a352dc996a3373": ALL_PROPERTIES,  # E2B and E4B
    "36e3a42e5cf14cd0020e72d92e1fdd9970f59b82170e421f0cbe1bb42bead3f0": ALL_PROPERTIES,  # images in results
    "2f1b4d75d067bae3fe44e676721c7f077d243bc007156cb9c2f8b5836613d082": ALL_PROPERTIES,  # E2B and E4B
    "6a1015c47ccfcfa67c3b772385bccee357a4d37c3cda37bd202e9047f391ab82": CANONICAL,
    "603a42db292c25278e9b23d94c7abbe77453f13e26a053c43c5c2f900b4136f7": CANONICAL,  # E2B and E4B
}
# The SHA-256 of the templates of Gemma 1 to 3n without white space at their ends, and of FunctionGemma's
# template unchanged. The templates of Gemma 3 and 3n exist with line breaks in their strings and with \\n
# instead.
_PUBLISHED = frozenset(
    (
        "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",  # Gemma 1 and 2
        "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29",  # Gemma 3
        "86327804b5430b642274fe55ba95199e91cf7eca7b1e1240ca5469f23839e223",  # Gemma 3
        "9cae32b35b45454e9bd3673b4011701b77d38843622ab9b6e3f930bc503cf28a",  # Gemma 3n
        "3ff5ef9073d6921dc33cd9217b353eb0bd88f09bea6421b5df1451a325b23c5e",  # Gemma 3n
        "db61fb01017bd82401d3ffca4f8e066cd56ff6d38d2a30c4058770c0bf7ab49b",  # FunctionGemma
    )
)
# The SHA-256 of the templates of ShieldGemma and ShieldGemma 2, without white space at the ends of the lines.
# For TranslateGemma, the SHA-256 of the part of the template after the languages.
_SHIELD_GEMMA = frozenset(("2c297ce82796105e7bbf4b0424a75107bd6d9e0553a25f140df0bcffa82ee5c5",))
_SHIELD_GEMMA_2 = frozenset(("c5591cdb459d0d3bc9ae2932ebb5e5b5014582e0e361dc4c0ab3a8ed3be1ee0e",))
_TRANSLATE_GEMMA = frozenset(("e85d2dd69710537c5b0bae1f3a6501863fa0b875775473c18eae587f23cbc747",))
# A piece of text -> the revision since which all templates have this piece. The latest revision is first. The
# pieces are names of variables, because these do not depend on the indentation of a template.
_TELLING = (
    ("continues_into_next", CANONICAL),
    ("captured_content", ALL_PROPERTIES),
    ("format_tool_response_block", TOOL_MESSAGES),
    ("last_user_message", INTERLEAVED),
)
_EMPTY_THOUGHT = late_pattern(r"<\|channel>thought(?:\\n|\n)<channel\|>")


@overload
def gemma4_format(template: None = None, *, per_layer_inputs: bool = False) -> Gemma4Format: ...
@overload
def gemma4_format(template: str | None, *, per_layer_inputs: bool = False) -> Gemma4Format | None: ...
@public
def gemma4_format(template: str | None = None, *, per_layer_inputs: bool = False) -> Gemma4Format | None:
    """The format of Gemma 4 that ``template`` describes.

    Args:
        template: the text of the model's chat template. None stands for the latest revision that gemlet
        knows. per_layer_inputs: whether the model is an E2B or E4B, whose prompts do not end in an empty
        thought. It
            has an effect only without a template.

    Returns:
        The format, or None if the text is not a template of Gemma 4. For a template of Gemma 4 that gemlet
        does not know, this is the nearest revision, and ``is_exact`` is False.

    >>> gemma4_format("{{ messages }}") is None
    True
    >>> gemma4_format(per_layer_inputs=True).render([{"role": "user", "content": "Hi"}])
    '<bos><|turn>user\\nHi<turn|>\\n<|turn>model\\n'
    """
    if template is None:
        return Gemma4Format(CANONICAL, not per_layer_inputs)

    empty_thought = _EMPTY_THOUGHT.search(template) is not None
    known = _KNOWN.get(_digest(template.strip()))
    if known is not None:
        return Gemma4Format(known, empty_thought)
    if "<|turn>" not in template or "<turn|>" not in template:
        return None
    nearest = next((revision for piece, revision in _TELLING if piece in template), LAUNCH)
    return Gemma4Format(nearest, empty_thought, is_exact=False)


def is_published_template(template: str) -> bool:
    """Whether ``template`` was published with Gemma 1 to 3n or FunctionGemma.

    >>> is_published_template("{{ messages }}")
    False
    """
    return bool(_PUBLISHED.intersection((_digest(template), _digest(template.strip()))))


def special_format(template: str) -> ChatFormat | None:
    """The format of ShieldGemma, ShieldGemma 2 or TranslateGemma, if ``template`` is the template of that
    model; otherwise None.

    >>> special_format("{{ messages }}") is None
    True
    """
    lines = _digest("\n".join(line.strip() for line in template.strip().splitlines()))
    if lines in _SHIELD_GEMMA:
        return SHIELD_GEMMA
    if lines in _SHIELD_GEMMA_2:
        return SHIELD_GEMMA_2
    languages, rest = split_template(template)
    return TranslateGemmaFormat(languages) if languages and _digest(rest) in _TRANSLATE_GEMMA else None


def _digest(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()


@public
def read_chat_template(folder: str | os.PathLike[str]) -> str | None:
    """The text of the chat template in a Hugging Face folder; None if the folder has no template.

    The template comes from the first of these files that has one: ``chat_template.jinja``,
    ``additional_chat_templates/default.jinja``, ``chat_template.json``, ``processor_config.json``,
    ``tokenizer_config.json``. If a file has several named templates, the result is the template called
    "default", or the only one. A GGUF file has its template under the key ``tokenizer.chat_template``
    instead.

    Raises:
        ModelFileError: a file exists but cannot be read, is not UTF-8, or is too large. Or a file has several
            named templates, but none is called "default".

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open(os.path.join(folder, "chat_template.jinja"), "w") as file:
    ...         _ = file.write("{{ messages }}")
    ...     print(read_chat_template(folder))
    {{ messages }}
    """
    folder = own_path(os.fspath(folder))
    named = _named_files(folder)
    found = _default_template(folder, named)
    if found is None:
        chosen = _default(named, os.path.join(folder, _ADDITIONAL))
        return None if chosen is None else read_template_file(chosen)
    if _FOR_TOOLS in named:
        _pass_over_tools(named[_FOR_TOOLS])
    return found


def _default_template(folder: str, named: dict[str, str]) -> str | None:
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.lexists(path):
        return read_template_file(path)
    if "default" in named:
        return read_template_file(named["default"])
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            found = _default(read_json_object(path, error=ModelFileError).get("chat_template"), path)
            if found is not None:
                return found
    return None


def _named_files(folder: str) -> dict[str, str]:
    """The templates that transformers saves beside the one called default: name -> path."""
    place = os.path.join(folder, _ADDITIONAL)
    try:
        names = [name for name in sorted(os.listdir(place)) if name.endswith(".jinja")]
    except OSError:  # there is no such folder
        return {}
    return {name.removesuffix(".jinja"): os.path.join(place, name) for name in names}


def _pass_over_tools(path: str) -> None:
    log.warning(
        "%s: the model has a chat template %r for prompts with tools; gemlet uses the template called "
        "default for all prompts. If prompts have tools, give the text of the other with chat_template=...",
        path,
        _FOR_TOOLS,
    )


def read_template_file(path: str) -> str:
    """The text of the file ``path``. The errors are those of :func:`read_chat_template`."""
    try:
        with open_regular(path) as file:
            data = read_from_start(file.fileno(), _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ModelFileError(f"{path}: larger than {_MAX_BYTES} bytes; expected a smaller chat template")
        # Line breaks are converted as when Python reads a text file.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as problem:
        raise ModelFileError(f"{path}: not UTF-8 at byte {problem.start}; expected a chat template") from None
    except OSError as problem:
        raise ModelFileError(f"{path}: cannot be read: {problem.strerror}") from None


def _default(value: Any, path: str) -> str | None:
    """The default template in ``value``, the ``chat_template`` of tokenizer_config.json. ``value`` is a text
    or several texts with names. None if it is empty."""
    if isinstance(value, list) and all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in value):
        value = {entry["name"]: entry.get("template") for entry in value}
    if isinstance(value, dict) and len(value) > 1 and "default" not in value:
        raise ModelFileError(
            f"{path}: chat_template has {show(', '.join(value))}, but no template called default; choose one "
            "of these and give its text with chat_template=..."
        )
    if isinstance(value, dict):
        if len(value) > 1 and _FOR_TOOLS in value:
            _pass_over_tools(path)
        value = value.get("default", next(iter(value.values()), None))
    if not value:
        return None
    if not isinstance(value, str) or len(value) > _MAX_BYTES:
        raise ModelFileError(
            f"{path}: chat_template is {show(value)}; expected a text of up to {_MAX_BYTES} characters, or a "
            "list of such texts with their names. Give a template with chat_template=..."
        )
    return value
