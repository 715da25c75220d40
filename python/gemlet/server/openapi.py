"""The OpenAPI document that the server publishes. It is made from the tables that check requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet import _core
from gemlet.server.schema import Kind, Object

__all__ = ["document"]

_ANSWERS = {
    "200": "the answer",
    "400": "the request is wrong; the answer says where",
    "401": "there is no valid key",
    "403": "the key may not do this",
    "404": "there is no such model",
    "408": "the body came too slowly",
    "409": "a batch still reads the file",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "a limit of the key is reached",
    "500": "the server failed",
    "503": "the server is busy, or not ready yet",
    "504": "the reply took too long",
    "507": "the disk has no room",
}


def document(routes: Sequence[tuple[str, str, Mapping[str, Kind] | None, Sequence[str]]]) -> dict[str, Any]:
    """Makes the document. A route has its method, its path, the table of its body (None: it has no body), and
    the fields that it requires.

    >>> from gemlet.server.schema import Integer
    >>> made = document([("POST", "/x", {"n": Integer(1, 3)}, ["n"])])
    >>> made["paths"]["/x"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    {'n': {'type': 'integer', 'minimum': 1, 'maximum': 3}}
    """
    paths: dict[str, dict[str, Any]] = {}
    for method, path, table, required in routes:
        names = re.findall(r"\{(\w+)(?::\w+)?\}", path)
        plain = re.sub(r":\w+\}", "}", path)
        operation: dict[str, Any] = {"responses": {s: {"description": text} for s, text in _ANSWERS.items()}}
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        if table is not None:
            schema = Object(table, required).describe()
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(plain, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemlet", "version": _core.__version__},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
        "paths": paths,
    }
