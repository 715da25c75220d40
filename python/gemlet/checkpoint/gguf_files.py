"""Reads the tensors of a GGUF model from one file or several, with the interface of a safetensors folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from gemlet.base.arrays import NDArray
from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.checkpoint.gguf_format import GGUFFile, parse_gguf
from gemlet.checkpoint.tensor_files import MAX_SHARDS, OpenFiles, TensorFiles, TensorInfo
from gemlet.errors import InvalidRequestError, ModelFileError, TensorError

__all__ = ["BLOCK_TYPES", "GGUFCheckpoint", "gguf_models", "is_mmproj", "mmproj_among", "split_names"]

BLOCK_TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
# GGML's name of a type -> (the core's name, NumPy type of the array).
_READABLE = {
    "F32": ("f32", "<f4"),
    "BF16": ("bf16", "<u2"),
    "F16": ("f16", "<u2"),
    **{name: (name.lower(), "u1") for name in BLOCK_TYPES},
}
# If several parts of a split model have one of these keys, the values must be equal.
_OF_ALL_PARTS = ("general.architecture", "general.name", "split.tensors.count")
_SPLIT_NAME = late_pattern(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
# Types of values in the names of mmproj files, the best first.
_MMPROJ_TYPES = ("bf16", "f16", "f32", "q8_0")
# Words in the names of GGUF files that do not name the model.
_NOT_THE_MODEL = late_pattern(
    r"mmproj|model|(?:ud-)?i?q\d[a-z0-9_]*|b?f16|f32|fp16|mxfp4|gguf|\d{5}-of-\d{5}"
)


class GGUFCheckpoint(TensorFiles):
    """The tensors of the GGUF file ``path``. If the file is a part of a split model, the tensors of all
    parts.

    Opening reads the tensor directories and no weights. Raises :class:`ModelFileError` if a file is missing,
    cut short or contradicts itself, or if files are not parts of the same split.

    Attributes:
        gguf: the metadata and the tensor directory of the (first) file.
    """

    _readable = _READABLE
    _expected = ", ".join(_READABLE) + "; take another file of the same model, such as Q4_K_M or Q8_0"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder, name = os.path.split(os.fspath(path))
        super().__init__(OpenFiles(folder))
        names = split_names(folder, name)
        tensors: dict[str, TensorInfo] = {}
        try:
            for number, file in enumerate(names):
                if len(names) > 1 and not os.path.lexists(self.path(file)):
                    raise ModelFileError(
                        f"{self.path(file)}: is missing; expected all {len(names)} files of the split model "
                        "in one folder"
                    )
                self.files.open(file)
                part = parse_gguf(self.path(file), self.files.descriptor(file))
                self._check_part(part, number, names)
                if number == 0:
                    self.gguf = part
                self._check_same_model(part)
                for info in part.tensors.values():
                    if info.name in tensors:
                        raise ModelFileError(
                            f"{part.path}: tensor {show(info.name)} is also in {tensors[info.name].file}; "
                            "expected each tensor once"
                        )
                    tensors[info.name] = TensorInfo(
                        info.name, file, info.type, info.shape, info.offset, info.nbytes
                    )
            total = self.gguf.get("split.tensors.count", int, len(tensors))
            if total != len(tensors):
                raise ModelFileError(
                    f"{self.gguf.path}: split.tensors.count is {total}, but the {len(names)} files have "
                    f"{len(tensors)} tensors; fetch all files again"
                )
        except BaseException:
            self.close()
            raise
        self.tensors = MappingProxyType(tensors)

    def add(self, path: str) -> GGUFFile:
        """Opens another file whose tensors belong to the model, and returns its metadata and directory.

        Raises the same errors as opening the model, also for a tensor that the model already has.
        """
        folder, name = os.path.split(os.path.abspath(path))
        file = name if folder == os.path.abspath(self.folder) else os.path.join(folder, name)
        self.files.open(file)
        part = parse_gguf(path, self.files.descriptor(file))
        found = {
            info.name: TensorInfo(info.name, file, info.type, info.shape, info.offset, info.nbytes)
            for info in part.tensors.values()
        }
        if both := sorted(found.keys() & self.tensors.keys()):
            raise ModelFileError(
                f"{part.path}: tensor {show(both[0])} is also in {self.tensors[both[0]].file}; expected each "
                "tensor once"
            )
        self.tensors = MappingProxyType({**self.tensors, **found})
        return part

    def head(self) -> bytes:
        """All bytes of the (first) file before the data of its tensors."""
        file = os.path.basename(self.gguf.path)
        size = os.fstat(self.files.descriptor(file)).st_size
        return self.files.read(file, 0, min(self.gguf.data_offset, size))

    def read_vector(self, name: str) -> NDArray[Any] | None:
        """The values of tensor ``name``, which has to be a vector of F32; None if there is no such tensor."""
        info = self.tensors.get(name)
        if info is None:
            return None
        if info.dtype != "F32" or len(info.shape) != 1:
            got = f"{info.dtype} {list(info.shape)}"
            raise TensorError(
                f"{self.path(info.file)}: tensor {show(name)} is {got}; expected a vector of F32"
            )
        return self.read(name)[0]

    def _check_same_model(self, part: GGUFFile) -> None:
        """Checks that a later part does not contradict the first part. Most later parts do not have these
        keys."""
        for key in _OF_ALL_PARTS:
            got, first = (gguf.metadata.get(key) for gguf in (part, self.gguf))
            if None not in (got, first) and got != first:
                raise ModelFileError(
                    f"{part.path}: {key} is {show(got)}; expected {show(first)}, as in the first "
                    "part. The file is a part of another model"
                )

    def _check_part(self, part: GGUFFile, number: int, names: list[str]) -> None:
        expected: dict[str, Any] = {"split.count": len(names), "split.no": number}
        for key, value in expected.items():
            # A file that was never split may have these keys with the values of a single part, or lack them.
            got = part.get(key, int, value if len(names) == 1 else -1)
            if got != value and not (len(names) == 1 and key == "split.count" and got == 0):
                says = "is missing" if got == -1 else f"is {got}"
                raise ModelFileError(
                    f"{part.path}: {key} {says}; expected {value}. The parts of a split model are named "
                    "NAME-00001-of-0000N.gguf and lie in one folder"
                )


def gguf_models(names: Iterable[str], *, as_drafter: bool = False) -> list[str]:
    """The files among ``names`` that are models; of a split model only the first part. Left out are hidden
    files, towers (mmproj), draft models for another model (mtp) and statistics for quantization (imatrix).
    With ``as_drafter``, the result is the draft models, if there are any.

    >>> gguf_models(["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "b-mmproj-f16.gguf", "._b.gguf"])
    ['b-00001-of-00002.gguf']
    >>> gguf_models(["b.gguf", "mtp-b.gguf"], as_drafter=True)
    ['mtp-b.gguf']
    """
    found = []
    names = sorted(names)
    if as_drafter and (drafters := [name for name in names if is_mtp(name)]):
        return drafters
    for name in names:
        file = name.rpartition("/")[2].lower()
        match = _SPLIT_NAME.fullmatch(file)
        other = is_mtp(file) or any(word in file for word in ("mmproj", "imatrix"))
        other = other or (match is not None and int(match[2]) != 1)
        if file.endswith(".gguf") and not other and not file.startswith("."):
            found.append(name)
    return found


def is_mtp(name: str) -> bool:
    """Whether a file is a draft model for the model beside it, by the name that llama.cpp gives such files.

    >>> is_mtp("mtp-gemma-4-E2B-it.gguf"), is_mtp("gemma-4-E2B-it-Q4_0.gguf")
    (True, False)
    """
    name = name.rpartition("/")[2].lower()
    return name.startswith("mtp-") and name.endswith(".gguf")


def is_mmproj(name: str) -> bool:
    """Whether a file has a model's towers, by the name that llama.cpp gives such files.

    >>> is_mmproj("mmproj-F16.gguf"), is_mmproj("gemma-3-4b-it-Q4_0.gguf")
    (True, False)
    """
    name = name.rpartition("/")[2].lower()
    return "mmproj" in name and name.endswith(".gguf")


def mmproj_among(model: str, names: Iterable[str]) -> str | None:
    """The mmproj file among ``names`` that belongs to the GGUF file ``model``; None if there is none. If the
    file exists in several types, bf16 is preferred, then f16. Only files in the model's folder count.

    Raises :class:`InvalidRequestError` if there are several mmproj files and their names do not show which
    file belongs to the model.

    >>> mmproj_among("gemma-3-4b-it-Q4_0.gguf", ["mmproj-gemma-3-4b-it-f16.gguf", "mmproj-medgemma-f16.gguf"])
    'mmproj-gemma-3-4b-it-f16.gguf'
    >>> mmproj_among("gemma-3-4b-it-Q4_0.gguf", ["mmproj-F32.gguf", "mmproj-F16.gguf"])
    'mmproj-F16.gguf'
    >>> mmproj_among("gemma-3-4b-it-Q4_0.gguf", ["medgemma-Q4_0.gguf"]) is None
    True
    """
    folder, file = os.path.split(model)
    of_names: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_mmproj(name) and os.path.dirname(name) == folder:
            of_names.setdefault(_model_in(name), []).append(name)
    own = _model_in(file)
    for key in (own, ""):
        if key in of_names:
            return min(of_names[key], key=_rank)
    if len(of_names) > 1:
        listed = ", ".join(one[0] for one in of_names.values())
        raise InvalidRequestError(
            f"{show(model)}: several mmproj files are beside it ({listed}); choose one with mmproj=, or "
            "leave them out with mmproj=False"
        )
    return min((name for found in of_names.values() for name in found), key=_rank, default=None)


def _model_in(file: str) -> str:
    """The words of a file's name that name the model, without the words for types of values."""
    stem = os.path.basename(file).lower().removesuffix(".gguf")
    words = re.split(r"[-. ]+", re.sub(r"\d{5}-of-\d{5}", "", stem))
    return "-".join(word for word in words if word and not _NOT_THE_MODEL.fullmatch(word))


def _rank(name: str) -> tuple[int, str]:
    words = re.split(r"[-. ]+", os.path.basename(name).lower())
    return next((i for i, kind in enumerate(_MMPROJ_TYPES) if kind in words), len(_MMPROJ_TYPES)), name


def split_names(folder: str, name: str) -> list[str]:
    """The names of all parts of the split model that the file ``name`` is a part of; only ``name`` if it is
    not a part. Raises :class:`ModelFileError` if the number of the part is impossible.
    """
    match = _SPLIT_NAME.fullmatch(name)
    if match is None:
        return [name]
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= MAX_SHARDS:
        raise ModelFileError(
            f"{os.path.join(folder, name)}: is named as part {int(match[2])} of {count}; expected a part "
            f"from 1 to the number of parts, and at most {MAX_SHARDS} parts"
        )
    return [f"{match[1]}-{number + 1:05}-of-{match[3]}.gguf" for number in range(count)]
