"""Reads tensors of integers whose scales are in separate tensors, as in Google's quantized checkpoints.

:func:`with_scales` presents integers and scales as one tensor of weights with the name of the plain tensor:
``X.weight``, for the integers ``X.weight``, ``X.embedding_quantized`` or ``X.weight_packed``. The bits of an
integer follow from the number of columns in the model, which the caller knows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from gemlet.base.arrays import NDArray, np
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.checkpoint.tensor_files import Scales, TensorFiles, TensorInfo
from gemlet.errors import TensorError

__all__ = ["Rounding", "read_rounding", "with_scales"]

_MOST_SCALES = 1 << 28  # the most scales of a tensor: 1 GB in memory
# columns in a byte -> (dtype in the file, dtype of the tensor that with_scales() makes)
_BITS = {1: ("I8", "INT8"), 2: ("U8", "INT4"), 4: ("U8", "INT2")}


@record(frozen=True)
class Rounding:
    """The tensors with the scales that round a module's inputs and outputs. None if a tensor is absent."""

    input: TensorInfo | None
    output: TensorInfo | None


def with_scales(
    files: TensorFiles, columns: Callable[[str], int | None], *, is_read: Callable[[str], bool]
) -> dict[str, Rounding]:
    """Replaces each pair of integers and scales in ``files`` by one tensor of weights.

    ``columns`` takes the name of a module, such as "model.layers.0.mlp.up_proj", and returns the number of
    columns of the module's matrix, or None if the model has no such matrix. ``is_read`` takes the same name
    and tells whether the model reads the module's tensors. Returns the rounding of each tensor that has one.
    Raises :class:`TensorError` if integers and scales do not fit together.
    """
    tensors = dict(files.tensors)
    scales: dict[str, Scales] = {}
    roundings: dict[str, Rounding] = {}
    for name in list(tensors):
        module, _, part = name.rpartition(".")
        if part not in ("weight_scale", "embedding_scale") or not is_read(module):
            continue
        scale = tensors.pop(name)
        stored = "embedding_quantized" if part == "embedding_scale" else "weight"
        words = f"{module}.weight_packed" in tensors
        if words and (moved := tensors.get(f"{module}.weight_g_idx")) is not None:
            raise TensorError(
                f"{files.path(moved.file)}: tensor {show(moved.name)} assigns a scale to each column "
                "(actorder 'group'); expected scales in the order of the columns (actorder 'weight', or "
                "none). Quantize the model again without actorder 'group'"
            )
        info = tensors.pop(f"{module}.{'weight_packed' if words else stored}", None)
        where = files.path(scale.file)
        if info is None:
            raise TensorError(
                f"{where}: tensor {show(name)} has scales, but their integers, {show(f'{module}.{stored}')}, "
                "are missing"
            )
        if words:
            info = _words(files, info, tensors.pop(f"{module}.weight_shape", None), scale)
        else:
            roundings[f"{module}.weight"] = Rounding(
                _scalar(files, tensors.pop(f"{module}.input_activation_scale", None)),
                _scalar(files, tensors.pop(f"{module}.output_activation_scale", None)),
            )
            info = _bytes(files, info, columns(module), scale)
        name = f"{module}.weight"
        if name in tensors:
            raise TensorError(
                f"{where}: tensor {show(name)} occurs twice, as floats and as integers with scales; "
                "expected one of them"
            )
        tensors[name] = replace(info, name=name)
        scales[name] = Scales(scale, info.shape[1] // scale.shape[1])
    files.tensors = MappingProxyType(tensors)
    files.scales = scales
    return {
        name: rounding
        for name, rounding in roundings.items()
        if rounding.input is not None or rounding.output is not None
    }


def read_rounding(files: TensorFiles, rounding: Rounding) -> NDArray[np.float32]:
    """The two scales [input, output]; 0 for a scale that is absent."""
    found = np.zeros(2, np.float32)
    for i, info in enumerate((rounding.input, rounding.output)):
        if info is not None:
            raw = files.files.read(info.file, info.begin, info.nbytes)
            found[i] = np.frombuffer(raw, "<f4")[0]
            if not 0 <= found[i] < np.inf:
                raise TensorError(
                    f"{files.path(info.file)}: tensor {show(info.name)} is {found[i]}; expected a finite "
                    "number of at least 0"
                )
    return found


def _bytes(files: TensorFiles, info: TensorInfo, columns: int | None, scale: TensorInfo) -> TensorInfo:
    """The tensor of integers with 2, 4 or 8 bits that are stored in bytes."""
    label = f"{files.path(info.file)}: tensor {show(info.name)}"
    if len(info.shape) != 2 or not info.shape[0] or not info.shape[1]:
        raise TensorError(f"{label} has shape {list(info.shape)}; expected two sizes above 0: rows, columns")
    rows, width = info.shape
    if columns is None:  # the tensor belongs to a layer that does not read it
        columns = width
    per_byte = columns // width if columns % width == 0 else 0
    if per_byte not in _BITS or info.dtype != _BITS[per_byte][0]:
        raise TensorError(
            f"{label} is {info.dtype} {list(info.shape)}; the model has {columns} columns, so expected "
            f"I8 [.., {columns}] (8 bits), U8 [.., {columns // 2}] (4 bits) or U8 [.., {columns // 4}] (2 "
            "bits)"
        )
    fits = scale.dtype == "F32" and len(scale.shape) == 2 and scale.shape[0] == rows and scale.shape[1] > 0
    if not fits or columns % scale.shape[1] or rows * scale.shape[1] > _MOST_SCALES:
        raise _wrong_tensor(files, scale, "F32", f"[{rows}, n], where n divides {columns}, such as 1")
    return replace(info, dtype=_BITS[per_byte][1], shape=(rows, columns))


def _words(files: TensorFiles, info: TensorInfo, shape: TensorInfo | None, scale: TensorInfo) -> TensorInfo:
    """The tensor of 4-bit integers, of which each 32-bit word holds eight. Each scale belongs to a multiple
    of 32 columns."""
    label = f"{files.path(info.file)}: tensor {show(info.name)}"
    fits = info.dtype == "I32" and len(info.shape) == 2 and all(info.shape)
    if not fits or info.shape[1] % 4:
        raise TensorError(
            f"{label} is {info.dtype} {list(info.shape)}; expected I32 [rows, columns / 8] with a multiple "
            "of 32 columns"
        )
    rows, columns = info.shape[0], 8 * info.shape[1]
    groups = scale.shape[1] if len(scale.shape) == 2 and scale.shape[1] else 0
    fits = groups > 0 and columns % (32 * groups) == 0 and scale.shape[0] == rows
    if scale.dtype not in ("BF16", "F16", "F32") or not fits or rows * (columns // 32) > _MOST_SCALES:
        raise _wrong_tensor(files, scale, "BF16, F16 or F32", f"[{rows}, n], where n divides {columns // 32}")
    if shape is not None:
        if shape.dtype != "I64" or shape.shape != (2,):
            raise _wrong_tensor(files, shape, "I64", "[2]")
        said = np.frombuffer(files.files.read(shape.file, shape.begin, 16), "<i8").tolist()
        # If only the heads of the files were fetched from the hub, all data are zeros.
        if said != [rows, columns] and any(said):
            raise TensorError(
                f"{files.path(shape.file)}: tensor {show(shape.name)} is {said}; expected {[rows, columns]}"
            )
    return replace(info, dtype="INT4X32", shape=(rows, columns))


def _scalar(files: TensorFiles, info: TensorInfo | None) -> TensorInfo | None:
    if info is not None and (info.dtype != "F32" or info.nbytes != 4):
        raise _wrong_tensor(files, info, "F32", "with one value")
    return info


def _wrong_tensor(files: TensorFiles, scale: TensorInfo, dtype: str, shape: str) -> TensorError:
    return TensorError(
        f"{files.path(scale.file)}: tensor {show(scale.name)} is {scale.dtype} {list(scale.shape)}; expected "
        f"{dtype} {shape}"
    )
