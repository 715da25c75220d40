"""The size of a wheel, what its extension needs at run time, and how it is hardened.

    check_wheel.py WHEEL

Under 5 MB without the demo model, at most 10 MB for the demo model, and no shared library beyond the C and
C++ run-time libraries. All addresses are bound at the start and cannot be written to afterwards, the stack is
not executable, functions guard their frames, containers check their indexes, and PyInit__core is the only
symbol that others see.
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

# Functions of the C library that _FORTIFY_SOURCE always replaces by a checking one (__printf_chk).
UNCHECKED = re.compile(r"(v?f?printf|v?d?printf|v?sn?printf|v?asprintf|longjmp|syslog)")


def check_hardening(path: str) -> list[str]:
    """What the ELF file lacks."""

    def readelf(*options: str) -> str:
        return subprocess.run(["readelf", *options, path], check=True, capture_output=True, text=True).stdout

    errors = []
    dynamic, segments = readelf("-d"), readelf("-lW")
    if not re.search(r"\(FLAGS\).*BIND_NOW|\(BIND_NOW\)|\(FLAGS_1\).*NOW", dynamic):
        errors.append("BIND_NOW is missing")
    if "GNU_RELRO" not in segments:
        errors.append("GNU_RELRO is missing")
    if not re.search(r"GNU_STACK.* RW +0x", segments):
        errors.append("the stack is executable")
    if "(TEXTREL)" in dynamic:
        errors.append("code is changed when it is loaded")
    exported, imported = [], []
    for line in readelf("--dyn-syms", "-W").splitlines():
        # 12: 0000000000057f30  4711 FUNC    GLOBAL DEFAULT   12 PyInit__core
        fields = line.split()
        if len(fields) >= 8 and fields[4] in ("GLOBAL", "WEAK", "UNIQUE"):
            (imported if fields[6] == "UND" else exported).append(fields[7].partition("@")[0])
    if exported != ["PyInit__core"]:
        errors.append(f"exports {', '.join(exported[:10])}; expected PyInit__core alone")
    if "__stack_chk_fail" not in imported:
        errors.append("no function guards its frame (__stack_chk_fail)")
    if not any("__glibcxx_assert_fail" in name for name in imported):
        errors.append("containers do not check their indexes (_GLIBCXX_ASSERTIONS)")
    unchecked = [name for name in imported if UNCHECKED.fullmatch(name)]
    if unchecked:
        errors.append(f"calls {', '.join(unchecked)}, which _FORTIFY_SOURCE would have replaced")
    return errors


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
                errors += [f"{extension}: {problem}" for problem in check_hardening(path)]
    errors += [f"needs {name}, a system library" for name in needed if not RUNTIME_LIBRARIES.fullmatch(name)]
    print(f"{wheel.name}: {other_bytes / MB:.2f} MB and a demo model of {demo_bytes / MB:.2f} MB")
    print(f"needs {', '.join(needed)}")
    print("\n".join(errors), end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
