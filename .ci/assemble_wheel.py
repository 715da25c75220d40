"""Adds an extension to the wheel that has only the Python code. Adds the tags and a list of the extension's
parts, too.

    assemble_wheel.py PLAIN_WHEEL EXTENSION --tag cp312-cp312-manylinux_2_28_x86_64 --out FOLDER \
        --kept FOLDER --part NAME=VERSION=LICENCE=ADDRESS ...

The same input gives the same bytes: files are sorted, and their time is SOURCE_DATE_EPOCH. The list is an
SBOM in CycloneDX, in the folder that PEP 770 names. Parts are the libraries that were compiled into the
extension.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import struct
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable
from email.parser import Parser
from functools import partial
from pathlib import Path
from typing import Any

_TOO_LONG = 4 << 20  # zopfli would take a minute for the demo model's weights and hardly shrink them


def wheel_tags(tag: str) -> list[str]:
    """The single tags of a compressed tag, which has dots between its platforms."""
    python, abi, platforms = tag.split("-")
    return [f"{python}-{abi}-{platform}" for platform in platforms.split(".")]


def deflated(content: bytes) -> bytes:
    """``content`` in the form DEFLATE."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)  # without zlib's header and checksum
    return compressor.compress(content) + compressor.flush()


def shortest(content: bytes, kept: Path) -> bytes:
    """Like :func:`deflated`, but zopfli searches for the shortest form. The result is kept for the next
    wheel."""
    import zopfli.zlib

    if len(content) > _TOO_LONG:
        return deflated(content)
    path = kept / hashlib.sha256(content).hexdigest()
    if not path.exists():
        kept.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".begun")
        # With no limit on the number of blocks, and without zlib's header and checksum.
        begun.write_bytes(zopfli.zlib.compress(content, blocksplittingmax=0)[2:-4])
        begun.rename(path)
    return path.read_bytes()


def write_wheel(
    path: Path, files: dict[str, bytes], epoch: int, deflate: Callable[[bytes], bytes] = deflated
) -> None:
    """A wheel of these files, with RECORD as the last one.

    ``zipfile`` cannot write what another library compressed, so this writes the structures of a ZIP file:
    https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
    """
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    record = f"{info}/RECORD"
    lines = []
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}")
    contents = {name: files[name] for name in sorted(files)}
    contents[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    # Zip files cannot have a time before 1980.
    year, month, day, hour, minute, second = time.gmtime(max(epoch, 315532800))[:6]
    moment = (hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day)
    local, central = bytearray(), bytearray()
    for name, content in contents.items():
        data, encoded = deflate(content), name.encode()
        # Version 2.0, names in UTF-8, DEFLATE.
        facts = struct.pack(
            "<5H3I2H", 20, 0x800, 8, *moment, zlib.crc32(content), len(data), len(content), len(encoded), 0
        )
        mode = (0o100755 if name.endswith(".so") else 0o100644) << 16
        written_by = 3 << 8 | 20  # Unix
        central += struct.pack("<4sH", b"PK\1\2", written_by) + facts
        central += struct.pack("<3H2I", 0, 0, 0, mode, len(local)) + encoded
        local += struct.pack("<4s", b"PK\3\4") + facts + encoded + data
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(contents), len(contents), len(central), len(local), 0)
    path.write_bytes(local + central + end)


def bill_of_materials(
    name: str, version: str, extension: str, content: bytes, parts: list[str], epoch: int
) -> bytes:
    """The parts of the wheel that are not gemlet's code, as CycloneDX 1.6."""
    components: list[dict[str, Any]] = []
    for part in parts:
        part_name, part_version, licence, address = part.split("=", 3)
        components.append(
            {
                "type": "library",
                "bom-ref": address,
                "name": part_name,
                "version": part_version,
                "licenses": [{"expression": licence}],
                "purl": address,
            }
        )
    components.sort(key=lambda component: str(component["name"]))
    own = f"pkg:pypi/{name}@{version}"
    digest = hashlib.sha256(content).hexdigest()
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{own}#{digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch)),
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": name,
                "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
                "purl": own,
                "components": [
                    {"type": "file", "name": extension, "hashes": [{"alg": "SHA-256", "content": digest}]}
                ],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": own, "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }
    return (json.dumps(bom, indent=1) + "\n").encode()


def assemble(
    plain: Path, extension: Path, tag: str, parts: list[str], out: Path, epoch: int, kept: Path
) -> Path:
    """Writes the wheel into `out` and returns its path."""
    with zipfile.ZipFile(plain) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    del files[f"{info}/RECORD"]
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    name, version = metadata["Name"], metadata["Version"]
    header = [
        "Wheel-Version: 1.0",
        f"Generator: {name} .ci/assemble_wheel.py",
        "Root-Is-Purelib: false",
        *(f"Tag: {one}" for one in wheel_tags(tag)),
    ]
    files[f"{info}/WHEEL"] = ("\n".join(header) + "\n\n").encode()
    content = extension.read_bytes()
    place = f"{name}/{extension.name}"
    files[place] = content
    files[f"{info}/sboms/{name}.cdx.json"] = bill_of_materials(name, version, place, content, parts, epoch)
    path = out / f"{name}-{version}-{tag}.whl"
    write_wheel(path, files, epoch, partial(shortest, kept=kept))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Adds an extension to the wheel of the Python code.")
    parser.add_argument("plain", type=Path)
    parser.add_argument("extension", type=Path)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--part", action="append", default=[], metavar="NAME=VERSION=LICENCE=ADDRESS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True, help="keeps compressed files between calls")
    options = parser.parse_args()
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    path = assemble(
        options.plain, options.extension, options.tag, options.part, options.out, epoch, options.kept
    )
    print(path)


if __name__ == "__main__":
    main()
