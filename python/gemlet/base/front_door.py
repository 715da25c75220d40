"""Gives every public function the same answer to a wrong call: :func:`public`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from gemlet.base.argument_types import wrong_argument
from gemlet.base.names import not_known
from gemlet.base.text import show
from gemlet.errors import GemletError, InvalidRequestError

__all__ = ["public"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def public(function: _Function) -> _Function:
    """Decorates a function of the public interface.

    If an argument has a default, None means that the argument is not given, because clients of the server
    send null for this.

    An unknown argument raises :class:`InvalidRequestError` with the name that is probably meant. An argument
    of a wrong type also raises :class:`InvalidRequestError`, instead of the error that Python raised inside.
    The traceback of gemlet's own errors ends at this function, because the frames below are internal.
    ``GEMLET_TRACEBACK=full`` in the environment keeps these frames.

    >>> @public
    ... def generate(prompt, *, max_tokens=256):
    ...     return max_tokens
    >>> generate("Hello", max_tokens=None)
    256
    >>> try:
    ...     generate("Hello", max_new_tokens=5)
    ... except InvalidRequestError as error:
    ...     print(error)
    generate() has no argument 'max_new_tokens'; did you mean max_tokens? It has prompt, max_tokens
    """
    is_coroutine = function.__code__.co_flags & _COROUTINE

    def prepared(
        arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if options:
            takes = _takes(checked)
            if not takes.all and not options.keys() <= takes.defaults.keys():
                name = next(name for name in options if name not in takes.defaults)
                raise _unknown(checked, name, list(takes.defaults))
            if any(value is None for value in options.values()):
                options = {n: v for n, v in options.items() if v is not None or takes.defaults.get(n) is None}
        for (
            value
        ) in arguments:  # a loop, because any() with a generator takes longer than some of the functions
            if value is None:
                defaults = _takes(checked).defaults.values()
                given = [d if v is None else v for d, v in zip(defaults, arguments, strict=False)]
                return (*given, *arguments[len(given) :]), options
        return arguments, options

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        try:
            arguments, options = prepared(arguments, options)
            if is_coroutine:
                return _later(function, checked, arguments, options)
            return function(*arguments, **options)
        except _JUDGED as error:
            raise _judged(error, checked, arguments, options)  # noqa: B904  it usually is the same error

    checked.__annotations__ = function.__annotations__  # wraps() of Python 3.14 copies fewer attributes
    return cast(_Function, checked)


_COROUTINE = 0x80  # inspect.CO_COROUTINE
_VARIABLE_KEYWORDS = 0x08  # inspect.CO_VARKEYWORDS


class _Takes:
    """The parameters of a public function: the default of each by name (None if it has none), and whether the
    function takes any other name too. :mod:`inspect` knows more, but importing it would slow a start."""

    def __init__(self, function: Any) -> None:
        function = function.__wrapped__
        options = getattr(function, "shown_defaults", None)  # set by gemlet.base.keyword_options
        if options is not None:
            function = function.__wrapped__
        code, defaults = function.__code__, function.__defaults__ or ()
        by_place = code.co_varnames[: code.co_argcount]
        by_name = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
        self.all = options is None and bool(code.co_flags & _VARIABLE_KEYWORDS)
        self.defaults = dict.fromkeys((*by_place, *by_name))
        self.defaults |= zip(by_place[len(by_place) - len(defaults) :], defaults, strict=True)
        self.defaults |= {**(function.__kwdefaults__ or {}), **(options or {})}


_takes = functools.cache(_Takes)  # computed in the first call that needs it, so that gemlet starts quickly


async def _later(
    function: Callable[..., Any],
    checked: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    try:
        return await function(*arguments, **options)
    except _JUDGED as error:
        raise _judged(error, checked, arguments, options)  # noqa: B904


# The errors that a wrong argument may raise.
_JUDGED = (
    *(GemletError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RuntimeError),
)


def _judged(
    error: Exception, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Exception:
    """The error that a public function raises instead of ``error``, which was raised inside."""
    if isinstance(error, GemletError):
        return error if os.environ.get("GEMLET_TRACEBACK") == "full" else _without_frames(error)
    wrong = wrong_argument(function, arguments, options)
    if wrong is None:
        return error
    found = InvalidRequestError(wrong)
    found.__suppress_context__ = True
    return found


_RUNS_TOOLS = (
    "chat() and achat() run functions; with a stream, run the calls that come as events yourself, and send "
    "their results as messages of the role tool"
)
_MEDIA = (
    'images, videos and sounds are parts of messages, {"type": "image", "image": ...}, or arguments of '
    "generate() and logits()"
)
# An argument of other libraries -> how to do the same with gemlet.
_OTHER_WAYS = {
    **dict.fromkeys(("images", "videos", "audio"), _MEDIA),
    "stream": "stream() and stream_chat() return the text piece by piece",
    "system": "a system prompt is the first message, of the role system",
    "system_prompt": "a system prompt is the first message, of the role system",
    "n": "call it once for each text, or call generate() or Model.chat() with n",
    "best_of": "generate() has it; a stream cannot choose among texts, because it returns tokens at once",
    "run_tools": _RUNS_TOOLS,
    "max_tool_rounds": _RUNS_TOOLS,
    "approve": _RUNS_TOOLS,
    "echo": "generate() and stream() have it",
    "n_gpu_layers": "this build of gemlet computes on CPUs only",
    "verbose": 'set the level of the logger "gemlet" instead',
}


def _unknown(function: Callable[..., Any], name: str, names: list[str]) -> InvalidRequestError:
    owner, _, own = function.__qualname__.rpartition(".")
    called = owner.rpartition(".")[2] if own == "__init__" else own
    if name in _OTHER_WAYS:
        return InvalidRequestError(f"{called}() has no argument {show(name)}; {_OTHER_WAYS[name]}")
    has = [known for known in names if known not in ("self", "cls")]
    return InvalidRequestError(f"{called}() has no argument {show(name)}{not_known(name, has, 'it has')}")


def _without_frames(error: GemletError) -> GemletError:
    """``error`` and the cause that gemlet gave it, without their tracebacks."""
    cause: BaseException | None = error
    while cause is not None and cause.__traceback__ is not None:
        cause.__traceback__ = None
        cause.__suppress_context__ |= cause is not error  # the context of ``error`` is the caller's
        cause = cause.__cause__
    return error
