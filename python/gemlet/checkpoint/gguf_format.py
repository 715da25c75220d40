"""Reads the header, the metadata and the tensor directory of GGUF files, without trusting them.

Layout (little endian; GGUF specification, versions 2 and 3)::

    "GGUF"  version u32  tensor count u64  metadata count u64
    metadata: key string, value type u32, value            string: length u64, UTF-8 bytes
              array value: element type u32, count u64, elements
    tensors:  name string, dimensions u32, sizes u64 (innermost first), type u32, offset u64
    padding to general.alignment (32), then the tensor data, each offset counted from here

Everything is checked against the size of the file first. A count must fit into the bytes that are left. Sizes
are multiplied as unbounded integers. Every tensor must lie inside the file, and tensors must not overlap. The
data of the tensors is not read.
"""

from __future__ import annotations

import os
import stat
import struct
from itertools import pairwise
from math import prod
from typing import Any, TypeVar, overload

from gemlet.base.arrays import NDArray, np
from gemlet.base.records import record
from gemlet.base.text import show
from gemlet.errors import ModelFileError

__all__ = ["GGUFFile", "GGUFTensor", "parse_gguf", "read_gguf"]

MetadataValue = int | float | bool | str | list[Any] | NDArray[Any]
T = TypeVar("T")

_U8, _I8, _U16, _I16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64, _F64 = range(13)
_NUMBERS = {
    _U8: ("B", "u1"),
    _I8: ("b", "i1"),
    _U16: ("H", "<u2"),
    _I16: ("h", "<i2"),
    _U32: ("I", "<u4"),
    _I32: ("i", "<i4"),
    _F32: ("f", "<f4"),
    _BOOL: ("B", "u1"),
    _U64: ("Q", "<u8"),
    _I64: ("q", "<i8"),
    _F64: ("d", "<f8"),
}
_U64_AT = struct.Struct("<Q").unpack_from

MAX_KEY_BYTES = 65535  # the specification's limit
MAX_ARRAY_DEPTH = 4  # levels of arrays in arrays; the metadata of real models has none
MAX_NESTED = 4096  # arrays in arrays in all metadata: 12 bytes of file become an object 40 times as large
MAX_DIMENSIONS = 4
MAX_OBJECTS = 1 << 24  # strings and nested arrays in all metadata; a real vocabulary has about 800,000
MAX_HEAD_BYTES = 1 << 28  # bytes before the tensors' data; a vocabulary is the largest part
MAX_ENTRIES = 1 << 17  # entries in the metadata, and in the tensor directory
MAX_ALIGNMENT = 1 << 20
_FIRST_BYTES = 1 << 16
_READ_BYTES = 1 << 26  # per system call

# GGML tensor types: number -> (name, values per block, bytes per block).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
# Types of older files: 4-bit blocks in orders for other kernels.
REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
REMOVED_TYPES |= {37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}


@record(frozen=True)
class GGUFTensor:
    """One entry of the tensor directory.

    Attributes:
        name: the name of the tensor.
        shape: in NumPy's order, outermost first, which is the reverse of the file's order: ``[out, in]`` for
            a matrix.
        type: a name such as ``"F32"``, ``"BF16"`` or ``"Q4_0"``.
        offset: in bytes, from the start of the file.
        nbytes: the size of the data in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@record(frozen=True)
class GGUFFile:
    """The head of a GGUF file: its metadata by key, and its tensors by name.

    In the metadata, numbers are ``int``, ``float`` or ``bool``. Arrays of numbers are NumPy arrays, and
    arrays of strings are lists.
    """

    path: str
    version: int
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GGUFTensor]
    alignment: int
    data_offset: int

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: T | None) -> T | None: ...
    def get(self, key: str, kind: type[T], default: Any = ...) -> T | None:
        """The metadata value of ``key``, which has to be a ``kind`` (``int``, ``float``, ``bool``, ``str``,
        ``list`` or ``numpy.ndarray``); ``default`` if the file does not have the key.

        Raises:
            ModelFileError: the key is missing and there is no default, or its value is of another kind.
        """
        if key not in self.metadata:
            if default is ...:
                raise ModelFileError(
                    f"{self.path}: the metadata key {key} is missing; expected {kind.__name__}"
                )
            return default  # type: ignore[no-any-return]
        value = self.metadata[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            got = type(value).__name__
            raise ModelFileError(f"{self.path}: {key} has to be {kind.__name__}, got {got} {show(value)}")
        return value


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads the header, the metadata and the tensor directory of a GGUF file (versions 2 and 3, little
    endian).

    Raises:
        ModelFileError: the file is missing, cut short, or of another kind or version; or it is damaged:
            counts or sizes go beyond its end, a key or a name occurs twice, UTF-8 is invalid, a type is
            unknown, or tensors overlap.
    """
    name = os.fspath(path)
    try:
        # O_NONBLOCK keeps open() from hanging on a FIFO, and has no effect on a regular file.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(f"{name}: cannot be read: {reason}") from error
    try:
        return parse_gguf(name, descriptor)
    finally:
        os.close(descriptor)


