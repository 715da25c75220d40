"""What a folder's ``generation_config.json`` says: which tokens end a text, and how to sample."""

from __future__ import annotations

import os
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.strict_json import read_json_object
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError

__all__ = ["read_end_ids", "read_sampling"]


def read_end_ids(folder: str | os.PathLike[str], config: TextConfig) -> frozenset[int]:
    """The ids that end a text: ``eos_token_id`` of the config and of ``generation_config.json``, if present.

    The second file is where published chat models name their end of turn.

    Raises:
        ModelFileError: ``generation_config.json`` cannot be read.
        ConfigError: it names an id outside the vocabulary.

    >>> import os, gemlet
    >>> from gemlet.config import read_config
    >>> demo = os.path.join(os.path.dirname(gemlet.__file__), "demo")
    >>> sorted(read_end_ids(demo, read_config(demo)))
    [1, 106]
    """
    keys = _generation_keys(folder)
    more = keys.token_ids("eos_token_id", config.vocab_size) if keys else ()
    return frozenset((*config.eos_token_ids, *more))


# The ranges of GenerationConfig.
SAMPLING_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (5e-324, 1.0),
    "min_p": (0.0, 1.0 - 2**-53),
    "repetition_penalty": (0.01, 100.0),
}


def read_sampling(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The sampling values that ``generation_config.json`` recommends, by their names in GenerationConfig.

    Raises:
        ModelFileError: the file cannot be read.
        ConfigError: a value that no sampling could use; the message names the key.

    >>> import os, gemlet
    >>> read_sampling(os.path.join(os.path.dirname(gemlet.__file__), "demo"))["top_k"]
    64
    """
    keys = _generation_keys(folder)
    if keys is None:
        return {}
    sampling: dict[str, Any] = {}
    if keys.get("do_sample") is not None:
        sampling["do_sample"] = keys.flag("do_sample")
    if keys.get("top_k") is not None:
        sampling["top_k"] = keys.integer("top_k", 1 << 31, 0)
    for name, (low, high) in SAMPLING_RANGES.items():
        if keys.get(name) is not None:
            sampling[name] = keys.number(name, low, high)
    return sampling


def _generation_keys(folder: str | os.PathLike[str]) -> Keys | None:
    path = os.path.join(os.fspath(folder), "generation_config.json")
    if not os.path.lexists(path):
        return None
    return Keys(read_json_object(path, error=ConfigError), path, "")
