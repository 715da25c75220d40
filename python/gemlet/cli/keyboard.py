"""Reading messages from a terminal: :class:`Keyboard`."""

from __future__ import annotations

import sys
from typing import Any

from gemlet.cli.history import History

__all__ = ["Keyboard"]

_QUOTES = '"""'
_PASTE, _PASTE_END = "\x1b[200~", "\x1b[201~"  # a terminal puts these around a pasted text, if it is asked to


class Keyboard:
    """Messages that somebody types or pastes. A context manager: at its end the terminal is as it was.

    A pasted text is one message, even if it has several lines; so is a text in triple
    quotes. The history keys bring back earlier messages, also those of earlier chats.
    """

    def __init__(self) -> None:
        self._history = History()
        self._readline = _gnu_readline()
        if self._readline is not None:
            self._readline.parse_and_bind(r'"\e[200~": bracketed-paste-begin')
            self._readline.set_auto_history(False)
            for message in self._history.messages:
                self._readline.add_history(message)

    def __enter__(self) -> Keyboard:
        print("\x1b[?2004h", end="", flush=True)  # the terminal marks where a pasted text begins and ends
        return self

    def __exit__(self, *exception: object) -> None:
        print("\x1b[?2004l", end="", flush=True)

    def read(self) -> str | None:
        """The next message without white space at its ends; None at the end of the input (Ctrl-D)."""
        while True:
            try:
                text = self._read_message()
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print("\n(/exit or Ctrl-D leaves)")
                continue
            if text and self._history.add(text) and self._readline is not None:
                self._readline.add_history(text)
            return text

    def _read_message(self) -> str:
        line = self._read_line("> ")
        if not line.lstrip().startswith(_QUOTES):
            return line.strip()
        lines = [line.lstrip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(self._read_line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip()

    def _read_line(self, prompt: str) -> str:
        """A line, or all lines of a text that was pasted."""
        text = input(prompt)
        while text.count(_PASTE) > text.count(_PASTE_END):  # only if readline does not do this
            text += "\n" + input()
        return text.replace(_PASTE, "").replace(_PASTE_END, "")


def _gnu_readline() -> Any:
    """The module readline; None if it is missing, or another library has its name (on macOS)."""
    try:
        import readline
    except ImportError:
        return None
    return None if "libedit" in (readline.__doc__ or "") or sys.platform == "darwin" else readline
