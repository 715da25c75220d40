"""Reads the object files of a build: code that runs on every machine must not use special instructions.

    check_objects.py BUILD_DIR

Objects compiled with the flags of kernels/isa.cmake must define no weak or unique symbol, because the linker
could use this copy for the whole program. They may call only the C library's memory functions and the
function that ends a process whose stack was overwritten. All other objects must contain no instruction beyond
plain x86-64 or armv8-a. On Arm, an instruction-set object has the instructions of its tier and of no higher
tier. Only the files of amx may use tile registers, because they configure and release them.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from check_includes import isa_tiers

ALLOWED_CALLS = {"memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail", "__stack_chk_guard"}
# Instructions beyond SSE2: VEX and EVEX encodings (a mnemonic with v, or mask registers), and some of SSSE3
# and SSE4.
BEYOND_BASELINE = re.compile(
    r"\t(?:v[a-z0-9]+\s.*%(?:[xyz]mm|k)[0-9]|vzero\w+|k[a-z]+\s.*%k[0-7]"
    r"|(?:popcnt|pshufb|palignr|pabs|pmov[sz]x|pmulld|round[sp][sd]|blendv|ptest|pinsr[bdq]|pextr[bdq])\w*\s"
    r"|(?:ldtilecfg|sttilecfg|tile\w+|tdp\w+)\b).*"
)
TILES = re.compile(r"\t(ldtilecfg|sttilecfg|tile\w+|tdp\w+)\b")
AMX_NEEDS = {"ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"}
# Instructions beyond armv8-a: byte and bf16 products, rounding multiply-adds, atomics in one instruction,
# arithmetic on halves, scalable vectors.
BEYOND_ARMV8 = re.compile(
    r"\t(?:(?P<product>[su]dot|usdot|sudot|us?mmla|smmla)\s|bf(?:dot|mmla|mlal|cvt)\w*\s|sqrdml[as]h\s"
    r"|(?:cas|swp|ld(?:add|clr|set|eor|[su]max|[su]min))[abhlp]*\s|f(?!cvt)\w+\s+(?:h\d|v\d+\.[48]h)"
    r"|\w+\s.*\b[zp]\d+[./]).*"
)
ARM_PRODUCTS = {
    "dotprod": {"sdot", "udot"},
    "i8mm": {"sdot", "udot", "usdot", "sudot", "smmla", "ummla", "usmmla"},
}
SYMBOL = re.compile(r"^[0-9a-f ]*([A-Za-z?-]) (\S+)$", re.MULTILINE)
MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}  # ELF's e_machine


def machine_of(path: Path) -> str:
    header = path.read_bytes()[:20]
    return MACHINES.get(int.from_bytes(header[18:20], "little"), "another machine")


def tool(name: str, path: Path, *options: str) -> str:
    """The output of a tool of binutils for an object of any machine."""
    machine = machine_of(path)
    prefix = "" if machine == platform.machine() else f"{machine}-linux-gnu-"
    command = [prefix + name, *options, path.as_posix()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_isa_object(path: Path) -> list[str]:
    errors = []
    for kind, symbol in SYMBOL.findall(tool("nm", path, "-C").replace(" (", "(")):
        if kind in "WVu":
            errors.append(f"{path}: weak symbol {symbol}")
        elif kind in "Uwv" and symbol not in ALLOWED_CALLS:
            errors.append(f"{path}: calls {symbol}, which is not allowed")
    if machine_of(path) == "x86_64":
        errors += check_tiles(path)
    else:
        errors += check_instructions(path, ARM_PRODUCTS.get(path.name.split(".")[0], set()))
    return errors


def check_tiles(path: Path) -> list[str]:
    tiles = {*TILES.findall(tool("objdump", path, "-d", "--no-show-raw-insn"))}
    if not path.name.startswith("amx."):
        return [f"{path}: uses tiles: {', '.join(sorted(tiles))}"] if tiles else []
    missing = AMX_NEEDS - tiles
    return [f"{path}: lacks {', '.join(sorted(missing))}"] if missing else []


def check_instructions(path: Path, products: set[str]) -> list[str]:
    """Errors for instructions beyond the machine's baseline, except the given products."""
    if ".gnu.lto_" in tool("objdump", path, "-h"):
        return [
            f"{path}: not machine code yet: CMakeLists.txt sets CMAKE_INTERPROCEDURAL_OPTIMIZATION to OFF"
        ]
    machine = machine_of(path)
    beyond = BEYOND_ARMV8 if machine == "aarch64" else BEYOND_BASELINE
    for found in beyond.finditer(tool("objdump", path, "-d", "--no-show-raw-insn")):
        if found.groupdict().get("product") not in products:
            return [f"{path}: not plain {machine}: {' '.join(found.group().split())}"]
    return []


def main() -> int:
    build = Path(sys.argv[1])
    tiers = isa_tiers()
    objects = sorted(build.rglob("*.o"))
    in_kernels = [path for path in objects if path.parent.parent.name == "kernels"]
    isa = [path for path in in_kernels if path.name.split(".")[0] in tiers]
    plain = [path for path in objects if path not in isa]
    if not plain or not isa:
        raise SystemExit(f"{build}: {len(plain)} plain, {len(isa)} instruction-set objects; a build folder?")
    errors = [error for path in isa for error in check_isa_object(path)]
    errors += [error for path in plain for error in check_instructions(path, set())]
    print(
        "\n".join(errors) or f"{len(isa)} instruction-set objects are sealed, {len(plain)} others are plain"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
