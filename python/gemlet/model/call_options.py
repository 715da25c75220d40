"""The types of the keyword arguments of a call: the options of the request and the options of generation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from gemlet.base.keyword_options import shows_options
from gemlet.chat.base import Tools
from gemlet.generation.options import OPTION_NAMES, GenerationConfig, GenerationOptions, ManyGenerationOptions
from gemlet.generation.tool_loop import MOST_ROUNDS, Approve

__all__ = [
    "ChatOptions",
    "GenerateOptions",
    "ManyChatOptions",
    "ManyTextOptions",
    "ManyToolOptions",
    "PromptOptions",
    "TextOptions",
    "ToolOptions",
    "generation_options",
    "takes_options",
]


class _OfImages(TypedDict, total=False):
    pan_and_scan: bool | Mapping[str, Any] | None
    image_tokens: int | None


class _RequestOptions(_OfImages, total=False):
    adapter: str | None
    timeout: float | None
    cache_salt: str | None
    priority: int | None


class _Forms(TypedDict, total=False):
    """Options that require a form of the generated text (:mod:`gemlet.generation.grammar_text`). A call has
    at most one of them."""

    json_schema: Mapping[str, Any] | str | type | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None


class _OfText(_RequestOptions, total=False):
    allow_control: bool
    echo: bool
    audio: Sequence[Any] | None
    images: Sequence[Any] | None
    videos: Sequence[Any] | None


class TextOptions(_OfText, _Forms, GenerationOptions, total=False):
    """Options of a call that returns one continuation."""


class ManyTextOptions(_OfText, _Forms, ManyGenerationOptions, total=False):
    """Options of a call that may return several continuations."""

    n: int | None


class GenerateOptions(ManyTextOptions, total=False):
    """Options of a call that returns when all continuations are complete."""

    best_of: int | None


class _OfChat(_RequestOptions, total=False):
    tools: Tools | None
    tool_choice: str | Mapping[str, Any] | None
    thinking: bool
    continue_final_message: bool
    load_audio_from_video: bool


class ChatOptions(_OfChat, _Forms, GenerationOptions, total=False):
    """Options of a call that returns one reply to a conversation."""

    thinking_budget: int | None


class ManyChatOptions(ChatOptions, total=False):
    """Options of a call that may return several replies."""

    n: int | None


class PromptOptions(_OfChat, total=False):
    """Options that affect the tokens of a prompt."""

    allow_control: bool


class ToolOptions(ChatOptions, total=False):
    """Options of a call that may run tools before it returns a reply."""

    run_tools: bool
    max_tool_rounds: int
    approve: Approve | None


class ManyToolOptions(ToolOptions, total=False):
    """Options of a call that returns when all replies are complete."""

    n: int | None
    best_of: int | None


_OF_FORMS = """\
json_schema: a JSON schema that the text has to fit: a mapping, JSON text or a model class of pydantic. This
    option and the next three need the extra "grammar"; give at most one of the four. A thought or a tool call
    may come before the text.
regex: a regular expression that the whole text has to match.
choice: a list of texts; the result is one of them.
grammar: a grammar in llguidance's Lark syntax that the text has to match.
"""
_DEFAULTS: dict[str, Any] = {
    "allow_control": True,
    "echo": False,
    "thinking": False,
    "continue_final_message": False,
    "load_audio_from_video": False,
    "run_tools": False,
    "max_tool_rounds": MOST_ROUNDS,
}
_ALL = (
    *(TextOptions, ManyTextOptions, GenerateOptions, PromptOptions),
    *(ChatOptions, ManyChatOptions, ToolOptions, ManyToolOptions),
)
_TYPES = {f"Unpack[{types.__name__}]": types for types in _ALL}
_MARK = "(the options of GenerationConfig)"


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``options`` of a call that are options of :class:`GenerationConfig` and are not None.

    >>> generation_options({"seed": 1, "stop": None, "adapter": "mine"})
    {'seed': 1}
    """
    return {name: value for name, value in options.items() if name in OPTION_NAMES and value is not None}


@functools.cache
def _described() -> list[str]:
    """The lines of a docstring that describe the options of a form and of GenerationConfig. The latter come
    from the docstring of GenerationConfig. Python 3.13 removes the indentation of docstrings; earlier
    versions keep it."""
    described = (GenerationConfig.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0].splitlines()
    indent = len(described[0]) - len(described[0].lstrip())
    return [*_OF_FORMS.splitlines(), *(line[indent:] for line in described)]


_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_options(function: _Function) -> _Function:
    """Makes help(), completion and :func:`inspect.signature` show every option of ``function``. The function
    takes ``**options: Unpack[ChatOptions]``, or another type of this module.

    In the docstring of the function, the description of these options replaces the line "(the options of
    GenerationConfig)".
    """
    types = next(_TYPES[hint] for hint in function.__annotations__.values() if hint in _TYPES)
    names = sorted(
        types.__annotations__, key=lambda name: OPTION_NAMES.index(name) if name in OPTION_NAMES else -1
    )
    if function.__doc__ and GenerationConfig.__doc__:  # python -OO drops docstrings
        before, mark, after = function.__doc__.partition(_MARK)
        indent = before[before.rfind("\n") + 1 :]
        if mark:
            function.__doc__ = before + f"\n{indent}".join(_described()) + after
    return shows_options(function, types, {name: _DEFAULTS.get(name) for name in names})
