"""The format of packed files, and their reader.

A packed file is a safetensors file that the core maps into memory and uses in place. It has one U8 tensor for
each weight of the core, with the core's name. A matrix is stored as the panels that csrc/formats/formats.h
describes, and a vector as float32 values. The data of each tensor are padded to a multiple of 64
bytes, so each tensor begins at a multiple of 64 bytes. The vectors that balance channels
(csrc/model/balance.h) come first, because an adapter needs them. The table of per-layer embeddings comes
last; its rows keep their original type (block types of GGUF are stored as U8). ``__metadata__`` has the
version of gemlet that wrote the file, the versions of the format and the layout, and the format and shape of
every weight.

Everything in the header is checked before the file is mapped: versions, names, shapes, sizes and alignment.
The values are not checked, because that would mean reading the whole file. Wrong values cannot make the core
access memory outside the file's mapping. A NaN in a damaged file becomes an error when it reaches the logits.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gemlet.base.records import replace
from gemlet.base.text import show
from gemlet.checkpoint.gguf_files import BLOCK_TYPES
from gemlet.checkpoint.gguf_format import TENSOR_TYPES
from gemlet.checkpoint.safetensors_files import SINGLE_FILE, Checkpoint
from gemlet.checkpoint.tensor_files import Scales, TensorFiles, TensorInfo
from gemlet.config.mobilenet import MobileNetConfig
from gemlet.config.text_config import TextConfig, without_towers
from gemlet.errors import ModelFileError, TensorError, readable
from gemlet.weights.audio_slots import table_slots
from gemlet.weights.formats import EVERY
from gemlet.weights.mobilenet_slots import with_found_blocks
from gemlet.weights.slots import (
    PER_LAYER_TABLE,
    TABLE_SCALES,
    TOKEN_ORDER,
    all_slots,
    balance_slots,
    core_slots,
    rounding_slots,
    takes_format,
)
from gemlet.weights.tower_slots import in_tower, tower_slots

if TYPE_CHECKING:
    from gemlet import _core

__all__ = ["FORMAT_VERSION", "PackedCheckpoint", "is_packed", "packed_towers"]


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether the files have packed weights, of any version."""
    return "gemlet_format" in checkpoint.metadata


def packed_towers(config: TextConfig, checkpoint: Checkpoint) -> TextConfig:
    """Removes from ``config`` the towers and tables for which the file has no weights. The file may have been
    made from a text model, or without the model's towers."""
    if isinstance(config.vision, MobileNetConfig):
        try:
            described = json.loads(checkpoint.metadata["gemlet_tensors"])
            shapes = {
                name: tuple(shape)
                for name, (_, shape) in described.items()
                if all(type(size) is int and 0 < size < 1 << 31 for size in shape)
            }
            config = replace(config, vision=with_found_blocks(config.vision, shapes))
        except (ValueError, TypeError, AttributeError, RecursionError, KeyError):
            pass  # PackedCheckpoint raises the error
    tables = [name for name in ("vision", "audio") if table_slots(name)[0] in checkpoint.tensors]
    own = {slot for slot in tower_slots(config) if slot in checkpoint.tensors}
    own -= {slot for name in tables for slot in table_slots(name)}
    kept = {tower: any(slot.startswith(f"{tower}.") for slot in own) for tower in ("vision", "audio")}
    return without_towers(config, **kept, tables=tables)


