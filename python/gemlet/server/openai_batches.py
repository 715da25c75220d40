"""OpenAI's batches: ``/v1/batches``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemlet.base.text import show
from gemlet.server.answers import JSONAnswer
from gemlet.server.batch_lines import ENDPOINTS
from gemlet.server.call import call_of
from gemlet.server.openai_files import EXPIRY, batches_of, owner_of, page
from gemlet.server.problems import Problem
from gemlet.server.schema import Integer, Kind, OneOf, Text
from gemlet.server.service import fields_of, query_of, service_of

__all__ = ["CREATE", "batch", "batches", "cancel", "create"]

_MOST_RUNNING = 100  # batches of an owner that have not ended
_MOST_PAGE = 100


class _Window(Kind):
    """``completion_window``: a number of hours, such as "24h"."""

    def check(self, value: Any, where: str) -> int:
        hours = int(value[:-1]) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}h", value) else 0
        if not 1 <= hours <= 720:
            raise Problem(400, f"{where}: got {show(value)}, expected 1h to 720h", param=where)
        return hours

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[0-9]{1,3}h$"}


class _Metadata(Kind):
    """``metadata``: an object of up to 16 texts."""

    def check(self, value: Any, where: str) -> dict[str, str]:
        expected = "up to 16 texts of up to 512 characters, with names of up to 64"
        if not isinstance(value, dict) or len(value) > 16:
            raise Problem(400, f"{where}: got {show(value)}, expected {expected}", param=where)
        return {
            Text(64, 1).check(n, where): Text(512).check(v, f"{where}.{n[:64]}") for n, v in value.items()
        }

    def describe(self) -> dict[str, Any]:
        return {"type": "object", "maxProperties": 16, "additionalProperties": Text(512).describe()}


CREATE: Mapping[str, Kind] = {
    "input_file_id": Text(100, 1),
    "endpoint": OneOf(*ENDPOINTS),
    "completion_window": _Window(),
    "metadata": _Metadata(),
    "output_expires_after": EXPIRY,
}
_LIST: Mapping[str, Kind] = {"after": Text(100, 1), "limit": Integer(1, _MOST_PAGE)}


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as clients see it. It does not name files that are not written yet."""
    shown = {name: value for name, value in document.items() if name != "output_expires_after"}
    if shown["status"] in ("finalizing", "cancelling", "in_progress"):
        shown["output_file_id"] = shown["error_file_id"] = None
    return shown


async def create(request: Request) -> Response:
    running, owner, fields = batches_of(request), owner_of(request), fields_of(request)
    source = running.store.find(owner, fields["input_file_id"])
    if source is None or source.purpose != "batch":
        raise Problem(
            404,
            'input_file_id: there is no such file with the purpose "batch"',
            kind="not_found_error",
            param="input_file_id",
        )
    if running.store.running(owner) >= _MOST_RUNNING:
        raise Problem(
            429,
            f"a key has at most {_MOST_RUNNING} batches at a time; wait until one is over, or cancel one",
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": "60"},
        )
    if running.store.used(owner)[1] >= service_of(request).settings.max_storage:
        raise Problem(413, "there is no more room for your files here; delete some", code="storage_full")
    document = running.create(
        owner,
        endpoint=fields["endpoint"],
        source=source.id,
        hours=fields["completion_window"],
        metadata=fields.get("metadata"),
        output_seconds=fields.get("output_expires_after", {}).get("seconds"),
    )
    call_of(request).settle()
    return JSONAnswer(_shown(document))


async def batches(request: Request) -> Response:
    running, owner = batches_of(request), owner_of(request)
    fields = query_of(request, _LIST)
    most, after = fields.get("limit", 20), None
    if "after" in fields:
        before = running.find(owner, fields["after"])
        if before is None:
            raise Problem(404, "after: there is no such batch", kind="not_found_error", param="after")
        after = before["created_at"], before["id"]
    found = running.list(owner, after=after, most=most + 1)
    return JSONAnswer(page([_shown(one) for one in found[:most]], has_more=len(found) > most))


def _found(request: Request) -> dict[str, Any]:
    found = batches_of(request).find(owner_of(request), request.path_params["name"])
    if found is None:
        raise Problem(404, "there is no such batch", kind="not_found_error", param="id")
    return found


async def batch(request: Request) -> Response:
    return JSONAnswer(_shown(_found(request)))


async def cancel(request: Request) -> Response:
    found = _found(request)
    batches_of(request).cancel(owner_of(request), found)
    return JSONAnswer(_shown(found))
