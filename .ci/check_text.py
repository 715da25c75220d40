"""Checks that no file names a path of the machine on which it was written.

It reads every file under version control. In an export without .git, it reads every file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE_PATH = re.compile(rb"(?<![\w.~$}/-])/(?:work|root|home|Users|tmp)/[\w.-]+")
CARRIAGE_RETURN = re.compile(rb"\r\n")
TEXT = {".py", ".pyi", ".md", ".toml", ".txt", ".cmake", ".h", ".cpp", ".list", ".json", ""}


def files() -> list[Path]:
    if not (ROOT / ".git").exists():
        return [path for path in ROOT.rglob("*") if path.is_file()]
    # The list includes new files. The checkout may belong to another user.
    git = ["git", "-c", "safe.directory=*"]
    command = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file()]


def main() -> int:
    errors = []
    for path in files():
        data = path.read_bytes()
        name = path.relative_to(ROOT)
        if found := MACHINE_PATH.search(data):
            errors.append(f"{name}: names the machine path {found.group().decode()}")
        if path.suffix in TEXT and CARRIAGE_RETURN.search(data):
            errors.append(f"{name}: has Windows line ends")
        if len(data) > 2_000_000 and path.parent.name != "demo":
            errors.append(f"{name}: {len(data)} bytes are too many for the repository")
    print("\n".join(errors) or f"{len(files())} files speak of the project only")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
