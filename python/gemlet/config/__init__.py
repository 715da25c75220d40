"""The text model that a Hugging Face ``config.json`` describes, checked and frozen: :class:`TextConfig`.

>>> from gemlet.config import shape_config
>>> shape_config("gemma3-1b").num_layers
26
"""

from __future__ import annotations

from gemlet.config.generation_defaults import read_end_ids, read_sampling
from gemlet.config.hf_config import parse_config, read_config, shape_config
from gemlet.config.layers import LayerSpec
from gemlet.config.shapes import SHAPES
from gemlet.config.text_config import TextConfig, embedding_scale

__all__ = [
    "SHAPES",
    "LayerSpec",
    "TextConfig",
    "embedding_scale",
    "parse_config",
    "read_config",
    "read_end_ids",
    "read_sampling",
    "shape_config",
]
