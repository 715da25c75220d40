"""Reading the safetensors files of a Hugging Face folder, single or sharded, without trusting them.

A safetensors file is: the header's length N (8 bytes, little-endian), N bytes of JSON
``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}``, then the data,
which the tensors must cover exactly: no overlap, no hole, nothing after the last one (the specification's
rule; it leaves no room to hide a second file in). A sharded folder adds ``model.safetensors.index.json`` with
``{"weight_map": {name: file}}``; every tensor must be in the one file the index names, and in no other.

Tensors are read with ``pread`` into memory of their own, one at a time, and not through ``mmap``: a file that
another process truncates, or a disk that fails, is then an error that names the tensor, where a mapping would
end the process with SIGBUS. The price is a copy of one tensor while it is packed; nothing stays resident.
A file that changes while it is open (its size, or its time of modification) is refused too; bytes rewritten
in place with both kept equal go unnoticed. Whether the values are finite is checked where they are packed.

Symbolic links are followed: the Hugging Face cache is made of them (``snapshots/REV/model.safetensors`` leads
to ``../../blobs/SHA``), and only someone who can write to the folder can plant one. What the *content* of an
index may name is narrower: a plain file name in the same folder, no path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from gemlet._json import no_waiting, parse_json_object, read_json_object, show
from gemlet.errors import MemoryLimitError, ModelClosedError, ModelFileError, TensorError

if TYPE_CHECKING:
    from io import FileIO
    from typing import Self

    from numpy.typing import NDArray

    from gemlet import _core

__all__ = ["Checkpoint", "TensorFiles", "TensorInfo"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_HEADER_BYTES = 10_000_000  # parsing may take 25 times as much memory
MAX_TENSORS = 1 << 16
MAX_SHARDS = 512  # each is an open file; the largest Gemma has 12
MAX_RANK = 8
_SCAN_BYTES = 1 << 20  # stays in the cache of a core
_READ_BYTES = 1 << 26  # per system call, so that Ctrl-C is seen between calls

# dtype -> bits per element. gemlet reads three of them; the others may stand in tensors it does not use.
_DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
# dtype -> (name the core uses, NumPy type of the array; bf16 and f16 travel as their bits)
_READABLE = {"F32": ("f32", "<f4"), "BF16": ("bf16", "<u2"), "F16": ("f16", "<u2")}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: ``begin`` and ``nbytes`` are in bytes, from the start of ``file``."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class TensorFiles:
    """Tensors in one or several files of a folder, read with ``pread``. A context manager; ``close()`` closes
    the files. What a file of some kind says about its tensors is the subclasses' part.
    """

    # type -> (the core's name of it, NumPy type of the array; what NumPy does not have travels as bits)
    _readable: Mapping[str, tuple[str, str]] = {}
    _expected = ""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: dict[str, tuple[FileIO, int, int]] = {}  # name -> (file, size, modified, in ns)
        self.tensors: Mapping[str, TensorInfo] = {}

    def path(self, file: str) -> str:
        """Where ``file``, as a TensorInfo names it, lies."""
        return os.path.join(self.folder, file)

    def descriptor(self, file: str) -> int:
        """The open file ``file``, while the checkpoint is open."""
        if file not in self._files:
            raise ModelClosedError(f"{self.path(file)}: used after the checkpoint was closed")
        return self._files[file][0].fileno()

    def _open_file(self, file: str) -> tuple[FileIO, int, int]:
        path = self.path(file)
        try:
            handle = open(path, "rb", buffering=0, opener=no_waiting)  # noqa: SIM115  (closed by close())
        except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise ModelFileError(f"{path}: cannot be opened: {reason}") from None
        status = os.fstat(handle.fileno())
        self._files[file] = (handle, status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: not a regular file")
        return self._files[file]

    def dtype(self, name: str) -> str:
        """The type of tensor ``name`` as the core calls it: "f32", "bf16", "f16"; in GGUF also "q4_0", ...

        Raises :class:`TensorError` for a tensor that is not there or has another type.
        """
        info = self.tensors.get(name)
        if info is None:
            raise TensorError(f"{self.folder}: has no tensor {show(name)}")
        if info.dtype not in self._readable:
            raise TensorError(
                f"{self.path(info.file)}: tensor {show(name)} is {info.dtype}; expected {self._expected}"
            )
        return self._readable[info.dtype][0]

    def read(self, name: str) -> tuple[NDArray[Any], str]:
        """The values of tensor ``name`` and their type: "f32" (float32), "bf16" or "f16" (the bits, uint16),
        or a block type of GGUF (uint8: the last axis counts the bytes of a row).

        The array, of the tensor's shape, is the caller's own. Raises :class:`TensorError` for a tensor that
        is not there or has another type, :class:`ModelFileError` when the file cannot be read.
        """
        import numpy as np

        tag = self.dtype(name)
        info = self.tensors[name]
        try:
            array: NDArray[Any] = np.empty(
                self._array_shape(info, info.shape, info.nbytes), dtype=self._readable[info.dtype][1]
            )
        except MemoryError:
            raise MemoryLimitError(f"no memory for the {info.nbytes} bytes of tensor {show(name)}") from None
        self._fill(info.file, info.begin, array.reshape(-1).view(np.uint8).data, show(name))
        return array, tag

    def read_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """The values of :meth:`read` in blocks of rows of about ``block_bytes``, each a multiple of 16 rows
        but the last and an array of its own. With ``entry``, those of the matrix at this place of a stack of
        matrices.
        """
        import numpy as np

        tag = self.dtype(name)
        info = self.tensors[name]
        if entry is None and len(info.shape) < 2:
            yield self.read(name)
            return
        for begin, shape, nbytes in self._row_blocks(info, block_bytes, entry):
            part: NDArray[Any] = np.empty(
                self._array_shape(info, shape, nbytes), dtype=self._readable[info.dtype][1]
            )
            self._fill(info.file, begin, part.reshape(-1).view(np.uint8).data, show(name))
            yield part, tag

    def file_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[_core.FileRows, int, int]]:
        """The blocks of :meth:`read_rows` as places in the file, for the core to read, with their rows and
        bytes. :meth:`check_unchanged` is for after reading."""
        from gemlet import _core

        tag = self.dtype(name)
        info = self.tensors[name]
        descriptor = self.descriptor(info.file)
        for begin, shape, nbytes in self._row_blocks(info, block_bytes, entry):
            # So that the disk is not idle while this block is packed.
            os.posix_fadvise(descriptor, begin + nbytes, 2 * block_bytes, os.POSIX_FADV_WILLNEED)
            rows = _core.FileRows(descriptor=descriptor, offset=begin, shape=shape, dtype=tag)
            yield rows, shape[0], nbytes

    def _row_blocks(
        self, info: TensorInfo, block_bytes: int, entry: int | None
    ) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """(first byte in the file, shape, bytes) of each block; a vector is one."""
        begin, nbytes, shape = info.begin, info.nbytes, info.shape
        if entry is not None:
            nbytes, shape = nbytes // shape[0], shape[1:]
            begin += entry * nbytes
        if len(shape) < 2 or nbytes <= block_bytes:
            yield begin, shape, nbytes
            return
        rows = shape[0]
        row_bytes = nbytes // rows
        step = max(16, block_bytes // row_bytes // 16 * 16)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            yield begin + first * row_bytes, (count, *shape[1:]), count * row_bytes

    def fits_bf16(self, name: str) -> bool:
        """Whether bfloat16 has every value of a float16 tensor, as it does where they came from it. Reads the
        tensor, up to the first value that says no.
        """
        for part, _ in self.read_rows(name, _SCAN_BYTES):
            bits = part[part & 7 != 0]  # the others have eight bits of precision or fewer
            digits = bits & 0x3FF
            if (bits & 0x7C00).any() or (digits // (digits & -digits) > 255).any():  # or they are denormal
                return False
        return True

    def _array_shape(self, info: TensorInfo, shape: tuple[int, ...], nbytes: int) -> tuple[int, ...]:
        if self._readable[info.dtype][1] != "u1":
            return shape
        return (*shape[:-1], nbytes // prod(shape[:-1]))

    def read_bytes(self, file: str, begin: int, length: int) -> bytes:
        """Bytes of ``file`` that are no tensor of numbers. Raises as :meth:`read` does."""
        buffer = bytearray(length)
        self._fill(file, begin, memoryview(buffer), "it")
        return bytes(buffer)

    def _fill(self, file: str, begin: int, buffer: memoryview, what: str) -> None:
        path = self.path(file)
        if file not in self._files:
            raise ModelClosedError(f"{path}: read after the checkpoint was closed")
        handle, _, _ = self._files[file]
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(handle.fileno(), [buffer[done : done + _READ_BYTES]], begin + done)
            except OSError as problem:
                raise ModelFileError(f"{path}: reading {what} failed: {problem.strerror}") from None
            if count == 0:
                raise ModelFileError(f"{path}: was cut short while gemlet was reading {what}")
            done += count
        self.check_unchanged(file, what)

    def check_unchanged(self, file: str, what: str) -> None:
        """Raises :class:`ModelFileError` if ``file`` has changed since it was opened."""
        handle, size, modified = self._files[file]
        status = os.fstat(handle.fileno())
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            path = self.path(file)
            raise ModelFileError(f"{path}: was changed while gemlet was reading {what}; load it again")

    def close(self) -> None:
        """Closes the files. Arrays already read stay valid."""
        for handle, _, _ in self._files.values():
            handle.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Checkpoint(TensorFiles):
    """The tensors of a Hugging Face folder. A context manager; ``close()`` closes the files.

    Opening checks every header in full and reads no weights. ``file`` is looked for first, then the index of
    a sharded model. Raises :class:`ModelFileError` for a missing, truncated or lying file,
    :class:`TensorError` for a tensor whose description is impossible.

    >>> from pathlib import Path
    >>> import gemlet
    >>> with Checkpoint(Path(gemlet.__file__).parent / "demo") as checkpoint:
    ...     array, dtype = checkpoint.read("model.norm.weight")
    """

    _readable = _READABLE
    _expected = "F32, BF16 or F16"

    def __init__(self, folder: str | os.PathLike[str], *, file: str = SINGLE_FILE) -> None:
        super().__init__(os.fspath(folder))
        self.metadata: dict[str, str] = {}  # of all files
        tensors: dict[str, TensorInfo] = {}
        try:
            weight_map = self._weight_map(file)
            for part in sorted(set(weight_map.values())) if weight_map is not None else [file]:
                for info in self._open(part):
                    self._place(info, weight_map, tensors)
            for name, part in (weight_map or {}).items():
                if name not in tensors:
                    raise ModelFileError(
                        f"{self.path(INDEX_FILE)}: says that tensor {show(name)} is in {show(part)}, "
                        "which does not hold it"
                    )
        except BaseException:
            self.close()
            raise
        self.tensors = MappingProxyType(tensors)

    def add_folder(self, name: str) -> None:
        """Opens the ``model.safetensors`` in the folder ``name`` of this one as well, whose tensors are then
        called "name/tensor". Raises as opening does."""
        tensors = dict(self.tensors)
        for info in self._open(f"{name}/{SINGLE_FILE}"):
            self._place(replace(info, name=f"{name}/{info.name}"), None, tensors)
        self.tensors = MappingProxyType(tensors)

    def _weight_map(self, file: str) -> dict[str, str] | None:
        """tensor -> shard of the index file; None where the folder holds the single ``file``."""
        if os.path.lexists(self.path(file)):
            return None
        path = self.path(INDEX_FILE)
        if not os.path.lexists(path):
            raise ModelFileError(
                f"{self.folder}: holds no weights that gemlet reads; expected {SINGLE_FILE}, or {INDEX_FILE} "
                "with its shards (PyTorch .bin files must be saved again as safetensors)"
            )
        raw = read_json_object(path, error=ModelFileError)
        weight_map = raw.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError(f"{path}: weight_map is {show(weight_map)}; expected tensor -> file")
        for name, part in weight_map.items():
            if not _is_plain_name(part):
                raise ModelFileError(
                    f"{path}: weight_map puts tensor {show(name)} in {show(part)}; expected the plain name "
                    "of a .safetensors file in the same folder"
                )
        if len(set(weight_map.values())) > MAX_SHARDS:
            raise ModelFileError(f"{path}: names more than {MAX_SHARDS} files; expected fewer shards")
        return weight_map

    def _open(self, file: str) -> list[TensorInfo]:
        path = self.path(file)
        _, size, _ = self._open_file(file)
        if size < 8:
            raise ModelFileError(f"{path}: has {size} bytes; a safetensors file has at least 8")
        start = self.read_bytes(file, 0, 8)
        if start == b"version ":
            raise ModelFileError(
                f"{path}: is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
            )
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelFileError(
                f"{path}: says its header has {length} bytes; the file has {size} bytes in all "
                f"and a header at most {MAX_HEADER_BYTES}. It is cut short or not a safetensors file"
            )
        text = self.read_bytes(file, 8, length)
        if text[:1] != b"{":
            raise ModelFileError(f"{path}: its header begins with {text[:1]!r}; expected a JSON object")
        header = parse_json_object(text, where=f"{path} (header)", error=ModelFileError)
        infos = _parse_header(header, path=path, file=file, data_begin=8 + length, data_end=size)
        self.metadata |= header.get("__metadata__", {})
        return infos

    def _place(
        self, info: TensorInfo, weight_map: dict[str, str] | None, tensors: dict[str, TensorInfo]
    ) -> None:
        if info.name in tensors:
            raise ModelFileError(
                f"{self.path(info.file)}: tensor {show(info.name)} is also in {tensors[info.name].file}; "
                "expected each tensor once"
            )
        if weight_map is not None and weight_map.get(info.name) != info.file:
            listed = weight_map.get(info.name)
            says = "does not list it" if listed is None else f"puts it in {listed}"
            raise ModelFileError(
                f"{self.path(info.file)}: holds tensor {show(info.name)}, but {INDEX_FILE} {says}"
            )
        tensors[info.name] = info


def _is_plain_name(file: object) -> bool:
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not file.startswith(".")
        and len(file) <= 255
        and file.isprintable()  # no null byte and no lone surrogate, which open() rejects in its own way
        and not any(separator in file for separator in "/\\:")
    )


def _parse_header(
    header: Mapping[str, Any], *, path: str, file: str, data_begin: int, data_end: int
) -> list[TensorInfo]:
    """The tensors of a header, checked one by one and then together: they must cover the data exactly."""
    infos = []
    if len(header) > MAX_TENSORS:
        raise ModelFileError(f"{path}: lists {len(header)} tensors; expected at most {MAX_TENSORS}")
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise ModelFileError(f"{path}: __metadata__ is {show(entry)}; expected an object of strings")
        else:
            infos.append(_parse_entry(name, entry, path, file, data_begin, data_end))
    end = data_begin
    for info in sorted(infos, key=lambda info: (info.begin, info.nbytes)):
        if info.begin != end:
            problem = "overlaps the tensor before it" if info.begin < end else "leaves a hole before it"
            raise ModelFileError(
                f"{path}: tensor {show(info.name)} begins at byte {info.begin} of the file and {problem}; "
                f"expected it to begin at byte {end}"
            )
        end += info.nbytes
    if end != data_end:
        raise ModelFileError(
            f"{path}: has {data_end} bytes, but its tensors end at byte {end}; expected nothing after them"
        )
    return infos


class _Label(NamedTuple):
    """How an error begins, made only for one: a large model has thousands of tensors."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}: tensor {show(self.name)}"


