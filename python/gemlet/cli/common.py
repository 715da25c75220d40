"""Functions that the commands share. They open the model, read the options and write to terminals and
pipes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import importing
from gemlet.base.late import dataclasses
from gemlet.base.sampling_options import OPTIONS
from gemlet.base.sizes import size_text
from gemlet.errors import ContextLengthError, InvalidRequestError
from gemlet.loading.options import command_line

if TYPE_CHECKING:
    from gemlet.generation.result import Generation
    from gemlet.model.model import Model

__all__ = [
    "CHAT_TOKENS",
    "MOST_INPUT",
    "access_options",
    "bold",
    "dim",
    "for_terminal",
    "load_adapter",
    "load_options",
    "note",
    "one_line",
    "open_model",
    "prepare_streams",
    "print_error",
    "print_stats",
    "print_table",
    "read_standard_input",
    "report",
    "sampling_options",
    "silence_stdout",
    "warnings_in_a_line",
    "write",
]


MOST_INPUT = 64 * 2**20  # bytes of a prompt: a million tokens of 64 bytes, more than any Gemma reads
CHAT_TOKENS = 1024  # most tokens of a reply in gemlet chat, where the model does not think


def prepare_streams() -> None:
    """Puts the null device where a standard stream was closed, and lets characters that the terminal's
    encoding lacks become "?" instead of an error in mid-sentence."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for good
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def silence_stdout() -> None:
    """Is for a pipe whose reader has gone, and for a full disk: the interpreter's last flush must not fail
    again."""
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), sys.stdout.fileno())


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Shows each Python warning, and each warning of the log "gemlet", as one line on standard error."""

    def show(message: object, *_: object, **__: object) -> None:
        print(f"gemlet: warning: {one_line(str(message))}", file=sys.stderr)

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("gemlet")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(handler)


def note(text: str) -> None:
    """Prints a notice on standard error."""
    print(f"gemlet: note: {one_line(text)}", file=sys.stderr)


def print_error(text: str) -> None:
    """Prints an error message as one line on standard error."""
    print(f"gemlet: error: {one_line(text)}", file=sys.stderr)


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters: messages may quote what a model file says."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def for_terminal(text: str) -> str:
    """``text`` without the control characters by which a model could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def bold(text: str) -> str:
    """``text`` in bold, unless the NO_COLOR convention forbids it."""
    return text if os.environ.get("NO_COLOR") else f"\x1b[1m{text}\x1b[0m"


def dim(text: str) -> str:
    """``text`` dimmed, unless the NO_COLOR convention forbids it."""
    return text if os.environ.get("NO_COLOR") else f"\x1b[2m{text}\x1b[0m"


def write(text: str) -> None:
    """Writes text from the model to standard output, and flushes it."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given; the others are the model's own. Raises for a wrong value."""
    from gemlet.generation.options import GenerationConfig

    lists = ("stop", "stop_token_ids", "suppress_tokens", "logit_bias", "dry_sequence_breakers")
    names = (*OPTIONS, "seed", "logprobs", *lists)
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    GenerationConfig(**given)
    return given


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :class:`gemlet.loading.options.LoadOptions` that the command has. Raises for a wrong
    --matformer."""
    options = {name: getattr(arguments, name) for name in command_line() if hasattr(arguments, name)}
    if options.get("matformer") is not None:
        from gemlet.config.matformer import parse_matformer

        options["matformer"] = parse_matformer(options["matformer"])
    return options


def access_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options for the download of a model from the hub."""
    return {"revision": arguments.revision, "token": arguments.token}


def open_model(arguments: argparse.Namespace) -> Model:
    """Loads the model that the command line names."""
    with importing():
        from gemlet.loading.load import load

    template = getattr(arguments, "chat_template", None)
    options = {**load_options(arguments), **access_options(arguments)}
    return load(arguments.model, chat_template=template, **options)


def read_standard_input(what: str, most_bytes: int = -1) -> str:
    """All of standard input. Raises :class:`InvalidRequestError`, naming ``what``, if it is not UTF-8, and
    :class:`ContextLengthError` if it has more than ``most_bytes``, of which no more is read."""
    data = sys.stdin.buffer.read(most_bytes + 1 if most_bytes >= 0 else -1)
    if 0 <= most_bytes < len(data):
        raise ContextLengthError(
            f"{what}: standard input has more than {size_text(most_bytes)}, and no context holds that; "
            "shorten it"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{what}: byte {error.start} of standard input is not UTF-8; convert it first (iconv -t UTF-8)"
        ) from None


def load_adapter(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads --adapter; the option that makes a request use it."""
    return {"adapter": model.load_adapter(arguments.adapter).name} if arguments.adapter is not None else {}


def peak_memory_bytes() -> int:
    """Returns the peak resident memory of this process."""
    import resource  # this module exists only on POSIX, so it is not imported at the top

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(model: Model, result: Generation) -> dict[str, object]:
    """Returns a generation and its settings for ``--json``."""
    return {
        **dataclasses.asdict(result),
        "prefill_tokens_per_second": result.prefill_tokens_per_second,
        "decode_tokens_per_second": result.decode_tokens_per_second,
        "load_seconds": model.load_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "model": model.source,
        "weights": model.weights,
        "threads": model.threads,
        "tier": model.tier,
    }


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Prints :func:`table_lines`."""
    for line in table_lines(titles, rows, right=right):
        print(line)


def table_lines(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> list[str]:
    """Formats a table with a title for each column. Aligns the columns ``right`` to the right."""
    lines = []
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def print_stats(model: Model, result: Generation) -> None:
    """Prints the timings and the peak memory on standard error."""
    lines = [
        f"load         {model.load_seconds:.3f} s ({model.weights}, {model.threads} threads, {model.tier})",
        f"prefill      {result.prompt_tokens} tokens in {result.prefill_seconds:.3f} s, "
        f"{result.prefill_tokens_per_second:.1f} tok/s",
        f"decode       {result.decode_tokens} tokens in {result.decode_seconds:.3f} s, "
        f"{result.decode_tokens_per_second:.1f} tok/s",
        f"peak memory  {peak_memory_bytes() / 1e6:.1f} MB",
    ]
    print("\n".join(lines), file=sys.stderr)
