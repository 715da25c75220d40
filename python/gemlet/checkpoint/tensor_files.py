"""Reads tensors from files: the common part of safetensors and GGUF.

Tensors are copied into memory with ``pread``, one at a time, and not mapped with ``mmap``. If another process
truncates the file, or the disk fails, ``pread`` gives an error that names the tensor; a mapping would end the
process with SIGBUS. The price is a copy of one tensor in memory while the tensor is packed.

A file that changes while it is open is also an error. A file has changed if its size or its time of
modification (mtime) differs, or if the time of its status (ctime) differs and nothing but a change of content
explains this. Reading does not check the values; packing checks that they are finite.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from math import prod
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from gemlet.base.arrays import NDArray, np
from gemlet.base.files import no_waiting
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.errors import MemoryLimitError, ModelClosedError, ModelFileError, TensorError

if TYPE_CHECKING:
    from io import FileIO
    from typing import Self

    from gemlet import _core

__all__ = ["OpenFiles", "Scales", "TensorFiles", "TensorInfo", "numbers"]

MAX_SHARDS = 512  # each is an open file; the largest Gemma has 12

_SCAN_BYTES = 1 << 20  # the block size for scans of a tensor; a block fits in the cache of a CPU core
_GROUP = 32  # columns in a quantization block of "i4x32"
_READ_BYTES = 1 << 26  # the most bytes for one system call, so that Python sees Ctrl-C between calls


@record(frozen=True)
class TensorInfo:
    """The place of a tensor: ``nbytes`` bytes of ``file``, beginning at byte ``begin``."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@record(frozen=True)
class Scales:
    """The scales of a tensor of integers. ``info`` is the tensor of scales, [rows, scales per row]. Each
    scale belongs to ``columns`` columns."""

    info: TensorInfo
    columns: int


