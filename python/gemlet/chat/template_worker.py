"""The program that runs chat templates. :mod:`gemlet.chat.template_process` starts it in a process of its
own.

Each line of the input is a request in JSON, and each line of the output is the answer to a request:

- A request is ``{"template": text, "texts": [variables, ...], "longest": characters, "memory": bytes}``.
  ``texts`` has the variables for each text to write. ``longest`` and ``memory`` are limits for all texts
  together.
- An answer is ``{"names": [...], "results": [{"text": ...} or {"error": kind, "message": ...}, ...]}``.
  ``names`` are the variables that the template reads. If the template cannot be compiled, the answer is
  ``{"error": kind, "message": ...}``.

The environment has the settings of transformers: immutable sandbox, ``trim_blocks``, ``lstrip_blocks``, loop
controls, the tag ``generation``, ``raise_exception``, ``strftime_now``, and a ``tojson`` that does not escape
characters. ``dict`` and ``namespace`` give no access to Python's own names.

The operating system enforces the limits. It ends the process when a request has used its share of CPU time,
even in the middle of one long operation. If a request needs more memory than its limit, an error is raised.
The process opens and writes no file and starts no other process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

CPU_SECONDS = 0.8  # CPU time for a request; it gets as much again for each 8 MB of the request
HELLO = b"gemlet chat templates\n"
LEAST_JINJA = (3, 1, 6)  # in older versions, there are known ways out of the sandbox
_KEPT = 8  # the most compiled templates that are kept


def main() -> None:
    """Answers requests until the input ends. ``sys.argv`` has the folders of jinja2 and of the packages that
    jinja2 needs."""
    sys.path += sys.argv[1:]
    worker = TemplateWorker()
    worker.warm_up()
    base = _address_space()
    for limit in ("CORE", "FSIZE", "NPROC", "NOFILE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (0, 0))
    output = sys.stdout.buffer
    output.write(HELLO)
    output.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS * (1 + len(line) / (8 << 20)))
        request = json.loads(line)
        if base:
            resource.setrlimit(resource.RLIMIT_AS, (base + request["memory"], resource.RLIM_INFINITY))
        answer = json.dumps(worker.answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(answer + b"\n")
        output.flush()


def _address_space() -> int:
    """The size of this process's address space in bytes; 0 if the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


class TemplateWorker:
    """Compiles and renders templates.

    >>> request = {"template": "{{ 6 * n }}", "texts": [{"n": 7}, {}], "longest": 100}
    >>> TemplateWorker().answer(request)["results"]
    [{'text': '42'}, {'error': 'failed', 'message': "UndefinedError: 'n' is undefined"}]
    """

    def __init__(self) -> None:
        self._environment = make_environment()
        self._compiled: dict[str, tuple[Any, list[str]]] = {}

    def warm_up(self) -> None:
        """Makes Jinja import the modules that it imports at first use. Later the process can open no file."""
        text = (
            "{{ [1]|pprint ~ [1]|tojson ~ '1'|urlencode ~ '1'|striptags ~ '1'|wordwrap ~ lipsum(n=1) "
            "~ strftime_now('%c') }}{{ 1 / 0 }}"
        )
        self.answer({"template": text, "texts": [{}], "longest": 1 << 20})
        self._compiled.clear()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        try:
            _, names = self._compile(request["template"])
        except Exception as problem:
            error = _error(problem)
            return error | ({"error": "syntax"} if error["error"] == "failed" else {})
        results = []
        left = request["longest"]
        for variables in request["texts"]:
            try:
                text = self._render(request["template"], variables, left)
            except Exception as problem:
                results.append(_error(problem))
            else:
                left -= len(text)
                results.append({"text": text})
        return {"names": names, "results": results}

    def _compile(self, text: str) -> tuple[Any, list[str]]:
        from jinja2 import meta

        if text not in self._compiled:
            if len(self._compiled) >= _KEPT:
                self._compiled.clear()
            names = sorted(meta.find_undeclared_variables(self._environment.parse(text)))
            self._compiled[text] = self._environment.from_string(text), names
        return self._compiled[text]

    def _render(self, text: str, variables: dict[str, Any], longest: int) -> str:
        parts = []
        for part in self._compile(text)[0].generate(variables):
            longest -= len(part)
            if longest < 0:
                raise _TooLongError("it writes too much text")
            parts.append(part)
        return "".join(parts)


class _TooLongError(Exception):
    pass


def _error(problem: Exception) -> dict[str, Any]:
    from jinja2 import exceptions

    kind, message = "failed", f"{type(problem).__name__}: {problem}"
    if isinstance(problem, (MemoryError, RecursionError, _TooLongError)):
        kind = "budget"
    elif isinstance(problem, exceptions.SecurityError):
        kind, message = "unsafe", str(problem)
    elif isinstance(problem, exceptions.TemplateSyntaxError):
        kind, message = "syntax", f"line {problem.lineno}: {problem.message}"
    elif type(problem) is exceptions.TemplateError:
        kind, message = "refused", str(problem)
    return {"error": kind, "message": message[:1000]}


def make_environment() -> Any:
    """A Jinja environment with the settings of transformers."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < LEAST_JINJA:
        raise ImportError(f"jinja2 {jinja2.__version__} is too old")

    class Generation(Extension):
        """``{% generation %}`` marks the text of the assistant for training. Here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - that is Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_same")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _same(self, caller: Any) -> Any:
            return caller()

    class SafeDict:
        def __call__(self, *pairs: Any, **more: Any) -> dict[Any, Any]:
            return dict(*pairs, **more)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    class SafeNamespace(Namespace):
        def __init__(*arguments: Any, **more: Any) -> None:
            values = dict(*arguments[1:], **more)
            for name in values:
                SafeNamespace._check(name)
            Namespace.__init__(arguments[0], values)

        def __setitem__(self, name: Any, value: Any) -> None:
            SafeNamespace._check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace may not have the attribute {name!r}")

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=SafeDict(), namespace=SafeNamespace
    )
    return environment


if __name__ == "__main__":
    main()
