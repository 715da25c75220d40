"""Reads the metadata keys that belong to a GGUF file's architecture: :class:`Metadata`."""

from __future__ import annotations

import math
from typing import Any

from gemlet.base.arrays import np
from gemlet.base.keys import says_nothing
from gemlet.base.text import show
from gemlet.checkpoint.gguf_format import GGUFFile
from gemlet.config.limits import LIMITS
from gemlet.errors import ConfigError

__all__ = ["Metadata", "plain"]

# Keys of an architecture that do not change the logits.
_IGNORED = {
    "vocab_size",
    "altup.lr_multiplier",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",  # every norm of a Gemma is an RMS norm, which has another epsilon
}
# Keys that have no effect if their value is 1.
_SCALES = {"logit_scale", "embedding_scale", "residual_scale", "attention.temperature_scale"}
_TOWERS = ("vision.", "audio.", "mm.")  # prefixes of keys about towers, which the text model does not need


class Metadata:
    """Reads keys of one architecture and checks their types. Records which keys were read, and which were
    ignored."""

    def __init__(self, gguf: GGUFFile, architecture: str) -> None:
        self.gguf = gguf
        self.prefix = f"{architecture}."
        self.read: set[str] = set()
        self.passed_over: list[str] = []

    def wrong(self, key: str, expected: str) -> ConfigError:
        full = self.prefix + key
        got = f"is {show(plain(self.gguf.metadata[full]))}" if full in self.gguf.metadata else "is missing"
        return ConfigError(f"{self.gguf.path}: {full} {got}; expected {expected}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``. Arrays become lists."""
        self.read.add(self.prefix + key)
        return plain(self.gguf.metadata.get(self.prefix + key, default))

    def integer(self, key: str, name: str, default: int | None = None) -> int:
        """The value of ``key``: an integer, or an array of equal integers, in the range of the key ``name``
        of config.json."""
        value = self.get(key, default)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if type(value) is not int or not 1 <= value <= LIMITS[name]:
            raise self.wrong(key, f"an integer from 1 to {LIMITS[name]}")
        return value

    def integers(self, key: str, name: str, count: int) -> list[int]:
        """The value of ``key`` as ``count`` integers. The file may have an array, or one integer for all."""
        value = self.get(key)
        if not isinstance(value, list):
            return [self.integer(key, name)] * count
        if len(value) != count or any(
            type(item) is not int or not 1 <= item <= LIMITS[name] for item in value
        ):
            raise self.wrong(key, f"an integer from 1 to {LIMITS[name]}, or an array of {count}")
        return value

    def number(self, *keys: str) -> float | None:
        """The number of the first of ``keys`` that the file has; None if it has none of them."""
        found = None
        for key in keys:
            value = self.get(key)
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
                raise self.wrong(key, "a finite number")
            found = value if found is None else found
        return found

    def only(self, key: str, *supported: Any) -> None:
        """Checks that ``key`` is absent or has one of the values ``supported``."""
        if self.get(key, supported[0]) not in supported:
            choices = " or ".join(map(show, supported))
            raise self.wrong(key, f"{choices} (gemlet supports nothing else)")

    def pass_over(self, key: str) -> None:
        """Notes that ``key`` has no effect, if the file has it."""
        if self.prefix + key in self.gguf.metadata:
            self.read.add(self.prefix + key)
            self.passed_over.append(self.prefix + key)

    def refuse_unread(self) -> None:
        """Raises :class:`ConfigError` for a key that was not read and may have an effect."""
        for key, value in self.gguf.metadata.items():
            rest = key.removeprefix(self.prefix)
            if rest == key or key in self.read or rest in _IGNORED or rest.startswith(_TOWERS):
                continue
            found = plain(value)
            # In llama.cpp, 0 means the same as a missing key.
            if says_nothing(found) or (
                type(found) in (int, float) and (found == 0 or (found == 1 and rest in _SCALES))
            ):
                self.passed_over.append(key)
                continue
            raise ConfigError(
                f"{self.gguf.path}: unknown metadata key {show(key)} (value {show(found)}); expected only "
                "keys that gemlet knows, because any other may change the model's results. If this key "
                "changes nothing, remove it with gguf-py, or load the Hugging Face folder"
            )


def plain(value: Any) -> Any:
    """Returns a value of the metadata without NumPy: an array becomes a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value
