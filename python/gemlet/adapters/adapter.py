"""LoRA adapters as PEFT saves them: opened and checked (:func:`open_adapter`), put beside a model's weights
(:meth:`AdapterFiles.build`) or added into them (:meth:`AdapterFiles.add_to_rows`).

An adapter (Hu et al. 2021, arXiv 2106.09685) changes a matrix ``W [rows, cols]`` of a layer to
``W + scale * B A``, with ``A [rank, cols]`` and ``B [rows, rank]`` of a small rank. Its folder has
``adapter_config.json`` and ``adapter_model.safetensors``; a tensor is called ``base_model.model.``, then the
module in the model it was trained on, then ``.lora_A.weight`` or ``.lora_B.weight``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gemlet.adapters.peft_config import CONFIG_FILE, AdapterConfig, read_adapter_config
from gemlet.base.files import check_links
from gemlet.base.sizes import size_text
from gemlet.base.text import show
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, MemoryLimitError, ModelFileError, TensorError
from gemlet.weights.hf_names import PREFIXES, is_tower, tensor_name, unused_tensors
from gemlet.weights.slots import expected_slots

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemlet import _core

__all__ = ["WEIGHTS_FILE", "Adapter", "AdapterFiles", "open_adapter"]

WEIGHTS_FILE = "adapter_model.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_OUTER = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter resident beside a model; made by :meth:`gemlet.Model.load_adapter`.

    Attributes:
        name: what requests call it.
        source: the folder it came from.
        base_model: the model it was trained on, as it says itself; "" where it does not.
        ranks: the ranks of its matrices, lowest first.
        targets: the kinds of matrices it changes, for example ``("q_proj", "v_proj")``.
        memory_bytes: what it takes in memory.

    >>> import gemlet
    >>> with gemlet.load("tests/golden/gemma3-270m") as model:  # in a checkout
    ...     adapter = model.load_adapter("tests/golden/adapters/gemma3-plain")
    >>> adapter.name, adapter.ranks
    ('gemma3-plain', (4,))
    """

    name: str
    source: str
    base_model: str
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True, order=True)
class LowRank:
    """What an adapter adds to one weight: ``scale * B A``; ``a`` and ``b`` are tensors of its file."""

    a: str
    b: str
    rank: int
    scale: float