class OpenFiles:
    """Files of one folder that stay open and are read with ``pread``. The argument ``file`` of the methods is
    a file's name in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # name -> the open file, and the file's status when it was opened
        self._files: dict[str, tuple[FileIO, os.stat_result]] = {}

    def path(self, file: str) -> str:
        """The path of ``file``."""
        return os.path.join(self.folder, file)

    def open(self, file: str) -> int:
        """Opens ``file`` and returns its size. Raises :class:`ModelFileError` if it cannot be opened."""
        path = self.path(file)
        try:
            handle = open(path, "rb", buffering=0, opener=no_waiting)  # noqa: SIM115  (closed by close())
        except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
            reason = problem.strerror if isinstance(problem, OSError) else problem
            raise ModelFileError(f"{path}: cannot be opened: {reason}") from None
        status = os.fstat(handle.fileno())
        self._files[file] = (handle, status)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: is not a regular file")
        return status.st_size

    def share(self, other: OpenFiles, file: str) -> str:
        """Adds ``file`` of ``other`` to these files. Returns the name that the file has here."""
        path = os.path.abspath(other.path(file))
        _, status = other._files[file]
        self._files[path] = (open(os.dup(other.descriptor(file)), "rb", buffering=0), status)  # noqa: SIM115
        return path

    def descriptor(self, file: str) -> int:
        """The descriptor of ``file``, as long as the files are open."""
        if file not in self._files:
            raise ModelClosedError(
                f"{self.path(file)}: was used after the checkpoint was closed; open the checkpoint again"
            )
        return self._files[file][0].fileno()

    def read(self, file: str, begin: int, length: int) -> bytes:
        """``length`` bytes of ``file``, beginning at ``begin``. Raises as :meth:`fill` does."""
        try:
            data = os.pread(self.descriptor(file), length, begin) if length <= _READ_BYTES else b""
        except OSError:
            data = b""
        if len(data) < length:  # read the file in parts, or find the error
            buffer = bytearray(length)
            self.fill(file, begin, memoryview(buffer), "it")
            return bytes(buffer)
        self.check_unchanged(file, "it")
        return data

    def fill(self, file: str, begin: int, buffer: memoryview, what: str) -> None:
        """Reads ``file``, beginning at ``begin``, until ``buffer`` is full. Errors call the bytes ``what``.

        Raises :class:`ModelFileError` if the file cannot be read, ends too early or has changed, and
        :class:`ModelClosedError` if the files are closed.
        """
        path = self.path(file)
        if file not in self._files:
            raise ModelClosedError(
                f"{path}: was read after the checkpoint was closed; open the checkpoint again"
            )
        handle, _ = self._files[file]
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(handle.fileno(), [buffer[done : done + _READ_BYTES]], begin + done)
            except OSError as problem:
                raise ModelFileError(f"{path}: reading {what} failed: {problem.strerror}") from None
            if count == 0:
                raise ModelFileError(
                    f"{path}: was cut short while gemlet was reading {what}; load the whole file again"
                )
            done += count
        self.check_unchanged(file, what)

    def check_unchanged(self, file: str, what: str) -> None:
        """Raises :class:`ModelFileError` if ``file`` has changed since it was opened."""
        handle, before = self._files[file]
        path, now = self.path(file), os.fstat(handle.fileno())
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns) or (
            now.st_ctime_ns != before.st_ctime_ns and not _explains_status(before, now, path)
        ):
            raise ModelFileError(f"{path}: was changed while gemlet was reading {what}; load it again")

    def close(self) -> None:
        """Closes the files."""
        for handle, _ in self._files.values():
            handle.close()
        self._files.clear()


def _explains_status(before: os.stat_result, now: os.stat_result, path: str) -> bool:
    """Whether the links, the owner, the mode or the name of a file have changed. Such a change alone gives
    the file a new time of status; its content need not be new. The core has the same rule in
    csrc/base/open_file.cpp."""
    for one in ("st_nlink", "st_mode", "st_uid", "st_gid"):
        if getattr(before, one) != getattr(now, one):
            return True
    try:
        return not os.path.samestat(os.stat(path), now)
    except OSError:
        return True


class TensorFiles:
    """Tensors in one or several files of a folder, read with ``pread``. It is a context manager; ``close()``
    closes the files. Subclasses find the tensors in their kind of files.
    """

    # type -> (its name in the core, NumPy type of the array; types that NumPy lacks are read as bits)
    _readable: Mapping[str, tuple[str, str]] = {}
    _expected = ""

    def __init__(self, files: OpenFiles) -> None:
        self.files = files
        self.tensors: Mapping[str, TensorInfo] = {}
        # The scales of tensors of integers (gemlet.checkpoint.scaled_tensors).
        self.scales: Mapping[str, Scales] = {}

    @property
    def folder(self) -> str:
        """The folder of the files."""
        return self.files.folder

    def path(self, file: str) -> str:
        """The path of ``file``, which a TensorInfo names."""
        return self.files.path(file)

    def dtype(self, name: str) -> str:
        """The core's name for the type of tensor ``name``: "f32", "bf16", "f16"; in GGUF also "q4_0", ...

        Raises :class:`TensorError` if the tensor is missing or has a type that gemlet does not read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise TensorError(f"{self.folder}: has no tensor {show(name)}, which the model needs")
        if info.dtype not in self._readable:
            raise TensorError(
                f"{self.path(info.file)}: tensor {show(name)} is {info.dtype}; expected {self._expected}"
            )
        return self._readable[info.dtype][0]

    def read(self, name: str) -> tuple[NDArray[Any], str]:
        """The values of tensor ``name``, and their type. The array is new and has the tensor's shape. For the
        type "f32" it has float32 values, for "bf16" and "f16" their bits (uint16). For a block type of GGUF
        it has uint8, and the last axis has the bytes of a row.

        Integers with scales are returned as the weights that they stand for, in float32.

        Raises :class:`TensorError` if the tensor is missing or has a type that gemlet does not read,
        :class:`MemoryLimitError` if it does not fit into memory, and :class:`ModelFileError` if the file
        cannot be read.
        """

        tag = self.dtype(name)
        info = self.tensors[name]
        try:
            array: NDArray[Any] = np.empty(
                self._array_shape(info, info.shape, info.nbytes), dtype=self._readable[info.dtype][1]
            )
        except MemoryError:
            raise MemoryLimitError(
                f"{self.path(info.file)}: no memory for the {info.nbytes} bytes of tensor {show(name)}"
            ) from None
        self.files.fill(info.file, info.begin, array.reshape(-1).view(np.uint8).data, show(name))
        return self._as_weights(name, array, tag, 0)

    def read_some(self, name: str, first: int, count: int) -> tuple[NDArray[Any], str]:
        """The values of :meth:`read` for ``count`` rows of a matrix, beginning with row ``first``."""

        tag = self.dtype(name)
        info = self.tensors[name]
        row_bytes = info.nbytes // info.shape[0]
        shape = self._array_shape(info, (count, *info.shape[1:]), count * row_bytes)
        array: NDArray[Any] = np.empty(shape, dtype=self._readable[info.dtype][1])
        begin = info.begin + first * row_bytes
        self.files.fill(info.file, begin, array.reshape(-1).view(np.uint8).data, show(name))
        return self._as_weights(name, array, tag, first)

    def read_scales(self, name: str, first: int, count: int) -> NDArray[np.float32]:
        """The scales of ``count`` rows of a tensor of integers, beginning with row ``first``: [rows, scales
        per row]. For "i4x32" the result has one scale for every 32 columns. If the file has one for more
        columns, that scale is repeated."""

        info = self.scales[name].info
        tag, kind = self._readable[info.dtype]
        row_bytes = info.nbytes // info.shape[0]
        array: NDArray[Any] = np.empty((count, info.shape[1]), dtype=kind)
        begin = info.begin + first * row_bytes
        self.files.fill(info.file, begin, array.reshape(-1).view(np.uint8).data, show(info.name))
        found = np.ascontiguousarray(numbers(array, tag), dtype=np.float32)
        groups = self.scales[name].columns // _GROUP if self.dtype(name) == "i4x32" else 1
        return np.repeat(found, groups, axis=1) if groups > 1 else found

    def _as_weights(self, name: str, array: NDArray[Any], tag: str, first: int) -> tuple[NDArray[Any], str]:
        """Turns stored rows, beginning with row ``first``, into values. Integers become the weights that they
        stand for."""

        if array.dtype == np.float64:
            with np.errstate(over="ignore"):  # packing finds infinities
                return array.astype(np.float32), tag
        if name not in self.scales:
            return array, tag
        bits = {"i8": 8, "i2": 2}.get(tag, 4)
        if bits == 8:
            q = array.view(np.int8).astype(np.float32)
        else:
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            parts = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
            q = parts.reshape(len(array), -1).astype(np.float32) - np.float32(1 << (bits - 1))
        scales = self.read_scales(name, first, len(array))
        return q * np.repeat(scales, q.shape[1] // scales.shape[1], axis=1), "f32"

    def is_wide(self, name: str) -> bool:
        """Whether a tensor has values in float64. Then Python has to read the tensor, because the core cannot
        turn float64 into float32."""
        return self.tensors[name].dtype == "F64"

    def replace_tensor(self, name: str, other: TensorFiles, tensor: str) -> None:
        """Replaces the tensor ``name`` by ``tensor`` of ``other``."""
        info, tag = other.tensors[tensor], other.dtype(tensor)
        same = [own for own, (known, _) in self._readable.items() if known == tag]
        dtype = info.dtype if info.dtype in same else same[0]
        file = self.files.share(other.files, info.file)
        self.tensors = MappingProxyType(
            {**self.tensors, name: replace(info, name=name, file=file, dtype=dtype)}
        )
        self.scales = {own: scales for own, scales in self.scales.items() if own != name}

    def add_alias(self, name: str, of: str) -> None:
        """Gives the tensor ``of`` a second name, ``name``."""
        self.tensors = MappingProxyType({**self.tensors, name: replace(self.tensors[of], name=name)})

    def read_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """The values of :meth:`read` in blocks of rows. A block is a new array of about ``block_bytes``. All
        blocks but the last have a multiple of 16 rows. If the tensor is a stack of matrices, ``entry``
        chooses the matrix with this index.
        """

        tag = self.dtype(name)
        info = self.tensors[name]
        if entry is None and len(info.shape) < 2:
            yield self.read(name)
            return
        for begin, shape, nbytes in self._row_blocks(info, block_bytes, entry):
            part: NDArray[Any] = np.empty(
                self._array_shape(info, shape, nbytes), dtype=self._readable[info.dtype][1]
            )
            self.files.fill(info.file, begin, part.reshape(-1).view(np.uint8).data, show(name))
            yield self._as_weights(name, part, tag, self._row_at(info, begin))

    def stored_rows(self, name: str, block_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """The stored integers of a tensor with scales, in blocks of rows."""

        info = self.tensors[name]
        for begin, _, nbytes in self._row_blocks(info, block_bytes, None):
            part = np.empty((nbytes * info.shape[0] // info.nbytes, info.nbytes // info.shape[0]), np.uint8)
            self.files.fill(info.file, begin, part.reshape(-1).data, show(name))
            yield part

    @staticmethod
    def _row_at(info: TensorInfo, begin: int) -> int:
        return (begin - info.begin) * info.shape[0] // info.nbytes if info.nbytes else 0

    def file_rows(
        self, name: str, block_bytes: int, *, entry: int | None = None
    ) -> Iterator[tuple[_core.FileRows, int, int]]:
        """Yields the blocks of :meth:`read_rows` as places in the file, so that the core can read them:
        (place, number of rows, number of bytes). The caller calls :meth:`OpenFiles.check_unchanged` after the
        core has read the blocks."""
        from gemlet import _core

        tag = self.dtype(name)
        info = self.tensors[name]
        descriptor = self.files.descriptor(info.file)
        for begin, shape, nbytes in self._row_blocks(info, block_bytes, entry):
            # The disk reads the next blocks while this one is packed.
            os.posix_fadvise(descriptor, begin + nbytes, 2 * block_bytes, os.POSIX_FADV_WILLNEED)
            scales = None
            if name in self.scales:
                scales = self.read_scales(name, self._row_at(info, begin), shape[0])
            rows = _core.FileRows(descriptor=descriptor, offset=begin, shape=shape, dtype=tag, scales=scales)
            yield rows, shape[0] if shape else 1, nbytes

    def _row_blocks(
        self, info: TensorInfo, block_bytes: int, entry: int | None
    ) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """(first byte in the file, shape, bytes) of each block; a vector is one block."""
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
        """Whether bfloat16 can represent every value of a float16 tensor exactly, as is the case if the
        values were bfloat16 before. Reads the tensor up to the first value that does not fit.
        """
        for part, _ in self.read_rows(name, _SCAN_BYTES):
            # A value whose last three bits are 0 has at most eight bits of precision and fits.
            bits = part[part & 7 != 0]
            digits = bits & 0x3FF
            # Of the other values, only denormal ones with at most eight digits fit.
            if (bits & 0x7C00).any() or (digits // (digits & -digits) > 255).any():
                return False
        return True

    def fits_bf12(self, name: str) -> bool:
        """Whether bf12 can hold every matrix of a bfloat16 tensor. Reads the tensor up to the first matrix
        that does not fit."""
        from gemlet import _core

        info = self.tensors[name]
        threads, _ = _core.default_threads()
        return all(
            rows.fit_bf12(threads)
            for entry in (range(info.shape[0]) if len(info.shape) > 2 else (None,))
            for rows, _, _ in self.file_rows(name, info.nbytes, entry=entry)
        )

    def has_half_scales(self, name: str, *, read: bool) -> bool:
        """Whether the core's format w4a16 can hold the scales of a tensor in "i4x32": float16 must represent
        them with an error of at most 2^-25. Scales that are stored in bfloat16 or float16 always fit. Scales
        that are stored in float32 have to be read to find out; if ``read`` is False, the answer for them is
        False.
        """

        info = self.scales[name].info
        if info.dtype != "F32" or not read:
            return info.dtype != "F32"
        step = max(1, _SCAN_BYTES // (4 * info.shape[1]))
        for first in range(0, info.shape[0], step):
            scales = self.read_scales(name, first, min(step, info.shape[0] - first))
            with np.errstate(over="ignore"):
                off = np.abs(scales.astype(np.float16).astype(np.float32) - scales)
            if not (off <= 2.0**-25).all():
                return False
        return True

    def same_values(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same values. Tensors of the same type are compared by their bits,
        tensors of different types by their numbers. Reads both tensors up to the first difference.
        """

        infos = self.tensors[one], self.tensors[other]
        if infos[0].shape != infos[1].shape:
            return False
        widest = max(info.nbytes for info in infos)
        blocks = [self.read_rows(info.name, _SCAN_BYTES * info.nbytes // widest) for info in infos]
        for (a, dtype), (b, other_dtype) in zip(*blocks, strict=True):
            if dtype == other_dtype:
                if not np.array_equal(a.view(np.uint8), b.view(np.uint8)):
                    return False
            elif not np.array_equal(numbers(a, dtype), numbers(b, other_dtype)):
                return False
        return True

    def _array_shape(self, info: TensorInfo, shape: tuple[int, ...], nbytes: int) -> tuple[int, ...]:
        if self._readable[info.dtype][1] != "u1":
            return shape
        return (*shape[:-1], nbytes // prod(shape[:-1]))

    def close(self) -> None:
        """Closes the files. Arrays that were read stay valid."""
        self.files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def numbers(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values of type "f32", "bf16" or "f16" as float32."""

    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.view(np.float16).astype(np.float32) if dtype == "f16" else array
