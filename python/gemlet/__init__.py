"""gemlet runs Google's Gemma models on CPUs: a C++ core with a thin Python API.

>>> import gemlet
>>> with gemlet.load() as model:  # the demo model; or load("path/of/a/hugging-face/folder")
...     text = model.generate("The door opened", max_tokens=8, temperature=0).text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# load is bound here and now, not on demand: importing the module gemlet.load later would put the module in
# the place of the function. It imports nothing heavy itself.
from gemlet.errors import (
    CancelledError,
    ConfigError,
    ContextLengthError,
    GemletError,
    InvalidRequestError,
    MemoryLimitError,
    ModelClosedError,
    ModelFileError,
    TensorError,
    TokenizerError,
    UnsupportedError,
)
from gemlet.load import load

if TYPE_CHECKING:
    from gemlet.generation import Chunk, Generation
    from gemlet.generation_config import GenerationConfig
    from gemlet.inspection import Inspection, inspect
    from gemlet.model import Model
    from gemlet.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "CancelledError",
    "Chunk",
    "ConfigError",
    "ContextLengthError",
    "GemletError",
    "Generation",
    "GenerationConfig",
    "Inspection",
    "InvalidRequestError",
    "MemoryLimitError",
    "Model",
    "ModelClosedError",
    "ModelFileError",
    "TensorError",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedError",
    "__version__",
    "inspect",
    "load",
]

# name -> module: imported at first use (PEP 562), so that `import gemlet` stays fast.
_LAZY = {
    "Chunk": "gemlet.generation",
    "Generation": "gemlet.generation",
    "GenerationConfig": "gemlet.generation_config",
    "Inspection": "gemlet.inspection",
    "Model": "gemlet.model",
    "Tokenizer": "gemlet.tokenizer",
    "inspect": "gemlet.inspection",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        value: object = getattr(import_module(_LAZY[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gemlet")
    except PackageNotFoundError:  # run from a source tree
        from gemlet import _core

        return _core.__version__
