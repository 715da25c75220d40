"""Runs a chat template that came with a model file: :func:`run_template`.

A template is a program by a stranger. It runs in Jinja's immutable sandbox, and the sandbox runs in a worker
process (:mod:`gemlet.chat.template_worker`). For each request, the worker may use less than a second of CPU
time and a limited amount of memory. So an endless loop, a number of a billion digits or any other attack
costs no more than that, and never ends gemlet's own process. The worker starts with the first template and
also serves the later templates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.limited_process import LimitedProcess, folder_of
from gemlet.base.records import record
from gemlet.chat import template_worker
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError

__all__ = ["EXTRA", "OVERRIDE", "Rendered", "can_run_templates", "run_template"]

EXTRA = "pip install 'jinja2>=3.1.6', the extra \"templates\" of gemlet"
OVERRIDE = "give another template with chat_template=..., or give a prompt of your own to generate()"
_MEMORY = 128 << 20  # the bytes of memory for a small request; a large request gets more
_MOST_REQUEST = 64 << 20  # the most bytes of a request
_MOST_TEXT = 4 << 20  # the most characters of the texts for a small request; a large request gets more
_PACKAGES = ("jinja2", "markupsafe")


@record(frozen=True)
class Rendered:
    """The texts that a template wrote for several sets of variables.

    Attributes:
        names: the names of the variables that the template reads.
        texts: the text for each set of variables, or an error. The error is an :class:`InvalidRequestError`
            if the template refuses the variables, and an :class:`UnsupportedError` if it cannot be run.
    """

    names: frozenset[str]
    texts: list[str | GemletError]


def can_run_templates() -> bool:
    """Whether jinja2 is installed.

    >>> can_run_templates()
    True
    """
    return all(folder_of(package) is not None for package in _PACKAGES)


def run_template(template: str, variables: Sequence[Mapping[str, Any]]) -> Rendered:
    """Renders ``template`` once for each set of ``variables``. The variables are JSON values.

    Raises:
        UnsupportedError: jinja2 is not installed; or the template is not valid Jinja, takes too much time or
            memory, or uses what the sandbox forbids.
        InvalidRequestError: the variables are larger than 64 MB.

    >>> run_template("{{ bos_token }}{{ messages[0].content }}", [{"bos_token": "<bos>", "messages": [
    ...     {"role": "user", "content": "Hi"}]}]).texts
    ['<bos>Hi']
    """
    values = [dict(mapping) for mapping in variables]
    asked = {"template": template, "texts": values, "longest": 0, "memory": 0}
    size = len(json.dumps(asked))
    if size > _MOST_REQUEST:
        raise InvalidRequestError(
            f"messages: got {size} bytes, expected at most {_MOST_REQUEST} for a chat template"
        )
    asked |= {"longest": _MOST_TEXT + 4 * size, "memory": _MEMORY + 16 * size}
    line = json.dumps(asked).encode() + b"\n"
    # The second argument is the most bytes of the answer. JSON has up to 12 bytes for a character, and errors
    # are short.
    answer = _process.ask(line, 12 * (_MOST_TEXT + 5 * size) + 2000 * len(values))
    if answer is None:
        raise _error({"error": "budget", "message": "its process was ended"})
    if "error" in answer:
        raise _error(answer)
    return Rendered(
        frozenset(answer["names"]),
        [result["text"] if "text" in result else _error(result) for result in answer["results"]],
    )


def _error(result: Mapping[str, Any]) -> GemletError:
    kind, message = result["error"], result["message"]
    if kind == "refused":
        return InvalidRequestError(f"the model's chat template refuses these messages: {message}")
    if kind == "failed":
        return InvalidRequestError(f"the model's chat template fails on these messages: {message}")
    why = {
        "syntax": "is not valid Jinja",
        "unsafe": "does what a template may not do",
        "budget": "takes too much time or memory",
    }[kind]
    return UnsupportedError(f"the model's chat template {why}: {message}; {OVERRIDE}")


def _folders() -> list[str]:
    folders = []
    for package in _PACKAGES:
        folder = folder_of(package)
        if folder is None:
            raise UnsupportedError(
                f"this model has a chat template of its own, which needs {package}, and {package} is not "
                f"installed; install it ({EXTRA}), or {OVERRIDE}"
            )
        folders.append(folder)
    return folders


def _not_started(why: str) -> GemletError:
    return UnsupportedError(
        f"this model has a chat template of its own, and the process that runs the template did not start "
        f"({sys.executable or 'this program'} -I {template_worker.__file__}: {why}); install jinja2 "
        f"({EXTRA}), or {OVERRIDE}"
    )


_process = LimitedProcess(
    template_worker.__file__, template_worker.HELLO, _folders, _not_started
).end_with_python()
