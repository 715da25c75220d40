"""Checks the imports of python/gemlet, and the length of files. It refuses:

- an import that the table ``MAY_IMPORT`` below does not allow; python/README.md has the same table;
- a circle between modules. Imports under ``TYPE_CHECKING`` and inside functions count, and so do the lazy
  names of ``gemlet/__init__.py`` and the modules that import_module() gets as a constant;
- an import inside a function, unless the table ``IN_FUNCTIONS`` has the module or the function is in cli/;
- Python's dataclass() and field(), because base/records.py replaces them;
- a file of more than 500 lines, in any language; only the stubs, which are generated, may be longer;
- a test that imports another test.

``check_imports.py [ROOT]`` checks the project in ROOT, by default the project that this file belongs to.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Package, or module outside of the packages -> the packages and modules that it may import. Each may also
# import itself, ``errors`` and ``_core``.
MAY_IMPORT = {
    "errors": "",
    "base": "",
    "config": "base",
    "checkpoint": "base",
    "tokenizer": "base checkpoint",
    "media": "base config",
    "weights": "base config checkpoint",
    "adapters": "base config checkpoint weights",
    "chat": "base tokenizer",
    "sources": "base config checkpoint tokenizer weights adapters chat",
    "packing": "base checkpoint weights adapters sources",
    "generation": "base tokenizer chat",
    "model": "base config media tokenizer chat adapters sources generation",
    "loading": "base config checkpoint tokenizer weights adapters chat sources packing generation model",
    "bench": "base config weights generation model",
    "bench_towers": "base model",
    "evaluate": "base model",
    "server": "base media chat loading generation model",
    "replicas": "server",
    "cli": "anything",
}
FREE = {"errors", "_core"}
# These may import the package ``gemlet`` itself, whose public names lead everywhere.
ABOVE_ALL = {"__init__", "__main__", "cli"}

IN_FUNCTIONS = {
    "asyncio": "slow",
    "numpy": "slow",
    "sentencepiece": "slow",
    "safetensors": "slow",
    "statistics": "slow",
    "importlib.metadata": "slow",
    "difflib": "slow",
    "subprocess": "slow",
    "shutil": "slow",
    "dataclasses": "slow",
    "tempfile": "slow",
    "jinja2": "an extra",
    "PIL": "an extra",
    "soundfile": "an extra",
    "av": "an extra",
    "llguidance": "an extra",
    "re2": "an extra",
    "opentelemetry": "an extra",
    "huggingface_hub": "an extra",
    "tqdm": "an extra",
    "tomllib": "an extra before Python 3.11",
    "tomli": "an extra",
    # Generating from a packed folder needs none of these. Importing them at the top of a file would make a
    # start slower.
    "gemlet.adapters.opening": "rarely needed",
    "gemlet.chat.template_format": "rarely needed",
    "gemlet.chat.template_probes": "rarely needed",
    "gemlet.chat.template_process": "rarely needed",
    "gemlet.media.sounds": "rarely needed",
    "gemlet.media.videos": "rarely needed",
    "gemlet.packing.cache": "rarely needed",
    "gemlet.sources.gguf_model": "rarely needed",
    "gemlet.sources.hub": "rarely needed",
    "gemlet.sources.hub_headers": "rarely needed",
    "gemlet.tokenizer.files": "rarely needed",
}
# base/records.py replaces these. In a record, the field() of dataclasses would be taken for a default value.
SLOW_RECORDS = ("dataclasses.dataclass", "dataclasses.field")
IMPORTERS = ("import_module", "__import__")
MOST_LINES = 500
FEWER_LINES = {"README.md": 150, "csrc/model/forward.cpp": 250}  # files that have to be shorter
PLACES = ("python", "csrc", "tests", "benchmarks", ".ci")
SOURCES = {".py", ".cpp", ".h", ".cu", ".list", ".cmake", ".js", ".css", ".html"}  # and .ci's scripts


class Arrow(NamedTuple):
    """An import: the line, the imported module or package, and whether the import is inside a function."""

    line: int
    target: str
    in_function: bool


def modules(package: Path) -> dict[str, Path]:
    """The modules of the package by name: "config.layers", for example; "config" is config/__init__.py."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def lazy_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and module of each entry of a table ``_LAZY``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["_LAZY"]:
            for value in node.value.values if isinstance(node.value, ast.Dict) else ():
                yield value.lineno, ast.literal_eval(value)


def arrows(tree: ast.Module, module: str, is_package: bool) -> Iterator[Arrow]:
    """The imports of the module. The target of ``from package import name`` is "package.name"."""
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Arrow(node.lineno, name.name, node in inside)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                around = ["gemlet", *module.split(".")]
                around = around[: len(around) - node.level + is_package]
                origin = ".".join([*around, *origin.split(".")]).rstrip(".")
            for name in node.names:
                yield Arrow(node.lineno, f"{origin}.{name.name}", node in inside)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            what = node.args[0] if node.args else None
            if isinstance(what, ast.Constant) and room(str(what.value)) == "gemlet":
                yield Arrow(node.lineno, str(what.value), node in inside)
    for line, target in lazy_names(tree):
        yield Arrow(line, target, False)


