"""Estimates the time of the inner loops of the Arm kernels with llvm-mca. Nothing runs.

    python benchmarks/arm_estimates.py BUILD [--mca llvm-mca-19] [--objdump aarch64-linux-gnu-objdump]

BUILD is a build for aarch64 without link-time optimization, such as the one that `.ci/run aarch64` makes. If
a kernel has several innermost loops for many rows, the script takes the loop that loses most. It prints the
cycles of the loop, and the share of them that would be needed if there were only loads and products, or only
arithmetic. llvm-mca models neither caches nor branches, so the figures are for data in the first-level cache.
A Cortex-A76 is modelled as the Neoverse N1, which is the same core for servers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# llvm-mca's name, and the numbers of vector instructions and of loads that begin in a cycle.
CPUS = {"Cortex-A76": ("neoverse-n1", (2, 2)), "Neoverse V1": ("neoverse-v1", (4, 3))}
TIERS = ("neon", "dotprod", "i8mm")
PRODUCT = re.compile(
    r"^(sdot|udot|usdot|sudot|smmla|ummla|usmmla|smull2?|smlal2?|smlal2?|fmla|fmul|sadalp)\b"
)
LOAD = re.compile(r"^(ldr|ldp|ldur|ld1|ld1r|ld2|ld3|ld4)\b.*\b[qvd]\d")
# Instructions that a loop would not need with more registers: copies, and uses of the stack.
OVERHEAD = re.compile(r"^(mov|movi|str|stp)\b|\[sp\b")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
LINE = re.compile(r"^\s+([0-9a-f]+):\s+(.+)$")
BRANCH = re.compile(r"^(?:b\.\w+|cbn?z|tbn?z|b)\s+(?:\w+, )?(?:#\d+, )?([0-9a-f]+) <")


@dataclass(frozen=True)
class Loop:
    function: str
    instructions: tuple[str, ...]

    @property
    def bound(self) -> tuple[str, ...]:
        """The number of loads and products in the loop."""
        kept = (one for one in self.arithmetic if PRODUCT.match(one) or LOAD.match(one))
        return tuple(kept)

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """The numbers of vector instructions and of vector loads in the loop, without copies and uses of the
        stack."""
        kept = (one for one in self.instructions if re.search(r"\b[vqd]\d", one) or LOAD.match(one))
        return tuple(one for one in kept if not OVERHEAD.search(one))

    @property
    def products(self) -> int:
        return sum(bool(PRODUCT.match(one)) for one in self.instructions)

    @property
    def loads(self) -> int:
        return sum(bool(LOAD.match(one)) for one in self.instructions)


def loops_of(path: Path, objdump: str) -> list[Loop]:
    """The innermost loops of an object that multiply."""
    command = [objdump, "-dC", "--no-show-raw-insn", path.as_posix()]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[Loop] = []
    function, code = "", {}
    for line in [*text.splitlines(), "0 <end>:"]:
        if match := FUNCTION.match(line):
            found += _innermost(function, code)
            function, code = match[1], {}
        elif match := LINE.match(line):
            instruction = re.sub(r"\s*//.*", "", match[2]).replace("\t", " ").strip()
            code[int(match[1], 16)] = instruction
    return [loop for loop in found if loop.products >= 4]


def _innermost(function: str, code: dict[int, str]) -> list[Loop]:
    ranges = []
    for address, instruction in code.items():
        match = BRANCH.match(instruction)
        if match and int(match[1], 16) <= address:
            ranges.append((int(match[1], 16), address))
    inner = [
        (begin, end)
        for begin, end in ranges
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in ranges)
    ]
    name = re.sub(r"gemlet::kernels::|\(anonymous namespace\)::|^void |,? *\(.*", "", function)
    return [Loop(name, tuple(code[at] for at in sorted(code) if begin <= at <= end)) for begin, end in inner]


def analyse(instructions: tuple[str, ...], cpu: str, mca: str, tier: str) -> str:
    """llvm-mca's report for a loop of these instructions."""
    code = "\n".join(re.sub(r"\b[0-9a-f]+ <.*", "0", one) for one in instructions)
    features = f"+dotprod{',+i8mm' if tier == 'i8mm' else ''}"
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", f"-mattr={features}", "-iterations=200"]
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{mca} does not take this:\n{done.stderr}")
    return done.stdout


def cycles(instructions: tuple[str, ...], cpu: str, mca: str, tier: str) -> float:
    """Cycles of one iteration, including the waiting for results."""
    match = re.search(r"Total Cycles:\s+(\d+)", analyse(instructions, cpu, mca, tier))
    assert match
    return int(match[1]) / 200


def busy(instructions: tuple[str, ...], units: tuple[int, int], cpu: str, mca: str, tier: str) -> float:
    """Cycles of one iteration if nothing waited for a result: the limit of all units for vectors or loads
    together, or of the busiest one. Some instructions, such as ``smull``, run on only one unit."""
    loads = sum(bool(LOAD.match(one)) for one in instructions)
    match = re.search(r"Block RThroughput:\s+([\d.]+)", analyse(instructions, cpu, mca, tier))
    assert match
    return max((len(instructions) - loads) / units[0], loads / units[1], float(match[1]))


def estimates(loop: Loop, mca: str, tier: str) -> list[tuple[float, float, float]]:
    """For every processor: cycles, and the shares of loads and products and of all arithmetic."""
    found = []
    for cpu, units in CPUS.values():
        if tier == "i8mm" and cpu == "neoverse-n1":  # has none
            continue
        whole = cycles(loop.instructions, cpu, mca, tier)
        bound, arithmetic = (
            min(1, busy(part, units, cpu, mca, tier) / whole) for part in (loop.bound, loop.arithmetic)
        )
        found.append((whole, bound, arithmetic))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimates of the inner loops of the Arm kernels.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    parser.add_argument("--least", type=int, default=24, help="products of a loop that is shown")
    options = parser.parse_args()
    columns = (f"{cpu}: cycles | loads and products | all arithmetic" for cpu in CPUS)
    print("| tier | loop | products | loads | " + " | ".join(columns) + " |")
    print("|---|---|--:|--:|" + "--:|--:|--:|" * len(CPUS))
    for tier in TIERS:
        for path in sorted(options.build.rglob(f"kernels/*/{tier}.cpp.o")):
            functions: dict[str, list[Loop]] = {}
            for loop in loops_of(path, options.objdump):
                functions.setdefault(loop.function, []).append(loop)
            for name, loops in sorted(functions.items()):
                most = max(loop.products for loop in loops)
                if most < options.least:
                    continue
                large = [loop for loop in loops if 2 * loop.products > most]
                found = [(estimates(loop, options.mca, tier), loop) for loop in large]
                shares, loop = min(found, key=lambda one: one[0][0][2])
                cells = ["-"] * (3 * (len(CPUS) - len(shares)))
                for whole, *parts in shares:
                    cells += [f"{whole:.0f}", *(f"{part:.0%}" for part in parts)]
                title = f"{path.parent.name}: {name}"
                print(f"| {tier} | {title} | {loop.products} | {loop.loads} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
