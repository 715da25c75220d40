"""Tests that .ci/check_imports.py refuses each kind of fault that it looks for."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT

SCRIPT = ROOT / ".ci/check_imports.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="a source distribution has no .ci")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_imports", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(root: Path, files: dict[str, str]) -> Path:
    """Writes a folder python/gemlet with these modules."""
    for name, text in files.items():
        path = root / "python/gemlet" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root / "python/gemlet"


GOOD = {
    "errors": "class GemletError(Exception): ...",
    "base/text": "from gemlet.errors import GemletError",
    "config/layers": """
        from gemlet.base import text
        def read():
            import numpy as np
            from gemlet import _core
        """,
    "cli/parser": """
        def run():
            from gemlet.config.layers import read
        """,
}


def test_allowed_imports_pass(check: ModuleType, tmp_path: Path) -> None:
    assert check.check_imports(package(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"base/text": "from gemlet.config.layers import read"},
            "python/gemlet/base/text.py:1: base may not import config.layers",
        ),
        (
            {"base/text": "from ..config import layers"},
            "python/gemlet/base/text.py:1: base may not import config.layers",
        ),
        (
            {"base/text": "import gemlet"},
            "python/gemlet/base/text.py:1: base may not import gemlet itself; name the module",
        ),
        (
            {"base/text": "from dataclasses import field"},
            "python/gemlet/base/text.py:1: imports dataclasses.field; base/records.py starts faster",
        ),
        (
            {"base/text": "def show():\n    import json"},
            "python/gemlet/base/text.py:2: imports json inside a function; move it to the top",
        ),
        (
            {"config/layers": "class A:\n    def f(self):\n        from gemlet.base.text import show"},
            "python/gemlet/config/layers.py:3: imports gemlet.base.text.show inside a function; "
            "move it to the top",
        ),
        (
            {"surprise": "from gemlet.errors import GemletError"},
            "python/gemlet/surprise.py: surprise is not in MAY_IMPORT",
        ),
        (
            {"base/text": "from gemlet.base import json", "base/json": "from gemlet.base.text import show"},
            "circle: base.json -> base.text -> base.json",
        ),
        (  # a circle through an import for types and an import in a function
            {
                "base/a": "if TYPE_CHECKING:\n    from gemlet.base.b import B",
                "base/b": "def f():\n    from gemlet.base.c import C",
                "base/c": "import gemlet.base.a",
            },
            "circle: base.a -> base.b -> base.c -> base.a",
        ),
        (
            {"base/text": 'from importlib import import_module\nimport_module("gemlet.config.layers")'},
            "python/gemlet/base/text.py:2: base may not import config.layers",
        ),
        (
            {"base/text": 'found = __import__("gemlet.config.layers")'},
            "python/gemlet/base/text.py:1: base may not import config.layers",
        ),
        (  # a circle through names that are imported lazily
            {"__init__": '_LAZY = {"run": "gemlet.cli.parser"}', "cli/parser": "import gemlet"},
            "circle: __init__ -> cli.parser -> __init__",
        ),
    ],
)
def test_each_kind_of_wrong_import_is_refused(
    check: ModuleType, tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    assert expected in check.check_imports(package(tmp_path, GOOD | files))


def test_a_table_that_allows_upward_imports_is_refused(check: ModuleType) -> None:
    assert check.check_order(check.MAY_IMPORT) == []
    wrong = {"base": "config", "config": "base", "cli": "anything"}
    assert check.check_order(wrong) == ["MAY_IMPORT: base imports config, which is not in a row above"]


def test_a_long_file(check: ModuleType, tmp_path: Path) -> None:
    files = (
        "python/a.py",
        "csrc/a.cpp",
        "csrc/a.cu",
        "tests/a.py",
        "benchmarks/a.py",
        ".ci/run",
        "python/a.js",
    )
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * 501)
        (tmp_path / name).with_name("fits.py").write_text("x = 1\n" * 500)
    (tmp_path / "README.md").write_text("A line.\n" * 151)
    expected = [f"{name}: 501 lines; at most 500" for name in files]
    assert sorted(check.check_lengths(tmp_path)) == sorted([*expected, "README.md: 151 lines; at most 150"])


@pytest.mark.parametrize("text", ["from files.test_a import f", "from files import test_a", "import test_a"])
def test_a_test_that_imports_another_test_is_refused(check: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_b.py").write_text(text)
    (found,) = check.check_tests(tmp_path)
    assert found.startswith("tests/test_b.py:1: imports ")


def test_an_outdated_table_in_the_readme_is_reported(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    text = (ROOT / "python/README.md").read_text()
    (tmp_path / "python/README.md").write_text(text.replace("| `config` | `base` |", "| `config` | |"))
    assert check.check_table(tmp_path) == ["python/README.md: the table of imports differs at config"]
