"""Reads the safetensors files of a Hugging Face folder, single or sharded, without trusting them.

A safetensors file has the length N of its header (8 bytes, little-endian), the header, and the data. The
header is N bytes of JSON: ``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str:
str}}``. The tensors must cover the data exactly: they do not overlap, there is no hole between them, and
nothing follows the last one. The specification has this rule so that nobody can hide other content in the
file.

A sharded folder also has ``model.safetensors.index.json`` with ``{"weight_map": {name: file}}``. The index
decides: a tensor is read from the file that the index names, and a tensor that the index does not list is
ignored. If the named file does not have the tensor and exactly one other file does, that file is used. A
model may have been saved twice into the same folder: then its index and its files can disagree in these ways.

Symbolic links in the folder are followed. The Hugging Face cache consists of symbolic links
(``snapshots/REV/model.safetensors`` leads to ``../../blobs/SHA``), and only a user who can write to the
folder can make a link. The index may come from a stranger, so it may contain only plain names of files in the
same folder, and no paths.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gemlet.base.records import replace
from gemlet.base.strict_json import parse_json_object, read_json_object
from gemlet.base.text import show
from gemlet.checkpoint.tensor_files import MAX_SHARDS, OpenFiles, TensorFiles, TensorInfo
from gemlet.errors import ModelFileError, TensorError

__all__ = ["Checkpoint"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_HEADER_BYTES = 10_000_000  # parsing may take 25 times as much memory
MAX_TENSORS = 1 << 16

MAX_RANK = 8

# dtype -> bits per element, for all types of the specification. gemlet reads only those in _READABLE. A
# tensor that the model does not use may have any type.
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
# dtype -> (the core's name of the type, NumPy type of the array). NumPy has no bfloat16, so BF16 and F16 are
# read as bits. F64 becomes float32 when it is read.
_READABLE = {"F32": ("f32", "<f4"), "BF16": ("bf16", "<u2"), "F16": ("f16", "<u2"), "F64": ("f32", "<f8")}
# Integers with scales. These types are gemlet's own: gemlet.checkpoint.scaled_tensors sets them after a
# header was read.
_READABLE |= {name: (f"i{name[3:].lower()}", "u1") for name in ("INT8", "INT4", "INT2", "INT4X32")}


class Checkpoint(TensorFiles):
    """The tensors of a Hugging Face folder. The object is a context manager; ``close()`` closes the files.

    Opening checks every header in full and reads no weights. If the folder has ``file``, only this file is
    opened. Otherwise the index of a sharded model says which files are opened.

    Raises :class:`ModelFileError` if a file is missing, truncated or contradicts itself, and
    :class:`TensorError` if a tensor's description is impossible.

    >>> from pathlib import Path
    >>> import gemlet
    >>> with Checkpoint(Path(gemlet.__file__).parent / "demo") as checkpoint:
    ...     array, dtype = checkpoint.read("model.norm.weight")
    """

    _readable = _READABLE
    _expected = (
        "F32, BF16, F16 or F64. If this model is quantized, load the bf16 original; otherwise save the model "
        "again in one of these types"
    )

    def __init__(self, folder: str | os.PathLike[str], *, file: str = SINGLE_FILE) -> None:
        super().__init__(OpenFiles(os.fspath(folder)))
        self.metadata: dict[str, str] = {}  # the metadata of all files together
        # Tensor that the index lists but that was not found -> the file that the index names for it.
        self.absent: dict[str, str] = {}
        tensors: dict[str, TensorInfo] = {}
        try:
            weight_map = self._weight_map(file)
            # The tensors that lie in another file than the index says, or that it does not list.
            elsewhere: dict[str, list[TensorInfo]] = {}
            for part in sorted(set(weight_map.values())) if weight_map is not None else [file]:
                for info in self._open(part):
                    if weight_map is None or weight_map.get(info.name) == part:
                        self._place(info, tensors)
                    else:
                        elsewhere.setdefault(info.name, []).append(info)
            for name, part in (weight_map or {}).items():
                if name not in tensors and len(elsewhere.get(name, ())) == 1:
                    tensors[name] = elsewhere.pop(name)[0]
                if name not in tensors:
                    self.absent[name] = part
        except BaseException:
            self.close()
            raise
        # The tensors and files that are not used, as text for the log.
        self.passed_over = [f"{name} in {info.file}" for name in elsewhere for info in elsewhere[name]]
        self.passed_over += [f"{name} in {INDEX_FILE}" for name in self.absent]
        if weight_map is None and file == SINGLE_FILE and os.path.lexists(self.path(INDEX_FILE)):
            self.passed_over.append(INDEX_FILE)  # transformers also prefers the single file
        self.tensors = MappingProxyType(tensors)

    def add_folder(self, name: str) -> None:
        """Also opens the ``model.safetensors`` in the subfolder ``name``. Its tensors get the names
        "name/tensor". Raises the same errors as opening the folder."""
        tensors = dict(self.tensors)
        for info in self._open(f"{name}/{SINGLE_FILE}"):
            self._place(replace(info, name=f"{name}/{info.name}"), tensors)
        self.tensors = MappingProxyType(tensors)

    def _weight_map(self, file: str) -> dict[str, str] | None:
        """Returns the index file's map (tensor -> shard), or None if the folder has the single ``file``."""
        if os.path.lexists(self.path(file)):
            return None
        path = self.path(INDEX_FILE)
        if not os.path.lexists(path):
            raise ModelFileError(
                f"{self.folder}: has no weights that gemlet reads; expected {SINGLE_FILE}, or {INDEX_FILE} "
                f"with its shards{_other_weights(self.folder)}"
            )
        raw = read_json_object(path, error=ModelFileError)
        weight_map = raw.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError(
                f"{path}: weight_map is {show(weight_map)}; expected an object that maps tensors to files"
            )
        for name, part in weight_map.items():
            if not _is_plain_name(part):
                raise ModelFileError(
                    f"{path}: weight_map puts tensor {show(name)} in {show(part)}; expected the plain name "
                    "of a .safetensors file in the same folder"
                )
        if len(set(weight_map.values())) > MAX_SHARDS:
            raise ModelFileError(
                f"{path}: names {len(set(weight_map.values()))} files; expected at most {MAX_SHARDS}"
            )
        return weight_map

    def _open(self, file: str) -> list[TensorInfo]:
        path = self.path(file)
        size = self.files.open(file)
        if size < 8:
            raise ModelFileError(
                f"{path}: has {size} bytes; expected at least 8 in a safetensors file. Fetch it again"
            )
        start = self.files.read(file, 0, 8)
        if start == b"version ":
            raise ModelFileError(
                f"{path}: is a Git LFS pointer; expected the weights. Fetch them with `git lfs pull`"
            )
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelFileError(
                f"{path}: says that its header has {length} bytes; expected at most "
                f"{min(MAX_HEADER_BYTES, size - 8)}. The file has {size} bytes: it is cut short, or it is "
                "not a safetensors file. Fetch it again"
            )
        text = self.files.read(file, 8, length)
        if text[:1] != b"{":
            raise ModelFileError(f"{path}: its header begins with {text[:1]!r}; expected a JSON object")
        header = parse_json_object(text, where=f"{path} (header)", error=ModelFileError)
        infos = _parse_header(header, path=path, file=file, data_begin=8 + length, data_end=size)
        self.metadata |= header.get("__metadata__", {})
        return infos

    def _place(self, info: TensorInfo, tensors: dict[str, TensorInfo]) -> None:
        if info.name in tensors:
            raise ModelFileError(
                f"{self.path(info.file)}: tensor {show(info.name)} is also in {tensors[info.name].file}; "
                "expected each tensor once"
            )
        tensors[info.name] = info


