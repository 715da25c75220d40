"""Checks that a wheel matches its name, what its extension needs at run time, and that it is hardened.

    check_wheel.py WHEEL

- The name, the metadata, the tags and the name of the extension agree about the Python that the extension was
  compiled for, the machine and the C library. RECORD matches the files.
- The wheel has less than 2 MB without the demo model. A wheel with a tag linux_*, which is for one machine,
  has less than 5 MB. The demo model has at most 10 MB.
- manylinux and musllinux: the C++ runtime is inside, no library but the C library is needed, no symbol is
  newer than the oldest tag, and an SBOM says what the extension contains. linux: also the libraries of C++.
- All addresses are bound at the start and cannot be written to afterwards, the stack is not executable,
  functions guard their frames, containers check their indexes, and the only exported symbol is PyInit__core.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

MB = 1_000_000
NAME = re.compile(
    r"gemlet-(?P<version>[^-]+)-cp(?P<python>3\d+)-cp(?P<abi>3\d+t?)-(?P<platforms>[\w.]+)\.whl", re.ASCII
)
PLATFORM = re.compile(
    r"(?P<kind>manylinux|musllinux|linux)_(?:(?P<major>\d+)_(?P<minor>\d+)_)?(?P<machine>x86_64|aarch64|armv7l|riscv64)"
)
EXTENSION = re.compile(
    r"gemlet/_core\.cpython-(?P<abi>3\d+t?)-(?P<machine>\w+)-linux-(?P<library>gnu\w*|musl)\.so"
)
# readelf's name for the machine of a tag.
MACHINES = {"x86_64": "X86-64", "aarch64": "AArch64", "armv7l": "ARM", "riscv64": "RISC-V"}
# Python's name of a machine, if the tag has another name.
TRIPLETS = {"armv7l": "arm"}
GLIBC_LIBRARIES = re.compile(r"(libc|libm|libpthread|libdl|librt|ld-linux[-\w]*)\.so\.\d+")
MUSL_LIBRARIES = re.compile(r"libc\.so|libc\.musl-\w+\.so\.1")
CXX_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s)\.so\.\d+")

MACHINE_PATH = re.compile(rb"/(?:home|root|tmp|work|opt|Users)/[\w./+-]+")
# Functions of the C library that _FORTIFY_SOURCE always replaces by a function that checks (such as
# __printf_chk).
UNCHECKED = re.compile(r"(v?f?printf|v?d?printf|v?sn?printf|v?asprintf|longjmp|syslog)")


@dataclass
class Tags:
    """The facts in the name of a wheel."""

    version: str
    python: str  # 312
    abi: str  # 312, 314t
    kind: str  # manylinux, musllinux or linux
    oldest: tuple[int, int] | None  # the version of the C library; None for linux
    machine: str


def parse_name(name: str) -> Tags | str:
    """The tags, or the fault of the name."""
    match = NAME.fullmatch(name)
    if not match:
        return f"the name is {name}, expected gemlet-VERSION-cp3NN-cp3NN-PLATFORM.whl"
    platforms = [PLATFORM.fullmatch(platform) for platform in match["platforms"].split(".")]
    found = [platform for platform in platforms if platform]
    kinds = {(platform["kind"], platform["machine"]) for platform in found}
    if len(found) < len(platforms) or len(kinds) != 1:
        return f"the platform is {match['platforms']}, expected tags of one kind and machine"
    kind, machine = kinds.pop()
    if any((platform["major"] is None) != (kind == "linux") for platform in found):
        return f"the platform is {match['platforms']}; manylinux and musllinux have a version, linux has none"
    versions = [(int(platform["major"]), int(platform["minor"])) for platform in found if platform["major"]]
    if match["abi"].rstrip("t") != match["python"]:
        return f"the name is for cp{match['python']} with the ABI cp{match['abi']}"
    return Tags(match["version"], match["python"], match["abi"], kind, min(versions, default=None), machine)


def readelf(path: str, *options: str) -> str:
    return subprocess.run(["readelf", *options, path], check=True, capture_output=True, text=True).stdout


def check_hardening(path: str, content: bytes) -> list[str]:
    """Errors for hardening that the ELF file lacks."""
    errors = []
    dynamic, segments = readelf(path, "-d"), readelf(path, "-lW")
    if not re.search(r"\(FLAGS\).*BIND_NOW|\(BIND_NOW\)|\(FLAGS_1\).*NOW", dynamic):
        errors.append("BIND_NOW is missing")
    if "GNU_RELRO" not in segments:
        errors.append("GNU_RELRO is missing")
    if not re.search(r"GNU_STACK.* RW +\w+$", segments, re.MULTILINE):
        errors.append("the stack is executable")
    if "(TEXTREL)" in dynamic:
        errors.append("code is changed when it is loaded")
    if re.search(r"\((?:RPATH|RUNPATH)\)", dynamic):
        errors.append("has a run-time search path")
    exported, imported = symbols(path)
    if exported != ["PyInit__core"]:
        errors.append(f"exports {', '.join(exported[:10])}; expected PyInit__core alone")
    if "__stack_chk_fail" not in imported:
        errors.append("no function guards its frame (__stack_chk_fail)")
    checks = any("__glibcxx_assert_fail" in name for name in imported)
    if not checks and b"libc++ Hardening assertion" not in content:
        errors.append("containers do not check their indexes (_GLIBCXX_ASSERTIONS, _LIBCPP_HARDENING_MODE)")
    return errors


def check_fortified(imported: dict[str, str], tags: Tags) -> list[str]:
    """Errors if the extension calls no function of the C library that checks its buffers. musl has no such
    functions. The C++ runtime inside a manylinux extension also calls functions that do not check."""
    unchecked = [name for name in imported if UNCHECKED.fullmatch(name)]
    if tags.kind == "linux" and unchecked:
        return [f"calls {', '.join(unchecked)}, which _FORTIFY_SOURCE would have replaced"]
    checked = [name for name in imported if re.fullmatch(r"__\w+_chk", name)]
    return [] if checked or tags.kind == "musllinux" else ["calls no function that _FORTIFY_SOURCE replaces"]


def symbols(path: str) -> tuple[list[str], dict[str, str]]:
    """The exported names, and the imported ones with their versions."""
    exported, imported = [], {}
    for line in readelf(path, "--dyn-syms", "-W").splitlines():
        # 12: 0000000000057f30  4711 FUNC    GLOBAL DEFAULT   12 PyInit__core
        fields = line.split()
        if len(fields) >= 8 and fields[4] in ("GLOBAL", "WEAK", "UNIQUE"):
            name, _, version = fields[7].partition("@")
            if fields[6] == "UND":
                imported[name] = version.lstrip("@")
            else:
                exported.append(name)
    return exported, imported


def check_extension(name: str, path: str, tags: Tags) -> list[str]:
    """Errors if the extension does not match its name and the tags."""
    match = EXTENSION.fullmatch(name)
    if not match:
        return ["expected the name gemlet/_core.cpython-3NN-MACHINE-linux-LIBRARY.so"]
    errors = []
    content = Path(path).read_bytes()
    if match["abi"] != tags.abi:
        errors.append(f"is named for cp{match['abi']}, the wheel for cp{tags.abi}")
    if match["machine"] != TRIPLETS.get(tags.machine, tags.machine):
        errors.append(f"is named for {match['machine']}, the wheel for {tags.machine}")
    # Python 3.10 calls musl gnu; see .ci/wheels.
    library = "musl" if tags.kind == "musllinux" and tags.python != "310" else "gnu"
    if tags.kind != "linux" and not match["library"].startswith(library):
        errors.append(f"is named for the C library {match['library']}, expected {library}")
    machine = re.search(r"Machine: +(.+)", readelf(path, "-h"))
    if not machine or MACHINES[tags.machine] not in machine[1]:
        errors.append(f"is for {machine[1] if machine else 'no machine'}, the wheel for {tags.machine}")
    # pybind11 keeps the version that it was compiled for, to compare it when it is imported.
    compiled = f"3.{tags.python[1:]}"
    if b"\0" + compiled.encode() + b"\0" not in content:
        errors.append(f"was not compiled for Python {compiled}")
    _, imported = symbols(path)
    free_threaded = "_Py_DecRefShared" in imported
    if free_threaded != tags.abi.endswith("t"):
        errors.append(f"was compiled for a Python {'without' if free_threaded else 'with'} the lock")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", readelf(path, "-d"))
    for needs in needed:
        glibc = GLIBC_LIBRARIES.fullmatch(needs) and tags.kind != "musllinux"
        musl = MUSL_LIBRARIES.fullmatch(needs) and tags.kind == "musllinux"
        if not (glibc or musl or (tags.kind == "linux" and CXX_LIBRARIES.fullmatch(needs))):
            errors.append(f"needs {needs}, which not every {tags.kind} system has")
    if tags.oldest and tags.kind == "manylinux":
        for symbol, version in sorted(imported.items()):
            number = re.match(r"GLIBC_(\d+)\.(\d+)", version)
            if number and (int(number[1]), int(number[2])) > tags.oldest:
                errors.append(
                    f"needs {symbol}@{version}, newer than {tags.oldest[0]}.{tags.oldest[1]} of the tag"
                )
    if tags.kind != "linux" and (found := MACHINE_PATH.search(content)):
        errors.append(f"names the path {found[0].decode(errors='replace')} of the machine that built it")
    print(f"{name} needs {', '.join(needed)}")
    return errors + check_hardening(path, content) + check_fortified(imported, tags)


def check_metadata(files: dict[str, bytes], tags: Tags, name: str) -> list[str]:
    info = f"gemlet-{tags.version}.dist-info"
    missing = [
        file for file in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE") if f"{info}/{file}" not in files
    ]
    if missing:
        return [f"there is no {info}/{file}" for file in missing]
    errors = []
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    if (metadata["Name"], metadata["Version"]) != ("gemlet", tags.version):
        errors.append(
            f"METADATA is of {metadata['Name']} {metadata['Version']}, the name of gemlet {tags.version}"
        )
    header = Parser().parsestr(files[f"{info}/WHEEL"].decode())
    python, abi, platforms = name.removesuffix(".whl").split("-")[-3:]
    expected = sorted(f"{python}-{abi}-{platform}" for platform in platforms.split("."))
    if sorted(header.get_all("Tag", [])) != expected:
        errors.append(
            f"WHEEL has the tags {', '.join(header.get_all('Tag', []))}; expected {', '.join(expected)}"
        )
    if header["Root-Is-Purelib"] != "false":
        errors.append("WHEEL says that there is no extension (Root-Is-Purelib)")
    recorded = {row[0]: row[1] for row in csv.reader(files[f"{info}/RECORD"].decode().splitlines()) if row}
    for file, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if file != f"{info}/RECORD" and recorded.get(file) != f"sha256={digest}":
            errors.append(f"RECORD does not fit {file}")
    errors += [f"RECORD has {file}, the wheel has not" for file in recorded.keys() - files.keys()]
    if tags.kind != "linux":
        errors += check_bill(files, info)
    return errors


def check_bill(files: dict[str, bytes], info: str) -> list[str]:
    """Errors if the SBOM describes another extension."""
    content = files.get(f"{info}/sboms/gemlet.cdx.json")
    if content is None:
        return ["there is no SBOM"]
    bom = json.loads(content)
    named = {
        file["name"]: file["hashes"][0]["content"] for file in bom["metadata"]["component"]["components"]
    }
    extensions = {name: hashlib.sha256(files[name]).hexdigest() for name in files if name.endswith(".so")}
    errors = [] if named == extensions else ["the SBOM is of another extension"]
    parts = {component["name"] for component in bom["components"]}
    missing = {"pybind11", "libcxx"} - parts
    return errors + ([f"the SBOM lacks {', '.join(sorted(missing))}"] if missing else [])


def check(wheel: Path) -> list[str]:
    """All errors of the wheel."""
    tags = parse_name(wheel.name)
    if isinstance(tags, str):
        return [tags]
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        files = {entry.filename: archive.read(entry) for entry in entries if not entry.is_dir()}
    demo = [entry for entry in entries if entry.filename.startswith("gemlet/demo/")]
    demo_bytes = sum(entry.file_size for entry in demo)
    other_bytes = wheel.stat().st_size - sum(entry.compress_size for entry in demo)
    limit = 5 if tags.kind == "linux" else 2
    errors = check_metadata(files, tags, wheel.name)
    if other_bytes >= limit * MB:
        errors.append(f"{other_bytes / MB:.2f} MB without the demo model, expected under {limit} MB")
    if not 0 < demo_bytes <= 10 * MB:
        errors.append(f"the demo model has {demo_bytes / MB:.2f} MB, expected at most 10 MB")
    extensions = [file for file in files if file.endswith(".so")]
    if len(extensions) != 1:
        errors.append(f"expected one extension, got {extensions}")
    with tempfile.TemporaryDirectory() as folder:
        for extension in extensions:
            path = Path(folder) / "extension.so"
            path.write_bytes(files[extension])
            errors += [
                f"{extension} {problem}" for problem in check_extension(extension, path.as_posix(), tags)
            ]
    print(f"{wheel.name}: {other_bytes / MB:.2f} MB and a demo model of {demo_bytes / MB:.2f} MB")
    return errors


def main() -> int:
    errors = check(Path(sys.argv[1]))
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
