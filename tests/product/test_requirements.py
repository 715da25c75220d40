"""Tests that the build checks its requirements before it compiles anything. One line names the missing
requirement and the command that installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "ninja", "g++"))),
    reason="the tests of the build need cmake, ninja and g++",
)


def configure(folder: Path, *options: str, **environment: str) -> str:
    """Configures a build, which must fail. Returns the line of the error that names the missing
    requirement."""
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line.strip() for line in done.stderr.splitlines() if "gemlet needs" in line]
    assert "   Fedora: sudo dnf install " in line
    return line.partition("   Fedora")[0]


def compiler(folder: Path, options: str) -> str:
    """Writes a script that runs g++ with these options."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nexec g++ {options} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    for wrong in ("/not/there", compiler(tmp_path, "-nostartfiles -nostdlib")):
        assert configure(tmp_path, CXX=wrong) == (
            f"gemlet needs a C++20 compiler (g++ 11, clang 14 or newer), and CXX={wrong} does not work. "
            "Debian, Ubuntu: sudo apt install g++"
        )


def test_a_compiler_that_is_too_old(tmp_path: Path) -> None:
    line = configure(tmp_path, CXX=compiler(tmp_path, "-U__GNUC__ -D__GNUC__=9"))
    assert "(g++ 11, clang 14 or newer), and found GNU 9." in line


def test_missing_headers_of_the_library_are_named(tmp_path: Path) -> None:
    path = compiler(tmp_path, "-nostdinc++")
    assert f"the headers of a C++20 library, which {path} lacks. Debian" in configure(tmp_path, CXX=path)
