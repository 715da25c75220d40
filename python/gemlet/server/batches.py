"""Runs the batches of the batch API (``/v1/batches``) in the background, while the server answers other
requests. A batch reads requests from an input file and writes the answers to output files. The server
continues unfinished batches after a restart."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from gemlet.errors import ModelFileError
from gemlet.server.batch_lines import (
    WrongLineError,
    answer_line,
    answered,
    checked_ids,
    opened,
    requests,
)
from gemlet.server.file_store import FileStore, StoredFile, new_id
from gemlet.server.inside import App, Inside, answer
from gemlet.server.keys import KeyStore

__all__ = ["MOST_REQUESTS", "Batches"]

_log = logging.getLogger("gemlet.server")
MOST_REQUESTS = 50_000  # the most requests in one batch
# The longest line in bytes. The event loop parses the request, and this blocks all other requests for some
# milliseconds.
_LONGEST_LINE = 4 << 20
_RETRY = 30.0  # seconds to wait before the next try after an error of the disk or the database
# Maps the status in which the work on a batch stops to the final status. All others mean "expired".
_ENDS = {"cancelling": "cancelled", "finalizing": "completed"}


class _RevokedError(Exception):
    """The key of a batch was revoked."""


class _WrongFileError(Exception):
    """The input file of a batch is missing or empty. The arguments are the code and the message for
    :meth:`Batches._fail`."""


class Batches:
    """The unfinished batches. Each batch runs as a task of the event loop.

    While a batch runs, all its answers go to one work file, in the output format of ``gemlet batch``. At the
    end, the server copies the good answers to the output file and the others to the error file. If the
    process is killed, the finished answers are kept. The next process computes only the other requests.

    Args:
        store: keeps the files and the state of each batch.
        app: the application that answers the requests.
        keys: the API keys; None if the server has no keys.
        concurrent: the most batch requests that run at the same time, for all batches together.
    """

    def __init__(self, store: FileStore, app: App, keys: KeyStore | None, concurrent: int) -> None:
        self.store = store
        self._app = app
        self._keys = keys
        self._concurrent = concurrent
        self._places = asyncio.Semaphore(concurrent)
        self._threads = anyio.CapacityLimiter(1)
        self._documents: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._owners: dict[str, str] = {}

    def resume(self) -> None:
        """Continues the batches that an earlier process did not finish. If the server does not know the key
        of a batch, the batch stays unfinished, because the administrator may have lost the file of keys or
        restored an older one."""
        waiting = 0
        for identifier, document in list(self.store.unfinished()):
            owner = self.store.owner_of(identifier)
            if owner == "" if self._keys is None else self._keys.has(owner):
                self._begin(owner, document)
            else:
                waiting += 1
        if waiting:
            _log.warning("batches of unknown keys stay unfinished", extra={"fields": {"count": waiting}})

    async def stop(self) -> None:
        """Cancels all tasks. The batches stay unfinished in the store."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def create(
        self,
        owner: str,
        *,
        endpoint: str,
        source: str,
        hours: int,
        metadata: Mapping[str, str] | None,
        output_seconds: int | None,
    ) -> dict[str, Any]:
        """Creates a batch and starts its task. Returns the batch object of the API."""
        now = int(time.time())
        document = {
            "id": new_id("batch"),
            "object": "batch",
            "endpoint": endpoint,
            "input_file_id": source,
            "completion_window": f"{hours}h",
            "status": "validating",
            "created_at": now,
            "expires_at": now + hours * 3600,
            "metadata": dict(metadata) if metadata is not None else None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "model": None,
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            "usage": None,
            "output_expires_after": output_seconds,
            **dict.fromkeys(f"{state}_at" for state in ("in_progress", "finalizing", "completed", "failed")),
            **dict.fromkeys(f"{state}_at" for state in ("expired", "cancelling", "cancelled")),
        }
        self.store.put_batch(owner, document, over=False)
        self._begin(owner, document)
        return document

    def find(self, owner: str, identifier: str) -> dict[str, Any] | None:
        """Returns the present state of a batch; None if this owner has no such batch."""
        found = self.store.batch(owner, identifier)
        return None if found is None else self._documents.get(identifier, found)

    def list(self, owner: str, *, after: tuple[int, str] | None, most: int) -> list[dict[str, Any]]:
        found = self.store.batches(owner, after=after, most=most)
        return [self._documents.get(document["id"], document) for document in found]

    def uses(self, file: str) -> bool:
        """Whether the file is the input of an unfinished batch."""
        return any(document["input_file_id"] == file for document in self._documents.values())

    def end_revoked(self) -> None:
        """Stops the batches whose keys were revoked."""
        for identifier, stop in self._stops.items():
            if self._keys is not None and self._keys.in_use(self._owners[identifier]) is None:
                stop.set()

    def cancel(self, owner: str, document: dict[str, Any]) -> None:
        """Cancels a batch that is validating or in progress. Does nothing in any other status."""
        if document["id"] in self._tasks and document["status"] in ("validating", "in_progress"):
            self._move(owner, document, "cancelling")
            self._stops[document["id"]].set()

    # --- the run of a batch ---------------------------------------------------------------------------------

    def _begin(self, owner: str, document: dict[str, Any]) -> None:
        identifier = document["id"]
        self._documents[identifier] = document
        self._owners[identifier] = owner
        self._stops[identifier] = asyncio.Event()
        task = asyncio.create_task(self._run(owner, document))
        self._tasks[identifier] = task
        task.add_done_callback(lambda _: self._forget(identifier))

    def _forget(self, identifier: str) -> None:
        for known in (self._documents, self._owners, self._stops, self._tasks):
            del known[identifier]

    def _move(self, owner: str, document: dict[str, Any], status: str, *, over: bool = False) -> None:
        changes = {"status": status, f"{status}_at": int(time.time())}
        self.store.put_batch(owner, {**document, **changes}, over=over)
        document.update(changes)

    async def _run(self, owner: str, document: dict[str, Any]) -> None:
        work = self.store.path(f"{document['id']}.work")
        failure: tuple[Any, ...] | None = None
        while True:
            try:
                if failure is None:
                    await self._advance(owner, document, work)
                else:
                    self._fail(owner, document, *failure)
                break
            except _WrongFileError as error:
                failure = error.args
            except WrongLineError as error:
                failure = "invalid_line", error.problem, error.line
            except _RevokedError:
                failure = "invalid_api_key", "the key of the batch was revoked"
            except (OSError, ModelFileError, sqlite3.Error) as error:  # such as a full disk or a locked file
                _log.error("batch", extra={"fields": {"batch": document["id"], "error": str(error)}})
                await asyncio.sleep(_RETRY)
            except Exception as error:
                _log.error(
                    "batch", extra={"fields": {"batch": document["id"], "error": type(error).__name__}}
                )
                if failure is not None:  # the store could not save the failure either
                    break
                failure = "server_error", "the server failed; see the log of the server"
        work.unlink(missing_ok=True)

    def _fail(
        self, owner: str, document: dict[str, Any], code: str, message: str, line: int | None = None
    ) -> None:
        problem = {"code": code, "message": message, "line": line, "param": None}
        document["errors"] = {"object": "list", "data": [problem]}
        self._move(owner, document, "failed", over=True)

    async def _advance(self, owner: str, document: dict[str, Any], work: Path) -> None:
        """Runs the batch from its present status to its end."""
        source = self.store.path(document["input_file_id"])
        if not self.store.has(document["input_file_id"]):
            raise _WrongFileError(
                "invalid_file", "the input file no longer exists; upload it again and create a new batch"
            )
        if document["status"] == "validating":
            check = partial(
                checked_ids,
                source,
                endpoints=[document["endpoint"]],
                most=MOST_REQUESTS,
                longest=_LONGEST_LINE,
            )
            ids = await anyio.to_thread.run_sync(check, limiter=self._threads)
            if not ids:
                raise _WrongFileError("empty_file", "the input file has no requests, expected at least 1")
            document["request_counts"]["total"] = len(ids)
            if document["status"] == "validating":
                self._move(owner, document, "in_progress")
        if document["status"] == "in_progress":
            await self._answer_all(owner, document, source, work)
        end = _ENDS.get(document["status"], "expired")
        if document["status"] == "finalizing" and document["request_counts"]["total"] > _answered(document):
            end = "expired"
        await self._finish(owner, document, source, work, end)

    async def _answer_all(self, owner: str, document: dict[str, Any], source: Path, work: Path) -> None:
        with opened(work) as file:
            done = await anyio.to_thread.run_sync(answered, file, work, limiter=self._threads)
            counts = document["request_counts"]
            counts["completed"], counts["failed"] = sum(done.values()), len(done) - sum(done.values())
            waiting = ({**one, "content": json.dumps(one["body"]).encode()} for one in requests(source, done))
            reading = asyncio.Lock()  # the workers share the iterator of waiting requests

            async def worker() -> None:
                while True:
                    async with reading:  # in a thread, because long or skipped lines take time
                        request = await anyio.to_thread.run_sync(next, waiting, None)
                    if request is None:
                        return
                    async with self._places:
                        line, good = await answer(
                            self._app, request, partial(self._inside, owner), waits=True
                        )
                    file.write(line)
                    file.flush()
                    counts["completed" if good else "failed"] += 1

            count = min(self._most_of(owner), max(1, counts["total"] - len(done)))
            workers = [asyncio.create_task(worker()) for _ in range(count)]
            everything = asyncio.gather(*workers)
            stop = asyncio.create_task(self._stops[document["id"]].wait())
            try:
                left = document["expires_at"] - time.time()
                first: list[asyncio.Future[Any]] = [everything, stop]
                await asyncio.wait(first, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
                if everything.done():
                    everything.result()
            finally:
                stop.cancel()
                for task in workers:
                    task.cancel()
                await asyncio.gather(everything, *workers, return_exceptions=True)
            await anyio.to_thread.run_sync(os.fsync, file.fileno())
        self._inside(owner)  # raises _RevokedError if the key was revoked during the run
        if document["status"] == "in_progress":
            self._move(owner, document, "finalizing")

    def _most_of(self, owner: str) -> int:
        """The most requests of one batch that may run at the same time. If the key limits its concurrent
        requests, one place stays free for requests outside the batch."""
        key = self._inside(owner).key
        limit = None if key is None else key.limits.concurrent
        return self._concurrent if limit is None else min(self._concurrent, max(1, limit - 1))

    def _inside(self, owner: str) -> Inside:
        if self._keys is None:
            return Inside()
        key = self._keys.in_use(owner)
        if key is None:
            raise _RevokedError
        return Inside(key)

    async def _finish(self, owner: str, document: dict[str, Any], source: Path, work: Path, end: str) -> None:
        """Writes the output file and the error file, and sets the final status. After a failed try, this
        method can run again."""
        now = int(time.time())
        seconds = document["output_expires_after"]
        names = document["output_file_id"] or new_id("file"), document["error_file_id"] or new_id("file")
        document["output_file_id"], document["error_file_id"] = names
        self.store.put_batch(owner, document, over=False)  # so that a second try uses the same names
        places = [self.store.path(f"{name}.part") for name in names]
        part = partial(_parted, source, work, *places, is_late=end == "expired")
        counts, usage, document["model"] = await anyio.to_thread.run_sync(part, limiter=self._threads)
        for name, place, kind, count in zip(names, places, ("output", "error"), counts, strict=True):
            if count == 0:
                place.unlink()
                document[f"{kind}_file_id"] = None
                continue
            filename = f"{document['id']}_{kind}.jsonl"
            expires = None if seconds is None else now + seconds
            size = place.stat().st_size
            self.store.add(StoredFile(name, owner, filename, "batch_output", size, now, expires), place)
        document["request_counts"]["completed"], document["request_counts"]["failed"] = counts
        document["usage"] = usage
        self._move(owner, document, end, over=True)


def _answered(document: Mapping[str, Any]) -> int:
    counts = document["request_counts"]
    return int(counts["completed"] + counts["failed"])


def _parted(
    source: Path, work: Path, good: Path, bad: Path, *, is_late: bool
) -> tuple[tuple[int, int], dict[str, Any], str | None]:
    """Copies the good answers from ``work`` to ``good`` and the errors to ``bad``. If the batch is late, each
    request without an answer gets an error. Returns the two counts, the token usage and the name of the
    model."""
    counts = [0, 0]
    tokens = {"input_tokens": 0, "output_tokens": 0}
    model = None
    seen: set[str] = set()
    work.touch()
    with open(work, "rb") as lines, open(good, "wb") as output, open(bad, "wb") as errors:
        for line in lines:
            found = json.loads(line)
            seen.add(found["custom_id"])
            is_good = found["response"]["status_code"] == 200
            (output if is_good else errors).write(line)
            counts[not is_good] += 1
            body = found["response"]["body"]
            model = model or (body.get("model") if is_good else None)
            used = (body.get("usage") or {}) if is_good else {}
            tokens["input_tokens"] += used.get("prompt_tokens", used.get("input_tokens", 0))
            tokens["output_tokens"] += used.get("completion_tokens", used.get("output_tokens", 0))
        if is_late:
            error = {"code": "batch_expired", "message": "the completion window ended before this request"}
            for request in requests(source, seen):
                errors.write(answer_line(request["custom_id"], error=error))
                counts[1] += 1
        for file in (output, errors):
            file.flush()
            os.fsync(file.fileno())
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    total = tokens["input_tokens"] + tokens["output_tokens"]
    return (counts[0], counts[1]), {**tokens, "total_tokens": total, **details}, model
