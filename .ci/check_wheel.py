"""The size of a wheel, and what its extension needs at run time.

    check_wheel.py WHEEL

Under 5 MB without the demo model, at most 10 MB for the demo model, and no shared library beyond the C and
C++ run-time libraries.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MB = 1_000_000
RUNTIME_LIBRARIES = re.compile(r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|ld-linux[-\w]*)\.so\.\d+")


def main() -> int:
    wheel = Path(sys.argv[1])
    errors = []
    with zipfile.ZipFile(wheel) as archive:
        files = archive.infolist()
        demo = [file for file in files if file.filename.startswith("gemlet/demo/")]
        extensions = [file.filename for file in files if file.filename.endswith(".so")]
        demo_bytes = sum(file.file_size for file in demo)
        other_bytes = wheel.stat().st_size - sum(file.compress_size for file in demo)
        if other_bytes >= 5 * MB:
            errors.append(f"{other_bytes / MB:.2f} MB without the demo model, expected under 5 MB")
        if not 0 < demo_bytes <= 10 * MB:
            errors.append(f"the demo model has {demo_bytes / MB:.2f} MB, expected at most 10 MB")
        if len(extensions) != 1 or not re.fullmatch(r"gemlet/_core\.[\w-]+\.so", extensions[0]):
            errors.append(f"expected gemlet/_core.*.so and no other extension, got {extensions}")
        if not any(re.fullmatch(r"gemlet-.*\.dist-info/licenses/LICENSE", file.filename) for file in files):
            errors.append("the licence is missing")
        needed: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            for extension in extensions:
                path = archive.extract(extension, folder)
                header = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True)
                needed += re.findall(r"\(NEEDED\).*\[(.+)\]", header.stdout)
                if re.search(r"\((?:RPATH|RUNPATH)\)", header.stdout):
                    errors.append(f"{extension} has a run-time search path")
    errors += [f"needs {name}, a system library" for name in needed if not RUNTIME_LIBRARIES.fullmatch(name)]
    print(f"{wheel.name}: {other_bytes / MB:.2f} MB and a demo model of {demo_bytes / MB:.2f} MB")
    print(f"needs {', '.join(needed)}")
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
