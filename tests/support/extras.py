"""Finds out which packages of pyproject.toml's extras are not installed, and imports optional packages."""

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
    import tomli as tomllib  # this Python has no tomllib; pytest has installed tomli


def extras() -> dict[str, list[str]]:
    """The packages of each extra for this version of Python. If an extra includes another extra, the packages
    of the other extra are left out."""
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
    """The name of the package in a requirement, without extras, versions and conditions.

    >>> package_name("ray[serve,data]>=2.50")
    'ray'
    """
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def is_for_this_python(requirement: str) -> bool:
    """False if the requirement has a condition that this Python does not meet."""
    marker = Requirement(requirement).marker  # pytest has installed the package ``packaging``
    return marker is None or marker.evaluate()


class Later:
    """Imports a module at its first use. Some packages need seconds for their import, and every pytest
    process imports all test files."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


def optional(module: str) -> Any:
    """The module, or None if its package is not installed. Tests that use the module have the marker
    ``extra``."""
    return Later(module) if find_spec(module.partition(".")[0]) else None


def why_absent(extra: str) -> str | None:
    """A message that names the missing packages of the extra and the command that installs them. None if no
    package is missing."""
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
