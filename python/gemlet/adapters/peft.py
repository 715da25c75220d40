"""Which tensor of an adapter in PEFT's form changes which weight: :func:`map_peft`.

A tensor is called ``base_model.model.``, then the module in the model it was trained on, then
``.lora_A.weight``, ``.lora_B.weight`` or, with DoRA, ``.lora_magnitude_vector``.
"""

from __future__ import annotations

import re

from gemlet.adapters.peft_config import CONFIG_FILE, AdapterConfig
from gemlet.adapters.terms import LowRank, Terms, linear_slots
from gemlet.base.text import show
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import TensorError
from gemlet.weights.hf_names import (
    is_tower,
    split_prefix,
    tensor_name,
    unused_tensors,
    without_wrappers,
)
from gemlet.weights.slots import expected_slots

__all__ = ["map_peft"]

_OUTER = "base_model.model."
# PEFT leaves out the name of the adapter. Tools that save its modules write it: "lora_A.default.weight".
_PART = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<factor>[AB])(?:\.\w+)?\.weight|lora_magnitude_vector(?:\.\w+){0,2})"
)
# What stands behind the prefix of a text model.
_TRUNK = ("layers", "per_layer_model_projection", "altup_projections", "altup_unembed_projections")


def map_peft(checkpoint: Checkpoint, file: str, adapter: AdapterConfig, config: TextConfig) -> Terms:
    """The terms of an adapter whose tensors are in ``file``. Raises :class:`TensorError` for a tensor that is
    missing, unexpected or does not fit the model."""
    return _Mapping(checkpoint, checkpoint.path(file), adapter, config).terms()


class _Mapping:
    def __init__(
        self, checkpoint: Checkpoint, where: str, adapter: AdapterConfig, config: TextConfig
    ) -> None:
        self.checkpoint = checkpoint
        self.where = where
        self.adapter = adapter
        self.config = config
        self.suffix = f"; the adapter was made for {show(adapter.base_model)}" if adapter.base_model else ""
        self.prefix = self._find_prefix()
        self.shapes = expected_slots(config)
        self.slots = {
            tensor_name(slot, config.family, self.prefix, "").removesuffix(".weight"): slot
            for slot in linear_slots(config)
        }

    def terms(self) -> Terms:
        found, passed_over = self._sort()
        terms = {}
        for module, slot in self.slots.items():
            # A pattern names what it means; "all-linear" is what the tool that wrote it took for that.
            named = not self.adapter.all_linear and self._is_target(module)
            if module in found or named:
                terms[slot] = self._term(module, slot, found.get(module, {}))
        return Terms(terms, tuple(sorted(passed_over)))

    def _sort(self) -> tuple[dict[str, dict[str, str]], set[str]]:
        """Module -> its tensors by what they are; and the modules of towers, which text does not need."""
        unused = {
            name.removesuffix(".weight")
            for name in unused_tensors(self.config, self.prefix, "")
            if name.startswith(f"{self.prefix}layers.")
        }
        found: dict[str, dict[str, str]] = {}
        towers: set[str] = set()
        for tensor, info in self.checkpoint.tensors.items():
            self.checkpoint.dtype(tensor)  # raises for a type that cannot be read
            module, part = _split(tensor)
            if is_tower(module, self.config.family):
                towers.add(module)
            elif module in unused and part:
                pass
            elif module not in self.slots or not part:
                kinds = sorted({slot.rpartition(".")[2] for slot in self.slots.values() if "layers." in slot})
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(tensor)} of shape {list(info.shape)}; gemlet "
                    f"reads lora_A and lora_B of {', '.join(kinds)} in the {self.config.num_layers} layers "
                    f"of this {self.config.family} model{self.suffix}"
                )
            elif not self._is_target(module):
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(tensor)}: target_modules in {CONFIG_FILE} does "
                    "not name it"
                )
            elif part in found.setdefault(module, {}):
                raise TensorError(
                    f"{self.where}: tensors {show(found[module][part])} and {show(tensor)} are the same one"
                )
            else:
                found[module][part] = tensor
        return found, towers

    def _term(self, module: str, slot: str, found: dict[str, str]) -> LowRank:
        rank = self.adapter.module_rank(module)
        rows, cols = self.shapes[slot]
        expected: dict[str, tuple[int, ...]] = {"A": (rank, cols), "B": (rows, rank)}
        if self.adapter.dora:
            expected["magnitude"] = (rows,)
        elif "magnitude" in found:
            raise TensorError(
                f"{self.where}: unexpected tensor {show(found['magnitude'])}: {CONFIG_FILE} does not "
                "set use_dora"
            )
        for part, shape in expected.items():
            if part not in found:
                ending = "lora_magnitude_vector" if part == "magnitude" else f"lora_{part}.weight"
                raise TensorError(
                    f"{self.where}: tensor {show(f'{_OUTER}{module}.{ending}')} is missing; {CONFIG_FILE} "
                    "names its module as a target"
                )
            got = self.checkpoint.tensors[found[part]].shape
            if got != shape:
                raise TensorError(
                    f"{self.where}: tensor {show(found[part])} has shape {list(got)}; expected "
                    f"{list(shape)}: rank {rank} in {CONFIG_FILE}, on a matrix of {rows} x {cols} in this "
                    f"model{self.suffix}"
                )
        return LowRank(
            a=found["A"],
            b=found["B"],
            rank=rank,
            scale=self.adapter.module_scale(module),
            magnitude=found.get("magnitude", ""),
        )

    def _find_prefix(self) -> str:
        """What the modules' names in the adapter begin with: that model may have been wrapped differently."""
        for tensor in self.checkpoint.tensors:
            module, part = _split(tensor)
            prefix, inner = split_prefix(module)
            if part and inner.partition(".")[0] in _TRUNK:
                return prefix
        some = f", got {show(next(iter(self.checkpoint.tensors)))}" if self.checkpoint.tensors else ""
        raise TensorError(
            f"{self.where}: holds nothing for the layers of a text model: expected one of "
            f"'{_OUTER}model.layers.N', '{_OUTER}model.language_model.layers.N' or a similar name{some}"
            f"{self.suffix}"
        )

    def _is_target(self, module: str) -> bool:
        layers = f"{self.prefix}layers"
        inside = module.startswith(f"{layers}.")
        layer = int(module[len(layers) + 1 :].split(".")[0]) if inside else None
        return self.adapter.targets_module(module, layers, layer)


def _split(tensor: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and what it is of it; "" where it is something else."""
    plain = without_wrappers(tensor)
    module = plain.removeprefix(_OUTER)
    match = _PART.fullmatch(module) if module != plain else None
    if match is None:
        return module, ""
    return match["module"], match["factor"] or "magnitude"
