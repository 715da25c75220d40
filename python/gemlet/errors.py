"""The exceptions that gemlet raises. All are subclasses of :class:`GemletError`.

A message names the thing (file, tensor, key or argument), the value that was got, the value that was
expected, and what to do.

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
    "DeviceError",
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
    """The base class of all errors that gemlet raises on purpose.

    >>> import gemlet
    >>> try:
    ...     gemlet.load(kv_cache="q5")
    ... except gemlet.GemletError as error:
    ...     print(error)
    kv_cache is 'q5'; expected one of 'f32', 'bf16', 'int8', 'int4'
    """

    # The message is made readable here and not in __init__, because the core also raises these errors. A
    # constructor in Python would run while C++ frames are on the stack; if Python ended the thread there at
    # its exit, the process would end with SIGABRT.
    def __str__(self) -> str:
        return readable(super().__str__())


class ModelFileError(GemletError, ValueError):
    """A model file is missing, cut short, or contradicts itself.

    >>> import gemlet
    >>> try:
    ...     gemlet.Tokenizer.from_file("tokenizer.modle")
    ... except gemlet.ModelFileError as error:
    ...     print(error)
    tokenizer.modle: cannot be read: No such file or directory
    """


class ConfigError(GemletError, ValueError):
    """``config.json`` has an unknown architecture or key, a value out of range, or an unknown combination.

    >>> from gemlet.config import SHAPES, parse_config
    >>> try:
    ...     parse_config({**SHAPES["gemma3-1b"], "hidden_size": -1}, where="config.json")
    ... except ConfigError as error:
    ...     print(error)
    config.json: hidden_size is -1; expected an integer from 1 to 65536
    """


class HubError(GemletError, RuntimeError):
    """The hub does not have the model, refuses to send it, or cannot be reached.

    >>> import gemlet
    >>> def load_or_demo(name):
    ...     try:
    ...         return gemlet.load(name)
    ...     except (gemlet.HubError, gemlet.UnsupportedError):  # no network; or without the extra "hub"
    ...         return gemlet.load()
    """


class TensorError(GemletError, ValueError):
    """A tensor is missing, is unexpected, has the wrong shape or type, or contains NaN or infinity.

    >>> import os, shutil, tempfile
    >>> import gemlet
    >>> demo = os.path.join(os.path.dirname(gemlet.__file__), "demo")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = shutil.copy(os.path.join(demo, "config.json"), folder)
    ...     with open(os.path.join(folder, "model.safetensors"), "wb") as file:
    ...         _ = file.write(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")  # a valid file without tensors
    ...     try:
    ...         gemlet.load(folder)
    ...     except gemlet.TensorError as error:
    ...         print("embed_tokens.weight" in str(error))
    True
    """


class TokenizerError(GemletError, ValueError):
    """A tokenizer file cannot be used, or a text or token id cannot be encoded or decoded.

    >>> import gemlet
    >>> try:
    ...     gemlet.load().tokenizer.encode("half a \\ud83d pair")
    ... except gemlet.TokenizerError as error:
    ...     print(error)
    text: character 7 is the lone surrogate U+D83D; expected valid Unicode
    """


class InvalidRequestError(GemletError, ValueError):
    """An argument of a call is wrong, such as a sampling value, a token id, an empty prompt or a malformed
    message.

    Attributes:
        indices: if the argument is a list of texts, the positions of the wrong texts in the list.

    >>> import gemlet
    >>> try:
    ...     gemlet.GenerationConfig(temperature=-1)
    ... except gemlet.InvalidRequestError as error:
    ...     print(error)
    temperature: got -1, expected a number from 0 (greedy) to 100
    """

    indices: tuple[int, ...] = ()


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit the model's context. (If a reply fills the context, there is no error: the
    reply ends with the finish reason "context".)

    >>> import gemlet
    >>> with gemlet.load(max_context=8) as model:
    ...     try:
    ...         model.generate("It was the best of times, it was the worst of times")
    ...     except gemlet.ContextLengthError as error:
    ...         print("the context holds 8" in str(error))
    True
    """


class UnsupportedError(GemletError, RuntimeError):
    """This build, machine or model cannot do what the caller asked for. Examples are CUDA in a build without
    it, an extra that is not installed, and tools in a chat format without tools.

    >>> import gemlet
    >>> try:
    ...     gemlet.load(device="cuda")
    ... except gemlet.UnsupportedError as error:
    ...     print(error)
    device is 'cuda', but this gemlet was built without CUDA; use device='cpu'
    """


class ModelClosedError(GemletError, RuntimeError):
    """The model, or a stream of it, was used after ``close()``.

    >>> import gemlet
    >>> with gemlet.load() as model:
    ...     pass
    >>> try:
    ...     model.generate("The door opened")
    ... except gemlet.ModelClosedError as error:
    ...     print(error)
    the model from demo is closed; load it again
    """


class CancelledError(GemletError, RuntimeError):
    """The computation was cancelled from another thread.

    A stream that is cancelled does not raise this error. Its last chunk has the finish reason "cancelled".

    >>> import gemlet
    >>> with gemlet.load() as model, model.stream("The door opened") as stream:
    ...     stream.cancel()
    ...     print([chunk.finish_reason for chunk in stream])
    ['cancelled']
    """


class DeviceError(GemletError, RuntimeError):
    """The GPU failed or was lost during a computation. No model of this process can use the GPU any more.

    >>> import gemlet
    >>> issubclass(gemlet.DeviceError, gemlet.GemletError)
    True
    """


class MemoryLimitError(GemletError, MemoryError):
    """A call needs more memory than the limit allows or the machine has.

    >>> import gemlet
    >>> try:
    ...     gemlet.load(max_memory="1MB")
    ... except gemlet.MemoryLimitError as error:
    ...     print(str(error).split(",")[0])
    max_memory is 1 MB
    """


_LONGEST = 4000  # characters of a message


def readable(message: str) -> str:
    """Shortens ``message`` and replaces its surrogates, which cannot be printed. Surrogates occur in messages
    because Python represents bytes of file names that are not UTF-8 as surrogates."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    return message.encode("utf-8", "backslashreplace").decode()


def missing_extra(what: str, name: str) -> UnsupportedError:
    """The error for ``what``, which needs packages of the extra ``name`` that are not installed.

    >>> print(missing_extra("downloading", "hub"))
    downloading needs the extra "hub": run pip install '.[hub]' in gemlet's checkout
    """
    return UnsupportedError(
        f"{what} needs the extra \"{name}\": run pip install '.[{name}]' in gemlet's checkout"
    )
