"""Plants faults in the CUDA kernels and asserts that the emulator finds each of them.

    python .ci/cuda_mutants.py BUILD

BUILD is a folder that was configured with GEMLET_CUDA=emulated and GEMLET_CHECK=ON, and built. For each
fault, one file is compiled again, the library that stands in for the driver is linked again, and
gemlet_check_cuda must fail with it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
KERNELS = ("attention", "matmul", "rowwise", "towers")
# A name, the file, and what is replaced by what. The text is in the file once.
MUTANTS = (
    (
        "a sum over warps without a barrier",
        "matmul.cu",
        "  __syncthreads();\n  const int64_t row = threadIdx.x / kPanelRows",
        "  const int64_t row = threadIdx.x / kPanelRows",
    ),
    (
        "a tile is used while it is written",
        "matmul.cu",
        "col, w_tile);\n    __syncthreads();\n",
        "col, w_tile);\n",
    ),
    (
        "a tile is written while it is used",
        "matmul.cu",
        "    __syncthreads();\n    stage_x(",
        "    stage_x(",
    ),
    (
        "a query is used while it is written",
        "attention.cu",
        "    __syncwarp();\n    float out[kNumbers]",
        "    float out[kNumbers]",
    ),
    (
        "a rotated head is used while it is written",
        "attention.cu",
        "  __syncthreads();\n  if (is_query) {",
        "  if (is_query) {",
    ),
    (
        "a barrier that one warp alone reaches",
        "attention.cu",
        "  __syncthreads();\n  if (is_query) {",
        "  if (threadIdx.x < 32) __syncthreads();\n  if (is_query) {",
    ),
    (
        "shared memory past its end",
        "matmul.cu",
        "shared[(warp * kRows + row) * kPanelRows + quad * 4 + r] = sum;",
        "shared[(warp * kRows + row) * kPanelRows + quad * 4 + r + 1] = sum;",
    ),
    (
        "outputs past the last",
        "matmul.cu",
        "row >= kRows || first + row >= args.rows || output >= args.weight.rows",
        "row >= kRows || first + row >= args.rows",
    ),
    (
        "rows past the last",
        "matmul.cu",
        "if (row < args.rows && output < args.weight.rows) args.y",
        "if (output < args.weight.rows) args.y",
    ),
    (
        "a key past the last",
        "attention.cu",
        "const bool visible = token >= row.begin && token < row.end;",
        "const bool visible = token >= row.begin && token <= row.end;",
    ),
)


def compile_command(build: Path, name: str) -> list[str]:
    """How the build compiles a kernel's file for the library that stands in for the driver."""
    commands = json.loads((build / "compile_commands.json").read_text())
    for one in commands:
        if one["file"].endswith(f"kernels/cuda/{name}") and "gemlet_emulated_cuda" in one["output"]:
            return shlex.split(one["command"])
    raise SystemExit(f"{build} does not compile {name}: configure it with GEMLET_CUDA=emulated")


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    objects = build / "csrc/CMakeFiles/gemlet_emulated_cuda.dir/kernels/cuda"
    check = build / "csrc/gemlet_check_cuda"
    survivors = []
    with TemporaryDirectory() as folder:
        for what, name, old, new in MUTANTS:
            text = (ROOT / "csrc/kernels/cuda" / name).read_text()
            if text.count(old) != 1:
                raise SystemExit(f"{name} has the text of the mutant {what!r} {text.count(old)} times")
            source, made, library = (Path(folder) / one for one in ("mutant.cu", "mutant.o", "libcuda.so"))
            source.write_text(text.replace(old, new))
            command = compile_command(build, name)
            command[command.index("-o") + 1] = str(made)
            command[command.index("-c") + 1] = str(source)
            command = ["-O1" if word == "-O3" else word for word in command]
            subprocess.run(command, cwd=build, check=True)
            others = [str(objects / f"{one}.cu.o") for one in KERNELS if f"{one}.cu" != name]
            others += [str(one) for one in (objects / "emulated").glob("*.o")]
            compiler = next(word for word in command if Path(word).name != "ccache")
            subprocess.run([compiler, "-shared", "-o", str(library), str(made), *others], check=True)
            ran = subprocess.run(
                [check],
                env={**os.environ, "GEMLET_LIBCUDA": str(library)},
                capture_output=True,
                text=True,
                timeout=300,
            )
            found = ran.returncode != 0
            print(
                f"{'found ' if found else 'MISSED'} {what}: {ran.stdout.strip()[:150]} ({ran.returncode})",
                flush=True,
            )
            survivors += [] if found else [what]
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
