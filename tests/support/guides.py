"""Finds the guides and the examples in them. product/test_readme.py runs all examples that are marked as
``python``. Examples that are marked as ``py`` need a picture, a server or the like, and have their own
tests."""

from __future__ import annotations

import re
from pathlib import Path

from support.paths import ROOT

GUIDES = sorted(
    path
    for folder in (".", "python", "benchmarks", "csrc", "tests", ".ci", ".github")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
# For each `py` example, its name, its guide, and a word that only this example of the guide has.
EXAMPLES = {
    "images": ("python/README.md", "cat.jpg"),
    "embeddings": ("python/README.md", "dog.jpg"),
    "client": ("python/gemlet/server/README.md", "OpenAI("),
    "batch": ("python/gemlet/server/README.md", "batches.create"),
    "replicas": ("python/gemlet/replicas/README.md", "serve.start"),
    "rows": ("python/gemlet/replicas/README.md", "map_batches"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """The line number and the text of each fenced block of a guide that is in one of the languages."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


def example(name: str) -> str:
    """The code of the `py` example with this name."""
    guide, word = EXAMPLES[name]
    (code,) = [code for _, code in blocks(ROOT / guide, "py") if word in code]
    return code
