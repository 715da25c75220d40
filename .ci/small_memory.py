"""Checks that models of real shapes generate text in little memory, and that a model that does not fit is
refused before the system kills the process.

    small_memory.py FOLDER [SHAPE...]

Weights are random, the tokenizer has 262,144 pieces, and `convert` chooses the format. A control group limits
each process that loads a model, so this needs root. FOLDER gets up to 20 GB during the run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
GROUPS = Path("/sys/fs/cgroup")
MB = 1_000_000
# Shape, memory of the machine, and a shape that is too large for it.
CASES = [
    ("gemma3-270m", 512 * MB, "gemma3-1b"),
    ("gemma3-1b", 1000 * MB, "gemma4-e2b"),
    ("gemma4-e2b", 2000 * MB, "gemma3-4b"),
]


def make_group(limit: int) -> Path:
    """A control group with this much memory and no swap, in version 1 or 2."""
    if (GROUPS / "memory").is_dir():
        group = GROUPS / "memory" / f"gemlet-{os.getpid()}"
        limits = {"memory.limit_in_bytes": str(limit), "memory.swappiness": "0"}
    else:
        (GROUPS / "cgroup.subtree_control").write_text("+memory")
        group = GROUPS / f"gemlet-{os.getpid()}"
        limits = {"memory.max": str(limit), "memory.swap.max": "0"}
    group.mkdir()
    for name, value in limits.items():
        if (group / name).exists():  # a kernel without swap has no such limit
            (group / name).write_text(value)
    return group


def limited(limit: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a separate control group."""
    group = make_group(limit)

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        return subprocess.run(command, capture_output=True, text=True, preexec_fn=enter, timeout=1200)
    finally:
        group.rmdir()


def write_text(folder: str) -> None:
    """The program that runs inside the group."""
    import gemlet

    try:
        with gemlet.load(folder, max_context=4096) as model:
            answer = model.generate("The door opened. " * 40, max_tokens=8, temperature=0, stop=[])
    except gemlet.MemoryLimitError as error:
        raise SystemExit(f"refused: {error}") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens, seconds = answer.completion_tokens, answer.decode_tokens_per_second
    print(f"{tokens} tokens, {model.weights}, {seconds:.1f} tokens/s, peak {peak / MB:.0f} MB")


def pack(folder: Path, shape: str, limit: int, write: Callable[[Path, str], None]) -> Path:
    """Writes the shape as a packed folder in the format for this memory, and deletes everything else."""
    import gemlet
    from support.tokenizer_files import gemma4_json

    source, packed = folder / f"{shape}-source", folder / shape
    write(source, shape)
    (source / "tokenizer.json").write_text(json.dumps(gemma4_json()))
    try:
        gemlet.convert(source, packed, for_memory=limit)
    finally:
        shutil.rmtree(source)
    return packed


def main() -> None:
    if sys.argv[1] == "--inside":
        return write_text(sys.argv[2])
    sys.path.insert(0, TESTS.as_posix())
    import gemlet
    from support.real_shapes import write_real_shape, write_real_shape_hole

    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    for shape, limit, larger in CASES:
        if wanted and shape not in wanted:
            continue
        packed = pack(folder, shape, limit, write_real_shape)
        done = limited(limit, sys.executable, __file__, "--inside", packed.as_posix())
        shutil.rmtree(packed)
        if done.returncode:
            raise SystemExit(f"{shape} in {limit // MB} MB: exit code {done.returncode}\n{done.stderr}")
        print(f"{shape} in {limit // MB} MB: {done.stdout.strip()}")

        try:
            pack(folder, larger, limit, write_real_shape_hole)
        except gemlet.MemoryLimitError as error:
            print(f"{larger} for {limit // MB} MB: {str(error)[:80]}...")
        else:
            raise SystemExit(f"{larger} was packed for {limit // MB} MB")
        source = folder / f"{larger}-source"
        write_real_shape_hole(source, larger)
        done = limited(limit, sys.executable, __file__, "--inside", source.as_posix())
        shutil.rmtree(source)
        if done.returncode != 1 or not done.stderr.startswith("refused: "):
            raise SystemExit(f"{larger} in {limit // MB} MB: exit code {done.returncode}\n{done.stderr}")
        print(f"{larger} in {limit // MB} MB is refused")


if __name__ == "__main__":
    main()
