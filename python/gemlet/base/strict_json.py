"""Reads JSON from untrusted files: strict UTF-8, no duplicate keys, no NaN, limits on size and nesting.

``json.loads`` keeps the last of two equal keys, accepts ``NaN`` and ``Infinity``, and raises
``RecursionError`` for deep nesting. Here each of these is an error that names the file. The caller chooses
the type of the error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from gemlet.base.files import MAX_JSON_BYTES, read_file
from gemlet.base.text import show
from gemlet.errors import GemletError

__all__ = ["parse_json_object", "read_json_list", "read_json_object"]


def parse_json_object(data: bytes, *, where: str, error: type[GemletError]) -> dict[str, Any]:
    """The JSON object in ``data``. Anything else raises ``error``, which names ``where``.

    >>> from gemlet.errors import ModelFileError
    >>> parse_json_object(b'{"a": 1}', where="config.json", error=ModelFileError)
    {'a': 1}
    """
    value = _parse_json(data, where=where, error=error)
    if not isinstance(value, dict):
        raise error(f"{where}: contains a JSON {type(value).__name__}; expected an object")
    return value


# Estimates of the memory in bytes that Python needs for a list or dict, a string, an item of a list, and an
# entry of a dict.
_CONTAINER_BYTES, _STRING_BYTES, _ITEM_BYTES, _ENTRY_BYTES = 64, 60, 8, 40
# A file may need _FREE_BYTES of memory, plus _GROWTH times its own size. A tokenizer.json of Gemma needs at
# most eight times its size.
_FREE_BYTES, _GROWTH = 16 << 20, 8


def _check_growth(data: bytes, where: str, error: type[GemletError]) -> None:
    """Refuses JSON that would need many times its size in memory, such as a text of brackets only."""
    containers = data.count(b"[") + data.count(b"{")
    grown = containers * _CONTAINER_BYTES + data.count(b'"') // 2 * _STRING_BYTES
    grown += data.count(b",") * _ITEM_BYTES + data.count(b":") * _ENTRY_BYTES
    if grown > _FREE_BYTES + _GROWTH * len(data):
        raise error(
            f"{where}: {len(data)} bytes of JSON would take about {grown} bytes of memory; expected longer "
            "values and fewer of them"
        )


def _parse_json(data: bytes, *, where: str, error: type[GemletError]) -> Any:
    _check_growth(data, where, error)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise error(f"{where}: the key {show(key)} appears twice; expected each key once")
            seen[key] = value
        return seen

    def no_constant(name: str) -> Any:
        raise error(f"{where}: holds {name}, which is not JSON; expected a finite number")

    try:
        text = data.decode("utf-8").removeprefix("\ufeff")  # a byte order mark, as Windows writes it
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except error:  # from the functions above; some of these errors are also a ValueError
        raise
    except RecursionError:
        raise error(f"{where}: nested too deeply; expected a flat JSON object") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 at byte {problem.start}; expected JSON text in UTF-8") from None
    except json.JSONDecodeError as problem:
        raise error(f"{where}: not valid JSON: {problem}") from None
    except ValueError:  # Python's limit on digits
        digits = sys.get_int_max_str_digits()
        raise error(f"{where}: holds an integer of more than {digits} digits; expected fewer") from None


def read_json_object(
    path: str | os.PathLike[str], *, error: type[GemletError], max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Raises :class:`ModelFileError` if the file cannot be read or is larger than ``max_bytes``, and ``error``
    if its content is not a JSON object.
    """
    where = os.fspath(path)
    return parse_json_object(read_file(where, max_bytes), where=where, error=error)


def read_json_list(path: str | os.PathLike[str], *, error: type[GemletError]) -> list[Any]:
    """The JSON list in the file ``path``. Raises the same errors as :func:`read_json_object`."""
    where = os.fspath(path)
    value = _parse_json(read_file(where, MAX_JSON_BYTES), where=where, error=error)
    if not isinstance(value, list):
        raise error(f"{where}: contains a JSON {type(value).__name__}; expected a list")
    return value