class PackedCheckpoint(TensorFiles):
    """A folder with a packed ``model.safetensors``. It is a context manager; ``close()`` closes the file.

    ``tensors`` has the shape and the format of each weight, not those of the U8 tensor in the file. Raises
    :class:`ModelFileError` if this version of gemlet cannot use the file, and :class:`TensorError` if a
    tensor is missing, unexpected or has the wrong shape for ``config``.

    Args:
        checkpoint: the opened folder. The new object takes over its files.
        config: the configuration of the model.
        table_elsewhere: whether the table of per-layer embeddings is in another file.

    Attributes:
        weights: the preset that the model was converted to, such as "q4".
    """

    _readable = Checkpoint._readable
    _expected = Checkpoint._expected

    def __init__(self, checkpoint: Checkpoint, config: TextConfig, *, table_elsewhere: bool = False) -> None:
        super().__init__(checkpoint.files)
        self._metadata = checkpoint.metadata
        self.tensors = checkpoint.tensors  # as in the header; _describe() replaces them
        try:
            self._check_versions()
            self.weights = self._weights()
            self._describe(config, table_elsewhere)
        except BaseException:
            self.close()
            raise

    @property
    def embedding(self) -> str:
        """The format of the embedding table."""
        return self.tensors["embed_tokens"].dtype

    def formats(self) -> dict[str, str]:
        """The format of every matrix."""
        return {name: info.dtype for name, info in self.tensors.items() if takes_format(name, info.shape)}

    def dtype(self, name: str) -> str:
        """The format of weight ``name``, such as "q4". For the per-layer table it is the type of the rows."""
        dtype = self.tensors[name].dtype
        return super().dtype(name) if dtype in self._readable else dtype

    def use(self, builder: _core.ModelBuilder) -> None:
        """Maps the file, and gives the builder every weight in it. The model keeps the file mapped."""
        path = self.path(SINGLE_FILE)
        sizes = builder.packed_sizes()
        builder.map_file(self.files.descriptor(SINGLE_FILE), readable(path))
        for name, info in self.tensors.items():
            left_out = in_tower(name) and name not in sizes
            if name != PER_LAYER_TABLE and not left_out:
                if info.dtype != sizes[name][0]:
                    raise TensorError(f"{path}: tensor {name!r} is {info.dtype}; expected {sizes[name][0]}")
                try:
                    builder.use_packed(name, info.begin, info.nbytes)
                except TensorError as problem:
                    raise TensorError(f"{path}: {problem}") from None
        self.files.check_unchanged(SINGLE_FILE, "it")  # from now on, the core checks this

    def _check_versions(self) -> None:
        from gemlet import _core

        path = self.path(SINGLE_FILE)
        for key, what, known in (
            ("gemlet_format", "format", FORMAT_VERSION),
            ("gemlet_layout", "layout", _core.LAYOUT_VERSION),
        ):
            if (found := self._metadata.get(key)) != str(known):
                writer = self._metadata.get("gemlet_version", "unknown")
                raise ModelFileError(
                    f"{path}: is a packed model of {what} {show(found)}, written by gemlet {show(writer)}; "
                    f"expected {what} {known}, which gemlet {_core.__version__} reads. Convert the original "
                    "again with `gemlet convert`, or install the version of gemlet that wrote it"
                )

    def _weights(self) -> str:
        weights = self._metadata.get("gemlet_weights")
        if weights not in EVERY:
            choices = ", ".join(EVERY)
            raise ModelFileError(
                f"{self.path(SINGLE_FILE)}: gemlet_weights is {show(weights)}; expected one of {choices}"
            )
        return weights

    def _describe(self, config: TextConfig, table_elsewhere: bool) -> None:
        path = self.path(SINGLE_FILE)
        described = self._described(path)
        expected: dict[str, tuple[int, ...]] = {}
        for slot, shape in all_slots(config).items():
            if slot == PER_LAYER_TABLE:
                if not table_elsewhere:
                    expected[slot] = shape
            else:
                parts = core_slots(slot, shape)
                expected |= {part: shape if entry is None else shape[1:] for part, entry in parts}
        formats = {name: dtype for name, (dtype, shape) in described.items() if name in expected}
        expected |= balance_slots(config, formats) | rounding_slots(config)
        tensors: dict[str, TensorInfo] = {}
        for name, shape in expected.items():
            info = self.tensors.get(name)
            if info is None:
                raise TensorError(f"{path}: tensor {name!r} is missing; expected {list(shape)}")
            if name == PER_LAYER_TABLE:
                if name in described:
                    info = self._table_of_blocks(info, *described[name])
                    self._take_table_scales(info)
                else:
                    super().dtype(name)  # raises for a type that cannot be read
                found, tensors[name] = info.shape, info
            else:
                dtype, found = described.get(name, ("", ()))
                tensors[name] = replace(info, dtype=dtype, shape=shape)
                if info.dtype != "U8" or info.begin % ALIGNMENT != 0:
                    raise TensorError(
                        f"{path}: tensor {name!r} is {info.dtype} at byte {info.begin}; expected U8 at a "
                        f"multiple of {ALIGNMENT}"
                    )
            if found != shape:
                raise TensorError(
                    f"{path}: tensor {name!r} has shape {show(list(found))}; expected {list(shape)}, which "
                    "config.json implies"
                )
        for name in self.tensors:
            known = (name == TABLE_SCALES and self.scales) or (name == TOKEN_ORDER and config.centroids)
            if name not in expected and not known:
                raise TensorError(f"{path}: unexpected tensor {show(name)}; the model has no such weight")
        self.tensors = MappingProxyType(tensors)

    def _table_of_blocks(self, info: TensorInfo, dtype: str, shape: tuple[Any, ...]) -> TensorInfo:
        """The per-layer table as a tensor of ``dtype``, a block type of GGUF or a type of integers. In the
        file, the table is a tensor of U8 rows."""
        sizes = {name.lower(): (v, n) for name, v, n in TENSOR_TYPES.values()}
        values, nbytes = _INTEGERS[dtype][1:] if dtype in _INTEGERS else sizes[dtype]
        rows, cols = shape if len(shape) == 2 and all(type(size) is int for size in shape) else (0, 0)
        if info.dtype != "U8" or cols % values or info.shape != (rows, cols // values * nbytes):
            raise TensorError(
                f"{self.path(SINGLE_FILE)}: tensor {info.name!r} is {info.dtype} {list(info.shape)}, which "
                f"does not fit {dtype} {show(list(shape))} in gemlet_tensors; convert the original again "
                "with `gemlet convert`"
            )
        return replace(info, dtype=_INTEGERS[dtype][0] if dtype in _INTEGERS else dtype, shape=shape)

    def _take_table_scales(self, table: TensorInfo) -> None:
        """Takes the scales of a per-layer table of integers from the file's tensors."""
        if table.dtype not in {name for name, _, _ in _INTEGERS.values()}:
            return
        rows, columns = table.shape
        info = self.tensors.get(TABLE_SCALES)
        path = self.path(SINGLE_FILE)
        if info is None:
            raise TensorError(f"{path}: tensor {TABLE_SCALES!r} is missing; expected F32 [{rows}, 1]")
        fits = info.dtype == "F32" and len(info.shape) == 2 and info.shape[0] == rows and info.shape[1] > 0
        if not fits or columns % info.shape[1]:
            raise TensorError(
                f"{path}: tensor {TABLE_SCALES!r} is {info.dtype} {list(info.shape)}; expected F32 "
                f"[{rows}, n], where n divides {columns}, such as 1"
            )
        self.scales = {PER_LAYER_TABLE: Scales(info, columns // info.shape[1])}

    def _described(self, path: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """weight -> (format, shape), from the metadata."""
        try:
            raw = json.loads(self._metadata.get("gemlet_tensors", ""))
            described = {name: (dtype, tuple(shape)) for name, (dtype, shape) in raw.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ModelFileError(
                f"{path}: gemlet_tensors is {show(self._metadata.get('gemlet_tensors'))}; expected an object "
                "that maps weights to formats and shapes"
            ) from None
        for name, (dtype, _) in described.items():
            choices = _block_types() if name == PER_LAYER_TABLE else [*EVERY]
            if dtype not in choices:
                raise ModelFileError(
                    f"{path}: gemlet_tensors gives {show(name)} the format {show(dtype)}; expected one of "
                    f"{', '.join(choices)}"
                )
        return described


# The types of per-layer tables of integers: name in the metadata -> (name in TensorInfo, values and bytes of
# a block).
_INTEGERS = {"i8": ("INT8", 1, 1), "i4": ("INT4", 2, 1), "i2": ("INT2", 4, 1)}


def _block_types() -> list[str]:
    return [*(name.lower() for name in BLOCK_TYPES), *_INTEGERS]


FORMAT_VERSION = 2  # of the file format; the version of the layout of matrices is _core.LAYOUT_VERSION
ALIGNMENT = 64  # bytes
