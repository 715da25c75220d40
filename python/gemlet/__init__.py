"""gemlet runs Google's Gemma models on CPUs: a C++ core with a thin Python API.

>>> import gemlet
>>> with gemlet.load() as model:  # the demo model; or load("path/of/a/hugging-face/folder")
...     text = model.generate("The door opened", max_tokens=8, temperature=0).text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gemlet.base.handlers import importing
from gemlet.errors import (
    CancelledError,
    ConfigError,
    ContextLengthError,
    DeviceError,
    GemletError,
    HubError,
    InvalidRequestError,
    MemoryLimitError,
    ModelClosedError,
    ModelFileError,
    TensorError,
    TokenizerError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from gemlet.adapters.adapter import Adapter
    from gemlet.base.progress import Progress
    from gemlet.chat import ToolCall
    from gemlet.generation import AsyncTextStream, Chunk, Generation, GenerationConfig, TextStream
    from gemlet.loading.convert import convert
    from gemlet.loading.inspect import inspect
    from gemlet.loading.inspection import Inspection
    from gemlet.loading.load import load
    from gemlet.loading.options import Matformer
    from gemlet.model.model import Model
    from gemlet.model.prefix_report import PrefixReport
    from gemlet.model.session import Session
    from gemlet.sources.hub import download
    from gemlet.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "Adapter",
    "AsyncTextStream",
    "CancelledError",
    "Chunk",
    "ConfigError",
    "ContextLengthError",
    "DeviceError",
    "GemletError",
    "Generation",
    "GenerationConfig",
    "HubError",
    "Inspection",
    "InvalidRequestError",
    "Matformer",
    "MemoryLimitError",
    "Model",
    "ModelClosedError",
    "ModelFileError",
    "PrefixReport",
    "Progress",
    "Session",
    "TensorError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "UnsupportedError",
    "__version__",
    "convert",
    "download",
    "inspect",
    "load",
]

# name -> module: imported at first use (PEP 562), so that `import gemlet` stays fast.
_LAZY = {
    "Adapter": "gemlet.adapters.adapter",
    "Chunk": "gemlet.generation",
    "Generation": "gemlet.generation",
    "GenerationConfig": "gemlet.generation",
    "Inspection": "gemlet.loading.inspection",
    "Matformer": "gemlet.loading.options",
    "Model": "gemlet.model.model",
    "PrefixReport": "gemlet.model.prefix_report",
    "Progress": "gemlet.base.progress",
    "Session": "gemlet.model.session",
    "AsyncTextStream": "gemlet.generation",
    "TextStream": "gemlet.generation",
    "Tokenizer": "gemlet.tokenizer",
    "ToolCall": "gemlet.chat",
    "convert": "gemlet.loading.convert",
    "download": "gemlet.sources.hub",
    "inspect": "gemlet.loading.inspect",
    "load": "gemlet.loading.load",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        with importing():
            value: object = getattr(import_module(_LAZY[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gemlet")
    except PackageNotFoundError:  # run from a source tree
        from gemlet import _core

        return _core.__version__
