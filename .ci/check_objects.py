"""Reads the object files of a build: nothing of an instruction set may reach code that runs on every machine.

    check_objects.py BUILD_DIR

Objects compiled with the flags of kernels/isa.cmake must define no weak or unique symbol (the linker could
keep that copy for everybody) and call nothing but the C library's memory functions. All other objects must
contain no instruction beyond plain x86-64. Tile registers are for the files of amx alone, which configure and
release them.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from check_includes import isa_tiers

MEMORY_FUNCTIONS = {"memcpy", "memmove", "memset", "memcmp"}
# Beyond SSE2: VEX and EVEX encodings (a v mnemonic, or one on mask registers), and signs of SSSE3 and SSE4.
BEYOND_BASELINE = re.compile(
    r"\t(?:v[a-z0-9]+\s.*%(?:[xyz]mm|k)[0-9]|vzero\w+|k[a-z]+\s.*%k[0-7]"
    r"|(?:popcnt|pshufb|palignr|pabs|pmov[sz]x|pmulld|round[sp][sd]|blendv|ptest|pinsr[bdq]|pextr[bdq])\w*\s).*"
)
TILES = re.compile(r"\t(ldtilecfg|tile\w+|tdp\w+)\b")
SYMBOL = re.compile(r"^[0-9a-f ]*([A-Za-z?-]) (\S+)$", re.MULTILINE)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def machine_code(path: Path) -> str:
    return output("objdump", "-d", "--no-show-raw-insn", path.as_posix())


def check_isa_object(path: Path) -> list[str]:
    errors = []
    if tiles := {*TILES.findall(machine_code(path))}:
        needed = {"ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"}
        if not path.name.startswith("amx."):
            errors.append(f"{path}: uses tiles: {', '.join(sorted(tiles))}")
        elif not needed <= tiles:
            errors.append(f"{path}: lacks {', '.join(sorted(needed - tiles))}")
    elif path.name.startswith("amx."):
        errors.append(f"{path}: uses no tiles")
    for kind, symbol in SYMBOL.findall(output("nm", "-C", path.as_posix()).replace(" (", "(")):
        if kind in "WVu":
            errors.append(f"{path}: weak symbol {symbol}")
        elif kind in "Uwv" and symbol not in MEMORY_FUNCTIONS:
            errors.append(f"{path}: calls {symbol}, which is not a memory function")
    return errors


def check_plain_object(path: Path) -> list[str]:
    if ".gnu.lto_" in output("objdump", "-h", path.as_posix()):
        return [f"{path}: not machine code yet: build with CMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF"]
    code = machine_code(path)
    found = BEYOND_BASELINE.search(code) or TILES.search(code)
    return [f"{path}: not plain x86-64: {' '.join(found.group().split())}"] if found else []


def main() -> int:
    build = Path(sys.argv[1])
    tiers = isa_tiers()
    objects = sorted(build.rglob("*.o"))
    in_kernels = [path for path in objects if path.parent.parent.name == "kernels"]
    isa = [path for path in in_kernels if path.name.split(".")[0] in tiers]
    plain = [path for path in objects if path not in isa]
    x86 = platform.machine() in ("x86_64", "AMD64")
    if not plain or (x86 and not isa):
        raise SystemExit(f"{build}: {len(plain)} plain, {len(isa)} instruction-set objects; a build folder?")
    errors = [error for path in isa for error in check_isa_object(path)]
    if x86:
        errors += [error for path in plain for error in check_plain_object(path)]
    print(
        "\n".join(errors) or f"{len(isa)} instruction-set objects are sealed, {len(plain)} others are plain"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