def _parse_entry(
    name: str, entry: object, path: str, file: str, data_begin: int, data_end: int
) -> TensorInfo:
    label = _Label(path, name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{label} is {show(entry)}; expected {{dtype, shape, data_offsets}}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise TensorError(f"{label} has dtype {show(dtype)}; expected one of {', '.join(_DTYPE_BITS)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        raise TensorError(f"{label} has shape {show(shape)}; expected up to {MAX_RANK} non-negative sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ModelFileError(f"{label} has data_offsets {show(offsets)}; expected [begin, end]")
    begin, end = offsets
    if not begin <= end <= data_end - data_begin:
        raise ModelFileError(
            f"{label} has data_offsets [{begin}, {end}]; expected begin <= end <= {data_end - data_begin}, "
            "the bytes that follow the header. The file is cut short or its header is wrong"
        )
    bits = _DTYPE_BITS[dtype]
    for size in shape:  # Python integers: nothing overflows
        bits *= size
    if bits != 8 * (end - begin):
        raise TensorError(
            f"{label} of dtype {dtype} and shape {shape} needs {(bits + 7) // 8} bytes; "
            f"its data_offsets give it {end - begin}"
        )
    return TensorInfo(name, file, dtype, tuple(shape), data_begin + begin, end - begin)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
