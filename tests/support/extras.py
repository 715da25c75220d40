"""The extras of pyproject.toml, and which of their packages are not installed."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement

from support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there too


def extras() -> dict[str, list[str]]:
    """Name of each extra -> the packages it lists for this Python, without those of other extras that it
    includes."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed: dict[str, list[str]] = project["optional-dependencies"]
    return {
        extra: [
            name
            for name in map(package_name, filter(is_for_this_python, requirements))
            if name != project["name"]
        ]
        for extra, requirements in listed.items()
    }


def package_name(requirement: str) -> str:
    """The name in front of extras, versions and conditions.

    >>> package_name("ray[serve,data]>=2.50")
    'ray'
    """
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def is_for_this_python(requirement: str) -> bool:
    """Whether the condition of a requirement holds, if it has one."""
    marker = Requirement(requirement).marker  # pytest needs this package too
    return marker is None or marker.evaluate()


class Later:
    """A module that is imported at its first use. Some packages take seconds, and every process of pytest
    imports every file of tests."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


def optional(module: str) -> Any:
    """The module, or None if its package is not installed; tests that use it have the marker ``extra``."""
    return Later(module) if find_spec(module.partition(".")[0]) else None


def why_absent(extra: str) -> str | None:
    """The packages of the extra that are not installed, and how to install them; None if all are
    installed."""
    absent = [package for package in extras()[extra] if not is_installed(package)]
    if not absent:
        return None
    return f"needs {', '.join(absent)} of the extra '{extra}': pip install '.[{extra}]'"


def is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
