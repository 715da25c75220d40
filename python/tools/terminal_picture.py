"""Draws the picture of a terminal in README.md from the output of a real run.

    python python/tools/terminal_picture.py    # writes python/tools/terminal.svg

Run it in the folder with `gemma-3-270m.gguf`, which the commands in README.md download. The generated text
depends on the CPU tier; with `GEMLET_CPU=avx2`, it is the text in the picture.

Each command runs in a pseudo-terminal, so it prints what a person would see. The picture breaks lines between
words; a real terminal would also break them inside words.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

COMMANDS = (
    'gemlet generate "Once upon a time, a small fox set out to see the sea." \\\n'
    "      --model gemma-3-270m.gguf --temperature 0.5 --repetition-penalty 1.1 --seed 45",
)
COLUMNS = 92
# Sizes in pixels. The attribute textLength fixes the width of every run of words, so columns align in any
# font.
CELL, LINE, SIZE = 8.4, 20, 14
MARGIN, BAR = 22, 40
FONTS = "ui-monospace,SFMono-Regular,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
STYLES = {
    "plain": "fill:#c9d1d9",
    "bold": "fill:#ffffff;font-weight:700",
    "prompt": "fill:#7ee787;font-weight:700",
    "command": "fill:#79c0ff",
}
_WORDS = re.compile(r"[^ ]+(?: [^ ]+)*")  # words with single spaces between them
_SELECT_GRAPHIC = re.compile(r"\x1b\[([01])m")
Run = tuple[str, str]  # style, text


def run_in_terminal(command: str) -> str:
    """Runs ``command`` in a terminal and returns its output. The command ``gemlet`` runs in this Python."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[0] != "gemlet":
        raise ValueError(f"{command!r}: only gemlet commands are drawn")
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemlet", *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        stderr=its_end,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"},
    )
    os.close(its_end)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # on Linux, this means that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(terminal)
    if process.wait() != 0:
        raise RuntimeError(f"{command}: exit code {process.returncode}\n{shown.decode(errors='replace')}")
    return shown.decode().replace("\r\n", "\n")


def styled_lines(shown: str, columns: int = COLUMNS) -> Iterator[list[Run]]:
    """Splits the output into lines, wrapped between words. Each line is a list of runs, each with one
    style."""
    plain, bold, style = "", set[int](), "0"
    for index, part in enumerate(_SELECT_GRAPHIC.split(shown)):
        if index % 2:
            style = part
            continue
        if style == "1":
            bold |= set(range(len(plain), len(plain) + len(part)))
        plain += part
    if "\x1b" in plain:
        raise ValueError("the output has an escape sequence that is not drawn")
    at = 0
    for line in plain.removesuffix("\n").split("\n"):
        wrapped = textwrap.wrap(line, columns, drop_whitespace=False, replace_whitespace=False) or [""]
        for piece in wrapped:
            runs: list[Run] = []
            for offset, character in enumerate(piece):
                name = "bold" if at + offset in bold else "plain"
                if runs and runs[-1][0] == name:
                    runs[-1] = (name, runs[-1][1] + character)
                else:
                    runs.append((name, character))
            at += len(piece)
            yield runs
        at += 1


def draw(lines: Sequence[Sequence[Run]], title: str = "gemlet") -> str:
    """The SVG of a terminal window that shows ``lines``."""
    width = round(COLUMNS * CELL + 2 * MARGIN)
    height = BAR + len(lines) * LINE + MARGIN
    spoken = "\n".join("".join(text for _, text in line) for line in lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(spoken)}</desc>",
        "<style>",
        f"text{{font-family:{FONTS};font-size:{SIZE}px}}",
        *(f".{name}{{{style}}}" for name, style in STYLES.items()),
        "</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>',
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="9.5" '
        'fill="none" stroke="#30363d"/>',
    ]
    for index, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        parts.append(f'<circle cx="{MARGIN + 2 + 20 * index}" cy="20" r="6" fill="{colour}"/>')
    parts.append(
        f'<text x="{width / 2:g}" y="25" text-anchor="middle" style="fill:#8b949e">{escape(title)}</text>'
    )
    for row, line in enumerate(lines):
        column = 0
        for style, text in line:
            # Place words by their column, so that tables align in any font.
            for match in _WORDS.finditer(text):
                x = MARGIN + (column + match.start()) * CELL
                parts.append(
                    f'<text class="{style}" x="{x:.1f}" y="{BAR + row * LINE + 16}" '
                    f'textLength="{len(match[0]) * CELL:.1f}">{escape(match[0], quote=False)}</text>'
                )
            column += len(text)
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Reads the arguments, runs the commands, writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("terminal.svg"), metavar="FILE"
    )
    output: Path = parser.parse_args().output
    lines: list[list[Run]] = []
    for command in COMMANDS:
        shown = list(styled_lines(run_in_terminal(command)))
        first, *others = command.split("\n")
        lines += [[("prompt", "$ "), ("command", first)], *([("command", line)] for line in others)]
        lines += [*shown, []]
    output.write_text(draw([*lines, [("prompt", "$ "), ("plain", "▊")]]), encoding="utf-8")


if __name__ == "__main__":
    main()