class AdapterFiles:
    """An adapter whose files have been checked against a model. A context manager; ``close()`` closes them.

    Attributes:
        terms: the core's name of a weight ("layers.3.q_proj") -> what is added to it.
        checkpoint: its tensors.
    """

    def __init__(
        self, folder: str, config: AdapterConfig, checkpoint: Checkpoint, terms: Mapping[str, LowRank]
    ) -> None:
        self.folder = folder
        self.config = config
        self.terms = terms
        self.checkpoint = checkpoint

    def build(self, model: _core.Model) -> _core.Adapter:
        """The adapter packed for ``model``; raises :class:`TensorError` for values that are not finite."""
        from gemlet import _core

        builder = _core.AdapterBuilder(model)
        for slot, term in self.terms.items():
            a, a_dtype = self.checkpoint.read(term.a)
            b, b_dtype = self.checkpoint.read(term.b)
            try:
                builder.add(slot, a=a, a_dtype=a_dtype, b=b, b_dtype=b_dtype, scale=term.scale)
            except TensorError as problem:
                path = self.checkpoint.path(WEIGHTS_FILE)
                raise TensorError(f"{path}: tensor {show(term.a)} or its lora_B: {problem}") from None
        return builder.finish()

    @property
    def max_rank(self) -> int:
        """The largest rank of its matrices."""
        return max((term.rank for term in self.terms.values()), default=0)

    def memory_bytes(self, weights: str) -> int:
        """What :meth:`build` takes for a model with ``weights``: panels of 16 rows, as the core has them."""
        size = 4 if weights == "f32" else 2
        total = 0
        for term in self.terms.values():
            for tensor in (term.a, term.b):
                rows, cols = self.checkpoint.tensors[tensor].shape
                total += -(-rows // 16) * 16 * (-(-cols * size // 4) * 4)
        return total

    def check_memory(self, room: int, weights: str, scratch: int) -> None:
        """Raises :class:`MemoryLimitError` if the adapter needs more than ``room`` bytes together with
        ``scratch``, which forward passes need for it and do not have yet."""
        if (needed := self.memory_bytes(weights) + scratch) > room:
            part = f" ({size_text(scratch)} of it in forward passes)" if scratch else ""
            raise MemoryLimitError(
                f"{self.folder}: the adapter needs {size_text(needed)}{part}, but max_memory leaves "
                f"{size_text(max(0, room))}; unload another one, merge it with merge_adapter=, or load the "
                "model with a smaller max_context"
            )

    def describe(self, name: str, memory_bytes: int) -> Adapter:
        """What a caller sees of it."""
        found = {slot.rpartition(".")[2] for slot in self.terms}
        return Adapter(
            name=name,
            source=self.folder,
            base_model=self.config.base_model,
            ranks=tuple(sorted({term.rank for term in self.terms.values()})),
            targets=tuple(target for target in TARGETS if target in found),
            memory_bytes=memory_bytes,
        )

    def add_to_rows(
        self, slot: str, blocks: Iterator[tuple[NDArray[Any], str]]
    ) -> Iterator[tuple[NDArray[Any], str]]:
        """``W + scale * B A`` in float32 for blocks of rows of the weight ``slot``, from its first row on: of
        floats (:func:`gemlet.sources.opening.open_model_files` refuses others)."""
        import numpy as np

        term = self.terms[slot]
        a, b = self._finite(term.a), self._finite(term.b)
        first = 0
        for block, dtype in blocks:
            rows = block.shape[0]
            with np.errstate(over="ignore", invalid="ignore"):  # what that makes is refused as it is packed
                merged = _float32(block, dtype) + np.float32(term.scale) * b[first : first + rows] @ a
            yield merged, "f32"
            first += rows

    def _finite(self, tensor: str) -> NDArray[np.float32]:
        import numpy as np

        values = _float32(*self.checkpoint.read(tensor))
        if not np.isfinite(values).all():
            path = self.checkpoint.path(WEIGHTS_FILE)
            raise TensorError(f"{path}: tensor {show(tensor)} holds NaN or infinity; the file is damaged")
        return values

    def close(self) -> None:
        """Closes the files."""
        self.checkpoint.close()

    def __enter__(self) -> AdapterFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_adapter(path: str | os.PathLike[str], config: TextConfig) -> AdapterFiles:
    """Opens the PEFT adapter in the folder ``path`` and checks all of it but the values against the model.

    Every tensor has to be used, but for what a text model has no use for in its own checkpoint either: towers
    for images and sound, and ``k_proj`` and ``v_proj`` of layers that read another one's keys and values.

    Raises:
        InvalidRequestError: ``path`` is not a path.
        ModelFileError: the folder or one of its files is missing, cut short or inconsistent.
        ConfigError: ``adapter_config.json`` describes what gemlet does not compute; names the key.
        TensorError: a tensor is missing, unexpected or does not fit the model; names it.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in str(os.fspath(path)):
        raise InvalidRequestError(f"adapter is {show(path)}; expected the folder of a PEFT adapter")
    folder = str(os.fspath(path))
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "no such folder"
        raise ModelFileError(f"{folder}: {what}; expected a PEFT adapter: {CONFIG_FILE} and {WEIGHTS_FILE}")
    check_links(folder)
    adapter_config = read_adapter_config(folder)
    if not os.path.lexists(os.path.join(folder, WEIGHTS_FILE)):
        raise ModelFileError(
            f"{folder}: holds no {WEIGHTS_FILE} (an adapter_model.bin must be saved again as safetensors)"
        )
    checkpoint = Checkpoint(folder, file=WEIGHTS_FILE)
    try:
        terms = _map_adapter(checkpoint, adapter_config, config)
    except BaseException:
        checkpoint.close()
        raise
    return AdapterFiles(folder, adapter_config, checkpoint, terms)


def _map_adapter(checkpoint: Checkpoint, adapter: AdapterConfig, config: TextConfig) -> dict[str, LowRank]:
    where = checkpoint.path(WEIGHTS_FILE)
    suffix = f"; the adapter was made for {show(adapter.base_model)}" if adapter.base_model else ""
    prefix = _find_prefix(checkpoint, where, suffix)
    slots = {
        tensor_name(slot, config.family, prefix, "").removesuffix(".weight"): slot
        for slot in expected_slots(config)
        if slot.rpartition(".")[2] in TARGETS
    }
    unused = {
        name.removesuffix(".weight")
        for name in unused_tensors(config, prefix, "")
        if name.startswith(f"{prefix}layers.")
    }
    found: dict[str, dict[str, str]] = {}
    for tensor, info in checkpoint.tensors.items():
        checkpoint.dtype(tensor)  # raises for a type that cannot be read
        module, factor = _split(tensor)
        if module in unused or is_tower(module, config.family):
            continue
        if module not in slots or not factor:
            raise TensorError(
                f"{where}: unexpected tensor {show(tensor)} of shape {list(info.shape)}; gemlet reads lora_A "
                f"and lora_B of {', '.join(TARGETS)} in the {config.num_layers} layers of this "
                f"{config.family} model{suffix}"
            )
        if not _is_target(adapter, module, prefix):
            raise TensorError(
                f"{where}: unexpected tensor {show(tensor)}: target_modules in {CONFIG_FILE} does not name it"
            )
        found.setdefault(module, {})[factor] = tensor
    shapes = expected_slots(config)
    terms = {}
    for module, slot in slots.items():
        if module not in found and not _is_target(adapter, module, prefix):
            continue
        rank = adapter.module_rank(module)
        rows, cols = shapes[slot]
        pair = {}
        for factor, expected in (("A", (rank, cols)), ("B", (rows, rank))):
            tensor = f"{_OUTER}{module}.lora_{factor}.weight"
            if factor not in found.get(module, {}):
                raise TensorError(
                    f"{where}: tensor {show(tensor)} is missing; {CONFIG_FILE} names its module as a target"
                )
            shape = checkpoint.tensors[tensor].shape
            if shape != expected:
                raise TensorError(
                    f"{where}: tensor {show(tensor)} has shape {list(shape)}; expected {list(expected)}: "
                    f"rank {rank} in {CONFIG_FILE}, on a matrix of {rows} x {cols} in this model{suffix}"
                )
            pair[factor] = tensor
        terms[slot] = LowRank(a=pair["A"], b=pair["B"], rank=rank, scale=adapter.module_scale(module))
    return terms


def _split(tensor: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and "A" or "B"; "" where it is something else."""
    module = tensor.removeprefix(_OUTER)
    for factor in ("A", "B"):
        if tensor.startswith(_OUTER) and module.endswith(f".lora_{factor}.weight"):
            return module.removesuffix(f".lora_{factor}.weight"), factor
    return module, ""


def _find_prefix(checkpoint: Checkpoint, where: str, suffix: str) -> str:
    """What the modules' names in the adapter begin with; that model may have been wrapped differently."""
    for prefix, _ in PREFIXES:
        if any(tensor.startswith(f"{_OUTER}{prefix}layers.") for tensor in checkpoint.tensors):
            return prefix
    tried = ", ".join(repr(f"{_OUTER}{prefix}layers.N") for prefix, _ in PREFIXES)
    some = f", got {show(next(iter(checkpoint.tensors)))}" if checkpoint.tensors else ""
    raise TensorError(
        f"{where}: holds nothing for the layers of a text model: expected one of {tried}{some}{suffix}"
    )


def _is_target(adapter: AdapterConfig, module: str, prefix: str) -> bool:
    layers = f"{prefix}layers"
    return adapter.targets_module(module, layers, int(module[len(layers) + 1 :].split(".")[0]))


def _float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    import numpy as np

    if dtype == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return (
        values.view(np.float16).astype(np.float32)
        if dtype == "f16"
        else values.astype(np.float32, copy=False)
    )
