"""Checks which folders of csrc/ include which. A folder may include the folders to its left (ROOMS below):

    base <- formats <- kernels <- backend <- model <- {vision | audio} <- engine <- {check, bindings}

A header and its source file are one unit, and no units include each other in a circle.

CUDA's headers and .cu files belong in kernels/cuda/ and backend/cuda/. Another file may include a header of
these two only if that header needs no header of CUDA.

Instruction-set files (compiled with the flags of kernels/isa.cmake), and all files that they include, may use
only the headers of their own operation, kernels/simd/, formats/layout.h and the compiler's intrinsics: an
inline function of a shared header, compiled with AVX-512, may become the copy that every file links.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
# Folder -> the other folders that its files may include.
_BELOW_MODEL = ("base", "formats", "backend")
_BELOW_ENGINE = (*_BELOW_MODEL, "model", "vision", "audio")
_ALL = ("base", "formats", "kernels", "backend", "model", "vision", "audio", "engine")
ROOMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "formats": ("base",),
    "kernels": ("base", "formats"),
    "backend": ("base", "formats", "kernels"),
    "model": _BELOW_MODEL,
    "vision": (*_BELOW_MODEL, "model"),
    "audio": (*_BELOW_MODEL, "model"),
    "engine": _BELOW_ENGINE,
    "check": _ALL,
    "bindings": _ALL,
}
CUDA_ROOMS = ("kernels/cuda/", "backend/cuda/")
# CUDA's own headers, which files include in <>.
CUDA_HEADER = re.compile(r"cu|nv|thrust/|cooperative_groups|mma\.h$|device_|driver_|vector_|builtin_types")
# The folders that may include headers of other libraries. Libraries that are not listed may not be used.
LIBRARIES = {"pybind11": ("bindings/",), "linux": ("base/",), "sanitizer": ("kernels/cuda/emulated/",)}
SOURCES = (".h", ".cpp", ".list", ".cu", ".cuh")
ISA_HEADERS = {"formats/layout.h"}
ISA_SYSTEM_HEADERS = {"immintrin.h", "arm_neon.h", "stdint.h", "stddef.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def isa_tiers() -> list[str]:
    """The tiers that have their own compiler flags."""
    text = (CSRC / "kernels/isa.cmake").read_text()
    tiers = re.findall(r"^set\(GEMLET_ISA_FLAGS_(\w+)", text, re.MULTILINE)
    if not tiers:
        raise SystemExit("kernels/isa.cmake sets no GEMLET_ISA_FLAGS_<tier>: teach this check to read it")
    return tiers


class Sources:
    """The files of a csrc/ and their includes."""

    def __init__(self, root: Path) -> None:
        self.includes: dict[str, list[tuple[str, str]]] = {
            path.relative_to(root).as_posix(): INCLUDE.findall(path.read_text())
            for path in sorted(root.rglob("*"))
            if path.suffix in SOURCES
        }

    def headers(self, name: str) -> list[str]:
        """The headers of csrc/ that a file includes directly."""
        return [header for kind, header in self.includes[name] if kind == '"' and header in self.includes]

    def needs_cuda(self, name: str) -> bool:
        """Whether a file includes a header of CUDA, directly or through other headers."""
        seen, todo = {name}, [name]
        while todo:
            current = todo.pop()
            if any(kind == "<" and CUDA_HEADER.match(header) for kind, header in self.includes[current]):
                return True
            new = set(self.headers(current)) - seen
            seen |= new
            todo += new
        return False


def room(name: str) -> str | None:
    first = name.split("/")[0]
    return first if "/" in name and first in ROOMS else None


def check_rooms(sources: Sources, name: str) -> list[str]:
    own = room(name)
    if own is None:
        return [f"{name}: not in a room ({', '.join(ROOMS)})"]
    in_cuda = name.startswith(CUDA_ROOMS)
    errors = []
    if name.endswith((".cu", ".cuh")) and not in_cuda:
        errors.append(f"{name}: CUDA belongs in {' and '.join(CUDA_ROOMS)} only")
    for kind, header in sources.includes[name]:
        if kind == '"':
            theirs = room(header)
            if theirs is None or header not in sources.includes:
                errors.append(f'{name}: "{header}" is not a header of csrc/, named from there')
            elif theirs != own and theirs not in ROOMS[own]:
                errors.append(f'{name}: {own} may not include "{header}" of {theirs}')
            elif header.startswith(CUDA_ROOMS) and not in_cuda and sources.needs_cuda(header):
                errors.append(f'{name}: "{header}" includes CUDA, which only {" and ".join(CUDA_ROOMS)} may')
        elif CUDA_HEADER.match(header):
            if not in_cuda:
                errors.append(f"{name}: <{header}> belongs in {' and '.join(CUDA_ROOMS)} only")
        elif "/" in header and not header.startswith("sys/"):
            allowed = LIBRARIES.get(header.split("/")[0], ())
            if not name.startswith(allowed):
                errors.append(f"{name}: <{header}> belongs in {' and '.join(allowed) or 'no room'} only")
    return errors


def unit(name: str) -> str:
    """A header and the source file of the same name are one unit."""
    return name.rsplit(".", 1)[0] if name.endswith((".h", ".cpp", ".cu", ".cuh")) else name


def check_circles(sources: Sources) -> list[str]:
    """Every circle once, beginning at the unit whose name sorts first."""
    arrows: dict[str, set[str]] = {}
    for name in sources.includes:
        arrows.setdefault(unit(name), set()).update(unit(header) for header in sources.headers(name))
    circles: set[tuple[str, ...]] = set()
    done: set[str] = set()

    def visit(current: str, path: list[str]) -> None:
        if current in path:
            circle = path[path.index(current) :]
            first = circle.index(min(circle))
            circles.add((*circle[first:], *circle[:first], circle[first]))
        elif current not in done:
            for other in sorted(arrows.get(current, set()) - {current}):
                visit(other, [*path, current])
            done.add(current)

    for start in sorted(arrows):
        visit(start, [])
    return [f"units include each other in a circle: {' -> '.join(circle)}" for circle in sorted(circles)]


def check_isa(sources: Sources, name: str) -> list[str]:
    """The file and all files that it includes, directly or not."""
    allowed = (f"{name.rsplit('/', 1)[0]}/", "kernels/simd/")
    errors, seen, todo = [], {name}, [name]
    while todo:
        current = todo.pop()
        for kind, header in sources.includes[current]:
            if kind == "<":
                good = header in ISA_SYSTEM_HEADERS
            else:
                good = f"{header.rsplit('/', 1)[0]}/" in allowed or header in ISA_HEADERS
            if not good:
                names = " of ".join(dict.fromkeys((current, name)))
                errors.append(f"{names}: an instruction-set file may not include {header}")
            elif kind == '"' and header in sources.includes and header not in seen:
                seen.add(header)
                todo.append(header)
    return errors


def isa_files(sources: Sources) -> list[str]:
    tiers = isa_tiers()
    return [name for name in sources.includes if name.endswith(".cpp") and Path(name).stem in tiers]


def problems(sources: Sources) -> list[str]:
    errors = [error for name in sources.includes for error in check_rooms(sources, name)]
    errors += check_circles(sources)
    return errors + [error for name in isa_files(sources) for error in check_isa(sources, name)]


def main() -> int:
    sources = Sources(CSRC)
    isa = isa_files(sources)
    if not isa:
        raise SystemExit("csrc/kernels holds no instruction-set file: teach this check where they are")
    errors = problems(sources)
    found = f"{len(sources.includes)} files ({len(isa)} for instruction sets)"
    print("\n".join(errors) or f"{found} include downwards, without a circle")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
