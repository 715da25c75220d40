"""``gemlet chat``, and the commands on a terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

import gemlet
from gemlet.cli import main
from gemlet.cli.common import for_terminal
from gemlet.generation import Chunk, TextStream
from support.commands import GEMLET, PATIENCE, PROMPT, run

# Makes standard input the controlling terminal, so that a Ctrl-C typed there becomes SIGINT.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def on_terminal(arguments: Sequence[str], answers: Sequence[tuple[str, str]] = ()) -> tuple[int, str]:
    """Runs gemlet on a terminal, and types each answer when the text before it has appeared. Returns the exit
    code and the screen."""
    screen, far_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *GEMLET, *arguments],
        stdin=far_side,
        stdout=far_side,
        stderr=far_side,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "PYTHONUTF8": "1"},
    )
    os.close(far_side)
    seen = ""
    searched = 0
    waiting = list(answers)
    deadline = time.monotonic() + PATIENCE
    while True:
        ready, _, _ = select.select([screen], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            process.kill()
            process.wait()
            raise AssertionError(f"still running; on the screen: {seen!r}, to be answered: {waiting}")
        try:
            data = os.read(screen, 65536)
        except OSError:  # Linux's sign that the other side of the terminal is closed
            data = b""
        if not data:
            break
        seen += data.decode(errors="replace")
        while waiting and (found := seen.find(waiting[0][0], searched)) >= 0:
            searched = found + len(waiting[0][0])
            if waiting[0][1] == "\x03":
                # readline shows its prompt a moment before it listens for signals. A Ctrl-C in between has no
                # effect until the next key. No person is that fast.
                time.sleep(0.5)
            os.write(screen, waiting.pop(0)[1].encode())
    os.close(screen)
    code = process.wait(PATIENCE)
    assert not waiting, seen
    return code, seen.replace("\r\n", "\n")


def test_a_terminal_shows_the_prompt_before_the_text() -> None:
    code, screen = on_terminal(["generate", PROMPT, "--max-tokens", "15", "--seed", "3"])
    assert code == 0
    with gemlet.load() as model:
        text = model.generate(PROMPT, max_tokens=15, seed=3).text
    assert screen == f"\x1b[1m{PROMPT}\x1b[0m{for_terminal(text)}" + ("" if text.endswith("\n") else "\n")


def test_chat_on_a_terminal() -> None:
    code, screen = on_terminal(
        ["chat", "--max-tokens", "8", "--seed", "1"],
        [
            ("\n> ", "Good evening\n"),
            ("\n> ", "/dance\n"),
            ("\n> ", "/reset\n"),
            ("\n> ", "\x03"),
            ("\n> ", "/exit\n"),
        ],
    )
    assert code == 0
    assert "/dance is not a command" in screen
    assert "/exit or Ctrl-D leaves" in screen
    assert "Traceback" not in screen


def test_chat_leaves_at_ctrl_d() -> None:
    code, _ = on_terminal(["chat", "--max-tokens", "4"], [("\n> ", "Hello\n"), ("\n> ", "\x04")])
    assert code == 0


def test_chat_in_a_pipe_answers_each_line_with_the_conversation_so_far() -> None:
    done = run(
        "chat",
        "--max-tokens",
        "10",
        "--seed",
        "6",
        "--system",
        "Be kind.",
        stdin=b"One\n\nTwo\n/reset\nOne\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    system = {"role": "system", "content": "Be kind."}
    one, two = ({"role": "user", "content": content} for content in ("One", "Two"))
    with gemlet.load() as model:
        first = model.chat([system, one], max_tokens=10, seed=6).text
        assert first
        second = model.chat(
            [system, one, {"role": "assistant", "content": first}, two], max_tokens=10, seed=6
        ).text
    assert done.stdout.decode() == f"{first}\n{second}\n{first}\n"


def test_ctrl_c_ends_a_chat_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: TextStream) -> Chunk:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextStream, "_step", interrupt)
    lines = io.StringIO("One\nTwo\n")
    monkeypatch.setattr(sys, "stdin", lines)
    assert main(["chat"]) == 130
    assert lines.readline() == "Two\n"


def test_a_chat_beyond_the_context_says_so_and_goes_on() -> None:
    done = run("chat", "--max-tokens", "3", "--seed", "1", stdin=b"word " * 5000 + b"\nHello\n")
    assert done.returncode == 0
    error = done.stderr.decode()
    assert error.startswith("gemlet: error: ")
    assert "/reset starts afresh" in error
    assert error.count("\n") == 1
    assert done.stdout.endswith(b"\n")
