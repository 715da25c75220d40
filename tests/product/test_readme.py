"""What the README shows can be done: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from golden.folders import ALL_NAMES
from support.paths import ROOT

from gemlet.cli.parser import build_parser

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = ROOT / "python" / "tools" / "terminal.svg"


def blocks(*languages: str) -> list[str]:
    """The fenced blocks of README.md in one of the languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def gemlet_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every gemlet command in shell lines, those behind a pipe too."""
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";")), len(words))
            command, words = words[:end], words[end + 1 :]
            if command[:1] == ["gemlet"]:
                yield command[1:]


def parse(arguments: list[str]) -> None:
    try:
        build_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"gemlet {shlex.join(arguments)}: the command line refuses it")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_python_is_shown() -> None:
    assert len(blocks("python")) >= 2


def test_commands_parse() -> None:
    found = [command for block in blocks("console", "bash", "sh") for command in gemlet_commands(block)]
    assert {command[0] for command in found} == {
        "generate",
        "chat",
        "embed",
        "inspect",
        "convert",
        "info",
        "bench",
    }
    for command in found:
        parse(command)


def test_the_two_commands_are_said() -> None:
    shown = "\n".join(blocks("console"))
    for command in (
        "pip install .\n",
        'gemlet generate "The door opened"\n',
        "pip install '.[test]' && pytest -n auto",
    ):
        assert f"$ {command}" in shown


def test_the_picture_shows_commands_that_parse() -> None:
    description = ElementTree.parse(PICTURE).getroot().findtext("{http://www.w3.org/2000/svg}desc")
    assert description is not None
    typed = [line for line in description.splitlines() if line.startswith("$ gemlet ")]
    found = list(gemlet_commands("\n".join(typed)))
    assert [command[0] for command in found] == ["generate", "info"]
    for command in found:
        parse(command)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", README)
    assert str(PICTURE.relative_to(ROOT)) in targets
    local = [target for target in targets if "://" not in target]
    # A source distribution has no .ci.
    missing = [target for target in local if not target.startswith(".ci/") and not (ROOT / target).exists()]
    assert not missing


def test_the_number_of_golden_checkpoints_is_true() -> None:
    assert f"{len(ALL_NAMES)} of them" in README
