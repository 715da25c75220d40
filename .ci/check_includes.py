"""The include direction of csrc/, strictly downwards:

    base <- formats <- kernels <- backend <- model <- engine <- check, bindings

Instruction-set files (compiled with the flags of kernels/isa.cmake) and all they include may use nothing but
the headers of their own operation, kernels/simd/, formats/layout.h and the compiler's intrinsics: an inline
function of a shared header, compiled with AVX-512, may become the copy that every file links.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
LAYERS = ["base", "formats", "kernels", "backend", "model", "engine", "check", "bindings"]
# Where a library's headers may be included; a library not named here may not be used.
LIBRARIES = {"pybind11": "bindings/", "cuda": "backend/cuda/"}
ISA_HEADERS = {"formats/layout.h"}
ISA_SYSTEM_HEADERS = {"immintrin.h", "arm_neon.h", "stdint.h", "stddef.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def isa_tiers() -> list[str]:
    """The tiers that have compiler flags of their own."""
    text = (CSRC / "kernels/isa.cmake").read_text()
    tiers = re.findall(r"^set\(GEMLET_ISA_FLAGS_(\w+)", text, re.MULTILINE)
    if not tiers:
        raise SystemExit("kernels/isa.cmake sets no GEMLET_ISA_FLAGS_<tier>: teach this check to read it")
    return tiers


def includes(path: Path) -> list[tuple[str, str]]:
    """("<" or '"', header) of every include directive."""
    return INCLUDE.findall(path.read_text())


def layer(name: str) -> int | None:
    first = name.split("/")[0]
    return LAYERS.index(first) if first in LAYERS else None


def check_layers(path: Path) -> list[str]:
    name = path.relative_to(CSRC).as_posix()
    own = layer(name)
    if own is None:
        return [f"{name}: not in a layer ({', '.join(LAYERS)})"]
    errors = []
    for kind, header in includes(path):
        if kind == '"':
            theirs = layer(header)
            if theirs is None or not (CSRC / header).is_file():
                errors.append(f'{name}: "{header}" is not a header of csrc/, named from there')
            elif theirs > own:
                errors.append(f'{name}: {LAYERS[own]} may not include "{header}" of {LAYERS[theirs]}')
        elif "/" in header or header.startswith("cu"):
            library = "cuda" if header.startswith("cu") else header.split("/")[0]
            if library != "sys" and not name.startswith(LIBRARIES.get(library, "nowhere")):
                errors.append(f"{name}: <{header}> belongs in {LIBRARIES.get(library, 'no layer')} only")
    return errors


def check_isa(path: Path) -> list[str]:
    """The file and, transitively, all it includes."""
    allowed = [path.parent.relative_to(CSRC).as_posix(), "kernels/simd"]
    errors, seen, todo = [], {path}, [path]
    while todo:
        current = todo.pop()
        for kind, header in includes(current):
            file = CSRC / header
            if kind == "<":
                good = header in ISA_SYSTEM_HEADERS
            else:
                good = file.parent.relative_to(CSRC).as_posix() in allowed or header in ISA_HEADERS
            if not good:
                names = " of ".join(dict.fromkeys(p.relative_to(CSRC).as_posix() for p in (current, path)))
                errors.append(f"{names}: an instruction-set file may not include {header}")
            elif kind == '"' and file.is_file() and file not in seen:
                seen.add(file)
                todo.append(file)
    return errors


def main() -> int:
    sources = sorted(
        path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".list", ".cu", ".cuh")
    )
    isa = [path for path in sources if path.suffix == ".cpp" and path.stem in isa_tiers()]
    if not isa:
        raise SystemExit("csrc/kernels holds no instruction-set file: teach this check where they are")
    errors = [error for path in sources for error in check_layers(path)]
    errors += [error for path in isa for error in check_isa(path)]
    print("\n".join(errors) or f"{len(sources)} files ({len(isa)} for instruction sets) include downwards")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
