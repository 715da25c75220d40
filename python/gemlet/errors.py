"""The exceptions gemlet raises. Every one derives from :class:`GemletError`.

A message names the thing (file, tensor, key or argument), what was got, what was expected and the remedy.

>>> import gemlet
>>> try:
...     gemlet.load("/no/such/folder")
... except gemlet.ModelFileError as error:
...     print(type(error).__name__)
ModelFileError
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "ConfigError",
    "ContextLengthError",
    "GemletError",
    "HubError",
    "InvalidRequestError",
    "MemoryLimitError",
    "ModelClosedError",
    "ModelFileError",
    "TensorError",
    "TokenizerError",
    "UnsupportedError",
]


class GemletError(Exception):
    """Base class of everything gemlet raises on purpose."""


class ModelFileError(GemletError, ValueError):
    """A model file is missing, cut short, or says something about itself that is not true."""


class ConfigError(GemletError, ValueError):
    """``config.json`` has an unknown architecture or key, a value out of range, or an unknown combination."""


class HubError(GemletError, RuntimeError):
    """The hub has no such model, does not give it out, or cannot be reached."""


class TensorError(GemletError, ValueError):
    """A tensor is missing, unexpected, of the wrong shape or type, or holds NaN or infinity."""


class TokenizerError(GemletError, ValueError):
    """A tokenizer file cannot be used, or the tokenizer was asked for something it cannot do."""


class InvalidRequestError(GemletError, ValueError):
    """A caller's argument is wrong: sampling values, token ids, an empty prompt, malformed messages."""


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt plus what was asked for, does not fit the model's context."""


class UnsupportedError(GemletError, RuntimeError):
    """This build or machine cannot do what was asked (for example ``device="cuda"`` without CUDA)."""


class ModelClosedError(GemletError, RuntimeError):
    """The model was used after ``close()``."""


class CancelledError(GemletError, RuntimeError):
    """The computation was cancelled from another thread."""


class MemoryLimitError(GemletError, MemoryError):
    """What was asked for needs more memory than the limit or the machine has."""