def parse_gguf(name: str, descriptor: int, *, size: int | None = None) -> GGUFFile:
    """:func:`read_gguf` for an open file. Errors call it ``name``. With ``size``, the open file is only the
    beginning of a file of this many bytes, up to the tensors' data or further."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{name}: is not a regular file")
    if status.st_size < 24:
        raise ModelFileError(f"{name}: has {status.st_size} bytes; expected at least 24 in a GGUF file")
    try:
        return _Reader(name, descriptor, status.st_size, size or status.st_size).read()
    except OSError as error:
        raise ModelFileError(f"{name}: cannot be read: {error.strerror}") from error


class _Reader:
    """A cursor over the beginning of the file. Every read is checked against the end of the file first. The
    file is read with ``pread`` and not mapped: if it is cut short while it is read, that is an error and does
    not end the process."""

    def __init__(self, path: str, descriptor: int, size: int, file_size: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.data = bytearray()  # the bytes that have been read
        self.size = size
        self.file_size = file_size
        self.at = 0
        self.objects = 0
        self.nested = 0

    def fail(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {message}")

    def need(self, size: int, what: str) -> int:
        """Moves past the next ``size`` bytes, and returns where they start."""
        start = self.at
        left = self.size - start
        if size > left:
            raise self.fail(f"{what} at byte {start} needs {size} bytes, but the file has only {left} left")
        if start + size > MAX_HEAD_BYTES:  # a sparse file may have any size, but memory may not
            raise self.fail(
                f"{what} at byte {start} needs {size} bytes; expected at most {MAX_HEAD_BYTES} before the "
                "tensors' data"
            )
        self.at = start + size
        if self.at > len(self.data):
            self.fetch(self.at)
        return start

    def fetch(self, end: int) -> None:
        """Reads on to ``end``, and at least twice as far as it has read."""
        end = min(self.size, max(end, min(2 * len(self.data), MAX_HEAD_BYTES), _FIRST_BYTES))
        while len(self.data) < end:
            more = os.pread(self.descriptor, min(end - len(self.data), _READ_BYTES), len(self.data))
            if not more:
                raise self.fail("was cut short while gemlet was reading it; load the whole file again")
            self.data += more

    def number(self, code: str, what: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.data, self.need(layout.size, what))[0]

    def string(self, what: str, limit: int | None = None) -> str:
        size = self.number("Q", f"the length of {what}")
        if limit is not None and size > limit:
            raise self.fail(f"{what} is {size} bytes long; expected at most {limit}")
        start = self.need(size, what)
        return self.text(start, start + size, what)

    def text(self, start: int, end: int, what: str) -> str:
        try:
            return str(self.data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} at byte {start} is not valid UTF-8 ({error.reason})") from error

    def read(self) -> GGUFFile:
        self.need(4, "GGUF")
        magic = bytes(self.data[:4])
        if magic != b"GGUF":
            raise self.fail(f"is not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
        version = self.number("I", "the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = " (a big-endian file)" if swapped in (2, 3) else ""
            raise self.fail(
                f"GGUF version {version}{kind} is not supported; expected 2 or 3, little endian; convert the "
                "model again with llama.cpp's converter"
            )
        tensor_count = self.number("Q", "the number of tensors")
        metadata_count = self.number("Q", "the number of metadata entries")
        # The shortest entry of the metadata has an empty key, a type and one byte. The shortest entry of the
        # directory has an empty name, one size, a type and an offset.
        self.justify(metadata_count, 8 + 4 + 1, "metadata entries")
        self.justify(tensor_count, 8 + 4 + 8 + 4 + 8, "tensors")
        for count, what in ((metadata_count, "metadata entries"), (tensor_count, "tensors")):
            if count > MAX_ENTRIES:
                raise self.fail(f"the header announces {count} {what}; expected at most {MAX_ENTRIES}")
        metadata: dict[str, MetadataValue] = {}
        for index in range(metadata_count):
            key = self.string(f"metadata key {index}", MAX_KEY_BYTES)
            if key in metadata:
                raise self.fail(f"the metadata key {key} appears twice")
            metadata[key] = self.value(self.number("I", f"the type of {key}"), key, 0)
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 8 <= alignment <= MAX_ALIGNMENT
            or alignment % 8
        ):
            raise self.fail(
                f"general.alignment has to be a multiple of 8 up to {MAX_ALIGNMENT}, got {alignment!r}"
            )
        entries = [self.tensor(index) for index in range(tensor_count)]
        data_offset = (self.at + alignment - 1) // alignment * alignment
        tensors = self.place(entries, data_offset, alignment)
        return GGUFFile(self.path, version, metadata, tensors, alignment, data_offset)

    def justify(self, count: int, each: int, what: str) -> None:
        left = self.size - self.at
        if count > left // each:
            raise self.fail(
                f"the file announces {count} {what}, but the {left} bytes left have room for at most "
                f"{left // each}"
            )

    def value(self, kind: int, key: str, depth: int) -> MetadataValue:
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self.array(key, depth + 1)
        if kind not in _NUMBERS:
            raise self.fail(f"{key} has the unknown value type {kind}; expected 0 to {_F64}")
        value: int | float = self.number(_NUMBERS[kind][0], key)
        if kind == _BOOL:
            if value not in (0, 1):
                raise self.fail(f"{key} has to be a bool (0 or 1), got {value}")
            return value == 1
        return value

    def array(self, key: str, depth: int) -> MetadataValue:
        if depth > MAX_ARRAY_DEPTH:
            raise self.fail(f"{key} has arrays nested {depth} deep; expected at most {MAX_ARRAY_DEPTH}")
        self.nested += depth > 1
        if self.nested > MAX_NESTED:
            raise self.fail(
                f"{key}: the metadata has more than {MAX_NESTED} arrays in arrays, which is the most"
            )
        kind = self.number("I", f"the element type of {key}")
        count = self.number("Q", f"the length of {key}")
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind][1])
            self.justify(count, dtype.itemsize, f"elements of {key}")
            start = self.need(count * dtype.itemsize, key)
            values = np.frombuffer(self.data[start : self.at], dtype)
            if kind == _BOOL:
                if values.size and int(values.max()) > 1:
                    raise self.fail(f"{key} has to hold bools (0 or 1), got {int(values.max())}")
                return values.astype(np.bool_)
            return values
        if kind not in (_STRING, _ARRAY):
            raise self.fail(f"{key} has the unknown element type {kind}; expected 0 to {_F64}")
        self.justify(count, 8 if kind == _STRING else 12, f"elements of {key}")
        self.objects += count
        if self.objects > MAX_OBJECTS:
            raise self.fail(
                f"{key}: the metadata has {self.objects} or more strings and arrays; expected at most "
                f"{MAX_OBJECTS}"
            )
        return (
            self.strings(count, key)
            if kind == _STRING
            else [self.array(key, depth + 1) for _ in range(count)]
        )

    def strings(self, count: int, key: str) -> list[str]:
        """``count`` strings. This is :meth:`string` in a loop without calls, because a vocabulary with merges
        has 780,000 strings."""
        data, at, end = self.data, self.at, len(self.data)
        values: list[str] = []
        start = at
        try:
            for _ in range(count):
                if at + 8 > end:
                    self.at = at
                    self.need(8, f"the length of {key}[{len(values)}]")
                    end = len(data)
                start = at + 8
                at = start + _U64_AT(data, at)[0]
                if at > end:
                    self.at = start
                    self.need(at - start, f"{key}[{len(values)}]")
                    end = len(data)
                values.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError as error:
            what = f"{key}[{len(values)}] at byte {start}"
            raise self.fail(f"{what} is not valid UTF-8 ({error.reason})") from error
        self.at = at
        return values

    def tensor(self, index: int) -> GGUFTensor:
        """One entry of the directory. Its offset is still counted from the start of the data."""
        name = self.string(f"the name of tensor {index}", MAX_KEY_BYTES)
        dimensions = self.number("I", f"the number of dimensions of {name}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        sizes = [self.number("Q", f"a size of {name}") for _ in range(dimensions)]
        kind = self.number("I", f"the type of {name}")
        offset = self.number("Q", f"the offset of {name}")
        if kind not in TENSOR_TYPES:
            removed = REMOVED_TYPES.get(kind)
            what = (
                f"the unknown type {kind}" if removed is None else f"the type {removed}, which GGUF dropped"
            )
            raise self.fail(
                f"tensor {name} has {what}; take another file of the same model, such as Q4_0 or Q4_K_M"
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if min(sizes) < 1:
            raise self.fail(f"tensor {name} has the sizes {sizes}; expected all above 0")
        if sizes[0] % block:
            raise self.fail(
                f"tensor {name} of type {type_name} has rows of {sizes[0]}; expected a multiple of {block}"
            )
        return GGUFTensor(name, tuple(reversed(sizes)), type_name, offset, prod(sizes) // block * block_bytes)

    def place(self, entries: list[GGUFTensor], data_offset: int, alignment: int) -> dict[str, GGUFTensor]:
        """The entries with offsets from the start of the file. They are checked to lie inside the file
        without overlap."""
        tensors: dict[str, GGUFTensor] = {}
        for entry in entries:
            if entry.name in tensors:
                raise self.fail(f"the tensor {entry.name} appears twice")
            if entry.offset % alignment:
                raise self.fail(
                    f"tensor {entry.name} has the offset {entry.offset}; expected a multiple of {alignment}"
                )
            start = data_offset + entry.offset
            if start + entry.nbytes > self.file_size:
                what = f"tensor {entry.name} ({entry.type} {list(entry.shape)})"
                raise self.fail(
                    f"{what} ends at byte {start + entry.nbytes}, but the file ends at byte "
                    f"{self.file_size}; fetch the whole file again"
                )
            tensors[entry.name] = GGUFTensor(entry.name, entry.shape, entry.type, start, entry.nbytes)
        by_offset = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in pairwise(by_offset):
            if before.offset + before.nbytes > after.offset:
                raise self.fail(f"the tensors {before.name} and {after.name} overlap")
        return tensors