def _other_weights(folder: str) -> str:
    """The end of the error message for a ``folder`` without weights. It names weights in other forms that the
    folder does have, and says what to do with them."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(folder))
    if "adapter_config.json" in names:
        return (
            ". The folder has an adapter: load the model for which the adapter was made, and then the "
            "adapter with load_adapter() or --adapter"
        )
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")) for name in names):
        return (
            ". The folder has weights in another format (such as .bin): save the model again as safetensors"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if len(others) == 1:
        return f". If {show(others[0])} has all weights of the model, rename it to {SINGLE_FILE}"
    if others:
        return (
            f". The folder has {show(others[0])} and other shards, but not their index: fetch the index too"
        )
    return ""


def _is_plain_name(file: object) -> bool:
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not file.startswith(".")
        and len(file) <= 255
        and file.isprintable()  # null bytes and lone surrogates would make open() raise ValueError
        and not any(separator in file for separator in "/\\:")
    )


def _parse_header(
    header: Mapping[str, Any], *, path: str, file: str, data_begin: int, data_end: int
) -> list[TensorInfo]:
    """Returns the tensors of a header. Checks each tensor, and that all tensors together cover the data
    exactly."""
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
                f"expected the tensor to begin at byte {end}"
            )
        end += info.nbytes
    if end != data_end:
        raise ModelFileError(
            f"{path}: has {data_end} bytes, but its tensors end at byte {end}; expected nothing after them"
        )
    return infos


class _Label(NamedTuple):
    """The beginning of an error message about a tensor. The text is made only if there is an error, because a
    large model has thousands of tensors."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}: tensor {show(self.name)}"


def _parse_entry(
    name: str, entry: object, path: str, file: str, data_begin: int, data_end: int
) -> TensorInfo:
    label = _Label(path, name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{label} is {show(entry)}; expected an object {{dtype, shape, data_offsets}}")
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
            "which is the number of bytes after the header. The file is cut short, or its header is wrong"
        )
    bits = _DTYPE_BITS[dtype]
    for size in shape:  # Python integers do not overflow
        bits *= size
    if bits != 8 * (end - begin):
        raise TensorError(
            f"{label} of dtype {dtype} and shape {shape} needs {(bits + 7) // 8} bytes, but its data_offsets "
            f"span {end - begin} bytes"
        )
    return TensorInfo(name, file, dtype, tuple(shape), data_begin + begin, end - begin)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
