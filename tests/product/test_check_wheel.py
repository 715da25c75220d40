"""Tests that the check of wheels refuses faulty wheels. The wheels contain the extension module under
test."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemlet import _core
from support.paths import ROOT

CHECK, ASSEMBLE = ROOT / ".ci/check_wheel.py", ROOT / ".ci/assemble_wheel.py"
pytestmark = [
    pytest.mark.skipif(not CHECK.exists(), reason="a source distribution has no .ci"),
    pytest.mark.skipif(
        not shutil.which("readelf"), reason="the check needs readelf, of the package binutils"
    ),
]

VERSION = f"{sys.version_info[0]}{sys.version_info[1]}"
MACHINE = platform.machine()
OTHER_MACHINE = "aarch64" if MACHINE == "x86_64" else "x86_64"
EXTENSION = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
TAG = f"cp{VERSION}-cp{VERSION}-linux_{MACHINE}"
MANYLINUX = f"cp{VERSION}-cp{VERSION}-manylinux_2_28_{MACHINE}"
METADATA = b"Metadata-Version: 2.4\nName: gemlet\nVersion: 1.2\n"
Files = dict[str, bytes]


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up their module by its name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check() -> Any:
    return script(CHECK).check


@pytest.fixture(scope="module")
def assemble() -> ModuleType:
    return script(ASSEMBLE)


@pytest.fixture
def make(tmp_path: Path, assemble: ModuleType) -> Callable[..., Path]:
    """A function that makes a wheel with the extension module under test. Its argument `change` changes the
    files before RECORD is written."""

    def make(
        tag: str = TAG, change: Callable[[Files], object] = lambda files: None, name: str | None = None
    ) -> Path:
        content = Path(_core.__file__).read_bytes()
        info = "gemlet-1.2.dist-info"
        tags = "".join(f"Tag: {one}\n" for one in assemble.wheel_tags(tag))
        parts = [
            "pybind11=3=BSD-3-Clause=pkg:pypi/pybind11@3",
            "libcxx=22=Apache-2.0=pkg:generic/llvm/libcxx@22",
        ]
        files = {
            f"{info}/METADATA": METADATA,
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\n{tags}".encode(),
            f"{info}/licenses/LICENSE": b"licence",
            "gemlet/__init__.py": b"",
            "gemlet/demo/weights": b"demo",
            f"gemlet/{EXTENSION}": content,
            f"{info}/sboms/gemlet.cdx.json": assemble.bill_of_materials(
                "gemlet", "1.2", f"gemlet/{EXTENSION}", content, parts, 0
            ),
        }
        change(files)
        path = tmp_path / (name or f"gemlet-1.2-{tag}.whl")
        assemble.write_wheel(path, files, 0)
        return path

    return make


def in_extension(old: bytes, new: bytes) -> Callable[[Files], object]:
    """A change that replaces bytes of the extension module."""

    def change(files: Files) -> None:
        content = files[f"gemlet/{EXTENSION}"]
        assert old in content
        files[f"gemlet/{EXTENSION}"] = content.replace(old, new)

    return change


def for_machine(number: int) -> Callable[[Files], object]:
    """A change that writes another machine into the field e_machine of the extension module."""

    def change(files: Files) -> None:
        content = bytearray(files[f"gemlet/{EXTENSION}"])
        content[18:20] = number.to_bytes(2, "little")
        files[f"gemlet/{EXTENSION}"] = bytes(content)

    return change


def rename_extension(name: str) -> Callable[[Files], object]:
    return lambda files: files.update({f"gemlet/{name}": files.pop(f"gemlet/{EXTENSION}")})


def test_a_good_wheel_is_accepted(check: Any, make: Callable[..., Path]) -> None:
    assert check(make()) == []


def test_equal_files_make_equal_wheels(make: Callable[..., Path], tmp_path: Path) -> None:
    first = make().read_bytes()
    assert make().read_bytes() == first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemlet-1.2-py3-none-any.whl", "expected gemlet-VERSION-cp3NN"),
        (f"gemmlet-1.2-{TAG}.whl", "expected gemlet-VERSION-cp3NN"),
        (f"gemlet-1.2-cp{VERSION}-cp38-linux_{MACHINE}.whl", "with the ABI cp38"),
        (f"gemlet-1.2-cp{VERSION}-cp{VERSION}-linux_riscv32.whl", "tags of one kind"),
        (f"gemlet-1.2-cp{VERSION}-cp{VERSION}-manylinux_{MACHINE}.whl", "have a version"),
        (
            f"gemlet-1.2-cp{VERSION}-cp{VERSION}-manylinux_2_28_x86_64.manylinux_2_28_aarch64.whl",
            "tags of one kind",
        ),
        (f"gemlet-1.3-{TAG}.whl", "there is no gemlet-1.3.dist-info/METADATA"),
    ],
)
def test_a_wrong_name(name: str, said: str, check: Any, make: Callable[..., Path]) -> None:
    assert said in "\n".join(check(make(name=name)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.update({"gemlet-1.2.dist-info/METADATA": METADATA + b"\n"}), None),
        (
            lambda files: files.update({"gemlet-1.2.dist-info/METADATA": METADATA.replace(b"1.2", b"1.3")}),
            "METADATA is of gemlet 1.3",
        ),
        (
            lambda files: files.update(
                {"gemlet-1.2.dist-info/WHEEL": b"Root-Is-Purelib: false\nTag: py3-none-any\n"}
            ),
            "WHEEL has the tags py3-none-any",
        ),
        (lambda files: files.pop("gemlet-1.2.dist-info/licenses/LICENSE"), "licenses/LICENSE"),
        (lambda files: files.pop("gemlet/demo/weights"), "the demo model has 0.00 MB"),
        (lambda files: files.update({"gemlet/other.so": b""}), "expected one extension"),
        (rename_extension("_core.so"), "expected the name gemlet/_core.cpython"),
        (rename_extension(f"_core.cpython-38-{MACHINE}-linux-gnu.so"), "is named for cp38"),
        (
            rename_extension(f"_core.cpython-{VERSION}-{OTHER_MACHINE}-linux-gnu.so"),
            f"named for {OTHER_MACHINE}",
        ),
        (for_machine(0xB7 if MACHINE == "x86_64" else 0x3E), "the wheel for"),
        (
            in_extension(b"\x003.%d\0" % sys.version_info[1], b"\x003.9\0\0"[:6]),
            "was not compiled for Python",
        ),
        (in_extension(b"PyInit__core", b"PyInit__cord"), "exports PyInit__cord"),
        (in_extension(b"libm.so.6\0", b"libz.so.1\0"), "needs libz.so.1"),
        (in_extension(b"__stack_chk_fail\0", b"__stack_chk_fall\0"), "guards its frame"),
    ],
)
def test_a_wrong_content(
    change: Callable[[Files], object], said: str | None, check: Any, make: Callable[..., Path]
) -> None:
    errors = "\n".join(check(make(change=change)))
    assert (said in errors) if said else (errors == "")


def test_files_must_match_record(check: Any, make: Callable[..., Path], assemble: ModuleType) -> None:
    wheel = make()
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content + b"#" if name == "gemlet/__init__.py" else content)
    assert "RECORD does not fit gemlet/__init__.py" in "\n".join(check(wheel))


def test_symbols_newer_than_the_tag(check: Any, make: Callable[..., Path]) -> None:
    errors = "\n".join(check(make(tag=MANYLINUX.replace("2_28", "2_2"))))
    assert "newer than 2.2 of the tag" in errors


def test_a_manylinux_wheel_that_needs_libstdcxx_is_refused(check: Any, make: Callable[..., Path]) -> None:
    wheel = make(tag=MANYLINUX)
    assert "needs libstdc++.so.6, which not every manylinux system has" in "\n".join(check(wheel))


def test_a_musllinux_wheel_for_another_c_library_is_refused(check: Any, make: Callable[..., Path]) -> None:
    wheel = make(tag=f"cp{VERSION}-cp{VERSION}-musllinux_1_2_{MACHINE}")
    errors = "\n".join(check(wheel))
    assert "is named for the C library gnu" in errors or VERSION == "310"
    assert "needs libc.so.6, which not every musllinux system has" in errors


def test_an_absent_or_wrong_bill_of_materials(check: Any, make: Callable[..., Path]) -> None:
    bill = "gemlet-1.2.dist-info/sboms/gemlet.cdx.json"
    wheel = make(tag=MANYLINUX, change=lambda files: files.pop(bill))
    assert "there is no SBOM" in "\n".join(check(wheel))
    wheel = make(
        tag=MANYLINUX, change=lambda files: files.update({bill: files[bill].replace(b"libcxx", b"libfoo")})
    )
    assert "the SBOM lacks libcxx" in "\n".join(check(wheel))
    wheel = make(tag=MANYLINUX, change=in_extension(b"PyInit__core", b"PyInit__cord"))
    assert "the SBOM is of another extension" in "\n".join(check(wheel))
