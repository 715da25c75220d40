"""Checks of the arguments of :func:`gemlet.load`."""

from __future__ import annotations

from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError

MAX_THREADS = 1024


def check_device(device: str) -> None:
    if device == "cuda":
        raise UnsupportedError("device is 'cuda', but this gemlet was built without CUDA; use device='cpu'")
    if device != "cpu":
        raise UnsupportedError(f"device is {device!r}; this gemlet runs on 'cpu' only")


def check_threads(threads: int | None, name: str = "threads") -> int:
    if threads is None:
        from gemlet import _core

        return _core.default_threads()[0]
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise InvalidRequestError(f"{name} is {threads!r}; expected 1 to {MAX_THREADS}, or None")
    return threads


def check_flag(name: str, value: bool) -> None:
    if type(value) is not bool:
        raise InvalidRequestError(f"{name} is {value!r}; expected True or False")


def check_max_context(max_context: int | None, config: TextConfig) -> int:
    longest = config.max_position_embeddings
    if max_context is None:
        return longest
    if type(max_context) is not int or not 1 <= max_context <= longest:
        raise InvalidRequestError(
            f"max_context is {max_context!r}; expected 1 to {longest} tokens, the model's limit, or None"
        )
    return max_context