def own_module(target: str, known: dict[str, Path]) -> str | None:
    """The module of gemlet that an import of ``target`` loads; None if it belongs to another library."""
    first, _, rest = target.partition(".")
    if first != "gemlet":
        return None
    while rest and rest not in known and room(rest) != "_core":
        rest = rest.rpartition(".")[0]
    return "_core" if room(rest) == "_core" else rest or "__init__"


def check_imports(package: Path) -> list[str]:
    """Errors for upward imports, imports inside functions, and circles."""
    errors = []
    known = modules(package)
    leads_to: dict[str, set[str]] = {}
    for module, path in known.items():
        here = room(module)
        where = f"python/gemlet/{path.relative_to(package).as_posix()}"
        if here not in MAY_IMPORT and here not in ABOVE_ALL:
            errors.append(f"{where}: {here} is not in MAY_IMPORT")
            continue
        allowed = MAY_IMPORT.get(here, "anything").split()
        leads_to[module] = set()
        for line, target, in_function in arrows(
            ast.parse(path.read_text()), module, path.name == "__init__.py"
        ):
            own = own_module(target, known)
            late = any(f"{target}.".startswith(f"{name}.") for name in IN_FUNCTIONS)
            if in_function and not late and own != "_core" and here != "cli":
                errors.append(f"{where}:{line}: imports {target} inside a function; move it to the top")
            if target in SLOW_RECORDS and here != "replicas" and module != "base.records":
                errors.append(f"{where}:{line}: imports {target}; base/records.py starts faster")
            if own is None or own == module or room(own) in FREE:
                continue
            leads_to[module].add(own)
            if own == "__init__" and here not in ABOVE_ALL:
                errors.append(f"{where}:{line}: {here} may not import gemlet itself; name the module")
            elif room(own) not in [here, *allowed] and "anything" not in allowed:
                errors.append(f"{where}:{line}: {here} may not import {own}")
    return errors + [f"circle: {' -> '.join(circle)}" for circle in circles(leads_to)]


def circles(leads_to: dict[str, set[str]]) -> list[list[str]]:
    """One circle for each group of modules that import one another: the path from a module back to itself."""
    found: list[list[str]] = []
    for start in sorted(leads_to):
        if any(start in circle for circle in found):
            continue
        came_from: dict[str, str] = {}
        todo = [start]
        while todo and start not in came_from:
            module = todo.pop(0)
            for target in sorted(leads_to.get(module, ())):
                if target not in came_from:
                    came_from[target] = module
                    todo.append(target)
        if start in came_from:
            way = [start]
            while len(way) == 1 or way[-1] != start:
                way.append(came_from[way[-1]])
            found.append(way[::-1])
    return found


def check_lengths(root: Path) -> list[str]:
    most = {root / name: lines for name, lines in FEWER_LINES.items()}
    for place in PLACES:
        for path in (root / place).rglob("*"):
            if path.suffix in SOURCES or (place == ".ci" and path.suffix == ""):
                most.setdefault(path, MOST_LINES)
    errors = []
    for path in sorted(most):
        lines = len(path.read_bytes().splitlines()) if path.is_file() else 0
        if lines > most[path]:
            errors.append(f"{path.relative_to(root).as_posix()}: {lines} lines; at most {most[path]}")
    return errors


def check_tests(root: Path) -> list[str]:
    """Errors for tests that import another test."""
    errors = []
    for path in sorted((root / "tests").rglob("*.py")):
        for line, target, _ in arrows(ast.parse(path.read_text()), "", False):
            if any(part.startswith("test_") for part in target.split(".")):
                errors.append(
                    f"{path.relative_to(root).as_posix()}:{line}: imports {target}, a test; "
                    "put what both need into tests/support"
                )
    return errors


def check_table(root: Path) -> list[str]:
    """An error if the table in python/README.md differs: | `package` | `may` `import` | ... |"""
    path = root / "python/README.md"
    rows = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        cells = [cell.strip().replace("`", "") for cell in line.split("|")[1:-1]]
        if len(cells) >= 2 and cells[0] in MAY_IMPORT:
            rows[cells[0]] = " ".join(cells[1].replace(",", " ").split())
    wrong = sorted(name for name in MAY_IMPORT if rows.get(name) != MAY_IMPORT[name])
    return [f"python/README.md: the table of imports differs at {', '.join(wrong)}"] if wrong else []


def check_order(may_import: dict[str, str]) -> list[str]:
    """Errors for rows of the table that name a package which is not in a row above."""
    rows = list(may_import)
    return [
        f"MAY_IMPORT: {name} imports {other}, which is not in a row above"
        for row, name in enumerate(rows)
        for other in may_import[name].split()
        if other not in [*rows[:row], "anything"]
    ]


def problems(root: Path) -> list[str]:
    found = check_order(MAY_IMPORT) + check_imports(root / "python/gemlet")
    return found + check_lengths(root) + check_tests(root) + check_table(root)


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = problems(root)
    print(
        "\n".join(found) or f"{len(modules(root / 'python/gemlet'))} modules import downwards, in no circle"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
