"""OpenAI's files: ``/v1/files``. They hold the requests and the answers of batches."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet.base.records import replace
from gemlet.server.answers import JSONAnswer, StreamAnswer, until_ended
from gemlet.server.batches import Batches
from gemlet.server.call import call_of
from gemlet.server.file_store import StoredFile, new_id
from gemlet.server.problems import NO_RETRY, Problem
from gemlet.server.schema import Integer, Kind, Object, OneOf, Text, read
from gemlet.server.service import query_of, service_of
from gemlet.server.uploads import nested, read_form

__all__ = ["EXPIRY", "batches_of", "content", "delete", "file", "files", "owner_of", "page", "upload"]

_PIECE = 1 << 18  # bytes
_MOST_FILES = 10_000  # files of one owner
_MONTH = 30 * 86400
EXPIRY = Object({"anchor": OneOf("created_at"), "seconds": Integer(3600, _MONTH)}, ["anchor", "seconds"])
_UPLOAD: Mapping[str, Kind] = {"purpose": OneOf("batch"), "expires_after": EXPIRY}
_LIST: Mapping[str, Kind] = {
    "after": Text(100, 1),
    "limit": Integer(1, _MOST_FILES),
    "order": OneOf("asc", "desc"),
    "purpose": Text(100, 1),
}


def batches_of(request: Request) -> Batches:
    """The files and batches of the server. Raises :class:`Problem` if the server keeps none."""
    service = service_of(request)
    service.models.check_ready()
    if service.batches is None:
        raise Problem(
            404,
            "this server keeps no files; start it with --data FOLDER",
            kind="not_found_error",
            code="unsupported",
        )
    return service.batches


def owner_of(request: Request) -> str:
    """The owner whose files a request may see: the id of its key, or "" if the server has no keys."""
    key = call_of(request).key
    return "" if key is None else key.id


def _shown(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


async def upload(request: Request) -> Response:
    store, service, owner = batches_of(request).store, service_of(request), owner_of(request)
    service.limiter.enter(call_of(request))
    store.remove_expired()
    count, used = store.used(owner)
    if count >= _MOST_FILES:
        raise Problem(413, f"a key has at most {_MOST_FILES} files; delete some", code="storage_full")
    settings, now = service.settings, int(time.time())
    new = StoredFile(new_id("file"), owner, "", "batch", 0, now, now + _MONTH)
    place, call = store.path(f"{new.id}.part"), call_of(request)
    length = _length(request)
    room = min(settings.max_storage - used, settings.max_file, length)
    if room == length and not store.has_room(length):
        raise _no_room()
    try:
        with store.arriving(owner, room):
            reading = read_form(
                request,
                place,
                name="file",
                most=settings.max_file,
                room=room,
                seconds=settings.body_seconds,
            )
            form = await until_ended(call, reading)
        given = nested(form.fields)
        seconds = given.get("expires_after", {})
        if isinstance(seconds, dict) and str(seconds.get("seconds", "")).isdecimal():
            seconds["seconds"] = int(seconds["seconds"][:12])
        fields = read(given, _UPLOAD, ["purpose"], ignore_unknown=settings.unknown_fields == "ignore")
        if "expires_after" in fields:
            new = replace(new, expires=now + fields["expires_after"]["seconds"])
        new = replace(new, filename=form.filename or "", bytes=form.size)
        # Batches that ran meanwhile may have taken room.
        if form.size + store.used(owner)[1] > settings.max_storage:
            raise Problem(413, "there is no more room for your files here; delete some", code="storage_full")
        store.add(new, place)
    except OSError:
        raise _no_room() from None
    finally:
        place.unlink(missing_ok=True)
    return JSONAnswer(_shown(new))


def _no_room() -> Problem:
    return Problem(507, "the server has no room for this file", kind="server_error", headers=NO_RETRY)


def _length(request: Request) -> int:
    """The length of the body in bytes, if the request has it, else a huge number. A body cannot be longer
    than it says."""
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,15}", length) else 1 << 62


async def files(request: Request) -> Response:
    store, owner = batches_of(request).store, owner_of(request)
    fields = query_of(request, _LIST)
    most = fields.get("limit", _MOST_FILES)
    found = store.files(
        owner,
        purpose=fields.get("purpose"),
        after=_place_of(store.find(owner, fields["after"]) if "after" in fields else None, fields),
        ascending=fields.get("order") == "asc",
        most=most + 1,
    )

    def make() -> dict[str, Any]:
        return page([_shown(one) for one in found[:most]], has_more=len(found) > most)

    return await service_of(request).answer(make, is_large=len(found) > 1000)


def _place_of(after: StoredFile | None, fields: Mapping[str, Any]) -> tuple[int, str] | None:
    if after is None and "after" in fields:
        raise Problem(404, "after: there is no such file", kind="not_found_error", param="after")
    return None if after is None else (after.created, after.id)


def page(shown: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A list in OpenAI's form."""
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    return {"object": "list", "data": shown, "first_id": None, "last_id": None, **ends, "has_more": has_more}


def _found(request: Request) -> StoredFile:
    found = batches_of(request).store.find(owner_of(request), request.path_params["name"])
    if found is None:
        raise Problem(404, "there is no such file", kind="not_found_error", param="id")
    return found


async def file(request: Request) -> Response:
    return JSONAnswer(_shown(_found(request)))


async def delete(request: Request) -> Response:
    found, batches = _found(request), batches_of(request)
    if batches.uses(found.id):
        raise Problem(
            409,
            "a batch that is not over reads this file; cancel it first",
            code="file_in_use",
            headers=NO_RETRY,
        )
    batches.store.remove(found.id)
    return JSONAnswer({"id": found.id, "object": "file", "deleted": True})


async def content(request: Request) -> Response:
    found, service, store = _found(request), service_of(request), batches_of(request).store
    if not store.has(found.id, found.bytes):
        raise Problem(404, "the content of this file is gone", kind="not_found_error", param="id")
    answer = StreamAnswer(
        _pieces(store.path(found.id)),
        call_of(request),
        media_type="application/octet-stream",
        on_error=None,
        ping=None,
        ping_seconds=service.settings.ping_seconds,
        stuck_seconds=service.settings.stuck_seconds,
    )
    answer.headers["content-length"] = str(found.bytes)
    return answer


async def _pieces(place: Path) -> AsyncIterator[bytes]:
    with open(place, "rb") as file:  # closed at once, even if the client goes away
        while piece := await anyio.to_thread.run_sync(file.read, _PIECE):
            yield piece
