"""Reads adapters of llama.cpp, which its ``convert_lora_to_gguf.py`` writes: :class:`GGUFAdapter`.

In such a file, ``general.type`` is "adapter", ``adapter.type`` is "lora", and ``adapter.lora.alpha`` is the
alpha. For the matrix "blk.3.attn_q.weight", the file has the tensors "blk.3.attn_q.weight.lora_a" ``[rank,
cols]`` and "blk.3.attn_q.weight.lora_b" ``[rows, rank]``.
"""

from __future__ import annotations

import math
import os

from gemlet.adapters.terms import ENDS, EXPERTS, TABLES, LowRank, Terms, kind_of, target_slots
from gemlet.base.text import show
from gemlet.checkpoint.gguf_files import GGUFCheckpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError, ModelFileError, TensorError
from gemlet.weights.gguf_names import gguf_name
from gemlet.weights.slots import expected_slots

__all__ = ["GGUFAdapter"]

_ABOUT_NOTHING = ("adapter.lora.task_name", "adapter.lora.prompt_prefix")
_ENDINGS = (".lora_a", ".lora_b")


class GGUFAdapter(GGUFCheckpoint):
    """The adapter in a GGUF file. Raises the same errors as :class:`GGUFCheckpoint`, and :class:`ConfigError`
    for a kind of adapter that gemlet does not support.

    Attributes:
        base_model: the model for which the adapter was made, according to the file; "" if the file does not
            say.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        where = self.gguf.path
        if self.gguf.metadata.get("general.type") != "adapter":
            raise ModelFileError(
                f"{where}: is a GGUF file of a model; expected an adapter. Load models with gemlet.load()"
            )
        if (kind := self.gguf.metadata.get("adapter.type")) != "lora":
            raise ConfigError(f"{where}: adapter.type is {show(kind)}; expected 'lora'")
        for key, value in self.gguf.metadata.items():
            if key.startswith("adapter.") and key not in (
                "adapter.type",
                "adapter.lora.alpha",
                *_ABOUT_NOTHING,
            ):
                raise ConfigError(
                    f"{where}: gemlet does not support the key {show(key)} (value {show(value)}); "
                    "expected a plain LoRA adapter"
                )
        self.alpha = float(self.gguf.get("adapter.lora.alpha", float))
        if not math.isfinite(self.alpha) or abs(self.alpha) > 1e6:
            raise ConfigError(f"{where}: adapter.lora.alpha is {self.alpha}; expected a number up to 1e6")
        name = self.gguf.metadata.get("general.base_model.0.name", self.gguf.metadata.get("general.name"))
        self.base_model = name if isinstance(name, str) else ""

    def terms(self, config: TextConfig) -> Terms:
        """Returns the changes of the adapter. Raises :class:`TensorError` for a tensor that is missing,
        unexpected or does not fit the model."""
        where = self.gguf.path
        made_for = f"; the adapter was made for {show(self.base_model)}" if self.base_model else ""
        shapes = expected_slots(config)
        # llama.cpp has no names for the streams of AltUp, and its adapters change no table and no output
        # head.
        slots = {
            gguf_name(slot, config.family): slot
            for slot in target_slots(config)
            if slot not in (*ENDS, *TABLES) and not slot.startswith("altup_") and kind_of(slot) not in EXPERTS
        }
        for tensor in self.tensors:
            self.dtype(tensor)  # raises for a type that cannot be read
            if not tensor.endswith(_ENDINGS) or tensor[:-7] not in slots:
                raise TensorError(
                    f"{where}: unexpected tensor {show(tensor)} of shape {list(self.tensors[tensor].shape)}; "
                    f"gemlet reads lora_a and lora_b of linear modules of this {config.family} model of "
                    f"{config.num_layers} layers{made_for}"
                )
        terms = {}
        for name, slot in slots.items():
            pair = f"{name}.lora_a", f"{name}.lora_b"
            if pair[0] not in self.tensors and pair[1] not in self.tensors:
                continue
            for tensor in pair:
                if tensor not in self.tensors:
                    raise TensorError(f"{where}: tensor {show(tensor)} is missing")
            a, b = (self.tensors[tensor].shape for tensor in pair)
            rows, cols = shapes[slot]
            rank = b[-1]
            if rank < 1 or a != (rank, cols) or b != (rows, rank):
                raise TensorError(
                    f"{where}: tensors {show(pair[0])} and its lora_b have shapes {list(a)} and {list(b)}; "
                    f"expected [rank, {cols}] and [{rows}, rank]{made_for}"
                )
            terms[slot] = LowRank(*pair, rank, self.alpha / rank if self.alpha else 1.0)
        if not terms:
            raise TensorError(f"{where}: has no tensors of an adapter")
        return Terms(terms, {})
