"""Stores batches and uploaded files in a folder, with an SQLite database. Only one server at a time can use
the folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemlet.base.records import record
from gemlet.errors import ModelFileError, UnsupportedError

__all__ = ["FileStore", "StoredFile", "new_id"]

_log = logging.getLogger("gemlet.server")
_SCHEMA = """
create table if not exists files (
    id text primary key, owner text not null, filename text not null, purpose text not null,
    bytes integer not null, created integer not null, expires integer);
create index if not exists files_of on files (owner, created, id);
create table if not exists batches (
    id text primary key, owner text not null, created integer not null, over integer not null,
    document text not null);
create index if not exists batches_of on batches (owner, created, id);
pragma user_version = 1;
"""
_VERSION = 1
_PATIENCE = 100  # milliseconds; the event loop waits at most this long for a database lock
_JUMP = 60.0  # seconds; a clock that gains more than this between two checks was set forward
_SETTLED = 3600.0  # seconds after which the server believes a clock that was set forward
_MOST_REMOVED = 100  # the most files to remove at a time, because this blocks the event loop
_MOST_BATCHES = 10_000  # the most batches to keep for one owner


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}" if kind == "batch" else f"{kind}-{secrets.token_hex(12)}"


@record(frozen=True)
class StoredFile:
    """The description of a file. Times are in seconds since 1970.

    Attributes:
        owner: the id of the API key that uploaded the file; "" if the server has no keys.
        filename: the file name from the client. It is never a path on this machine.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created: int
    expires: int | None = None


class FileStore:
    """The folder with the files and the database. If the process is killed, the folder never has a part of a
    file under its final name.

    Raises:
        ModelFileError: the folder cannot be used.
        UnsupportedError: another server uses the folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._arriving: Counter[str] = Counter()  # bytes of uploads that are arriving, by owner
        self._uploads: Counter[str] = Counter()  # number of uploads that are arriving, by owner
        self._looked = time.time(), time.monotonic()  # when expired files were last looked for
        self._waits_until = 0.0
        place = self.folder / "files.db"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / "files").mkdir(mode=0o700, exist_ok=True)
            with contextlib.ExitStack() as opened:
                self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, self._lock)
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise UnsupportedError(
                        f"{folder}: another server uses this folder; choose another folder"
                    ) from None
                os.close(os.open(place, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
                self._db = sqlite3.connect(place, isolation_level=None)
                opened.callback(self._db.close)
                (version,) = self._db.execute("pragma user_version").fetchone()
                if version not in (0, _VERSION):
                    raise ModelFileError(
                        f"{place}: got version {version}, expected {_VERSION}; choose another folder"
                    )
                self._db.execute("pragma journal_mode = wal")
                self._db.executescript(_SCHEMA)
                self._sweep()
                self._db.execute(f"pragma busy_timeout = {_PATIENCE}")
                opened.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise ModelFileError(f"{folder}: cannot be used as a folder for files: {error}") from None

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def path(self, identifier: str) -> Path:
        """The path of the file with this id, which must be an id that the server made."""
        return self.folder / "files" / identifier

    def has(self, identifier: str, size: int | None = None) -> bool:
        """Whether the content of the file exists and has the right size. A link does not count, because the
        server never writes one."""
        with contextlib.suppress(OSError):
            found = self.path(identifier).lstat()
            return stat.S_ISREG(found.st_mode) and size in (None, found.st_size)
        return False

    # --- files ----------------------------------------------------------------------------------------------

    def add(self, file: StoredFile, place: Path) -> None:
        """Adds a file, and moves its content from ``place`` in the same folder to the final name."""
        self._db.execute(
            "insert or replace into files values (?, ?, ?, ?, ?, ?, ?)",
            (file.id, file.owner, file.filename, file.purpose, file.bytes, file.created, file.expires),
        )
        try:  # if the process ends here, the next start moves the content
            os.replace(place, self.path(file.id))
        except OSError:
            self._db.execute("delete from files where id = ?", (file.id,))
            raise

    def find(self, owner: str, identifier: str) -> StoredFile | None:
        """The file of this owner with this id; None if it does not exist or has expired."""
        found = self._files("owner = ? and id = ?", owner, identifier)
        return found[0] if found else None

    def files(
        self, owner: str, *, purpose: str | None, after: tuple[int, str] | None, ascending: bool, most: int
    ) -> list[StoredFile]:
        """Returns up to ``most`` files, sorted by creation time. The list begins after the file whose
        creation time and id are ``after``."""
        order, than = ("asc", ">") if ascending else ("desc", "<")
        parts, values = ["owner = ?"], [owner]
        if purpose is not None:
            parts, values = [*parts, "purpose = ?"], [*values, purpose]
        if after is not None:
            parts.append(f"(created, id) {than} ({after[0]:d}, ?)")
            values.append(after[1])
        end = f" order by created {order}, id {order} limit {most:d}"
        return self._files(" and ".join(parts), *values, end=end)

    def _files(self, where: str, *values: str, end: str = "") -> list[StoredFile]:
        now = f"(expires is null or expires > {int(time.time())})"
        rows = self._db.execute(f"select * from files where {where} and {now}{end}", values)
        return [StoredFile(*row) for row in rows]

    @contextlib.contextmanager
    def arriving(self, owner: str, size: int) -> Iterator[None]:
        """Reserves room for an upload of this many bytes."""
        self._arriving[owner] += size
        self._uploads[owner] += 1
        try:
            yield
        finally:
            self._arriving[owner] -= size
            self._uploads[owner] -= 1
            self._arriving += Counter()  # removes owners whose count is 0
            self._uploads += Counter()

    def has_room(self, size: int) -> bool:
        """Whether the disk has this many free bytes."""
        found = os.statvfs(self.folder)
        return size <= found.f_bavail * found.f_frsize

    def used(self, owner: str) -> tuple[int, int]:
        """Returns the number of files of the owner and their size in bytes, with the unfinished uploads."""
        count, size = self._db.execute(
            "select count(*), total(bytes) from files where owner = ? and (expires is null or expires > ?)",
            (owner, int(time.time())),
        ).fetchone()
        return count + self._uploads[owner], int(size) + self._arriving[owner]

    def remove(self, identifier: str) -> None:
        self._remove([identifier])

    def _remove(self, identifiers: Sequence[str]) -> None:
        """Removes files. The commit comes last, because nothing removes a content that is not in the
        database."""
        marks = ", ".join("?" * len(identifiers))
        self._db.execute("begin immediate")
        try:
            self._db.execute(f"delete from files where id in ({marks})", identifiers)
            for identifier in identifiers:
                self.path(identifier).unlink(missing_ok=True)
            self._db.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
                self._db.execute("rollback")
            raise

    def remove_expired(self) -> bool:
        """Removes some of the expired files. Returns whether there may be more. If the clock was set forward,
        no files are removed for ``_SETTLED`` seconds: a clock that is wrong for a short time hides files but
        does not delete them."""
        wall, now = time.time(), time.monotonic()
        if wall - self._looked[0] > now - self._looked[1] + _JUMP:
            self._waits_until = now + _SETTLED
        self._looked = wall, now
        if now < self._waits_until:
            return False
        kept = {document["input_file_id"] for _, document in self.unfinished()}
        rows = self._db.execute(
            "select id from files where expires <= ? limit ?", (int(wall), _MOST_REMOVED + len(kept))
        ).fetchall()
        found = [identifier for (identifier,) in rows if identifier not in kept]
        if found:
            self._remove(found)
        return len(found) >= _MOST_REMOVED

    def _sweep(self) -> None:
        """Removes the unfinished files that a killed process left behind. All other files stay, even if the
        database does not know them: the database may be lost, or an older one."""
        sizes = dict(self._db.execute("select id, bytes from files"))
        over = dict(self._db.execute("select id, over from batches"))
        unknown = 0
        with os.scandir(self.folder / "files") as entries:
            for entry in entries:
                name, _, ending = entry.name.partition(".")
                is_file = entry.is_file(follow_symlinks=False)
                if ending == "part" and is_file:
                    if not self.has(name) and sizes.get(name) == entry.stat().st_size:
                        os.replace(entry.path, self.path(name))
                    else:
                        os.unlink(entry.path)
                elif ending == "work" and over.get(name) == 1 and is_file:
                    os.unlink(entry.path)
                elif entry.name not in sizes and (ending, over.get(name)) != ("work", 0):
                    unknown += 1
        if unknown:
            fields = {"folder": str(self.folder / "files"), "count": unknown}
            _log.warning("files that files.db does not know stay", extra={"fields": fields})

    # --- batches --------------------------------------------------------------------------------------------

    def put_batch(self, owner: str, document: Mapping[str, Any], *, over: bool) -> None:
        """Stores a new or a changed batch in the form that clients see. If the owner has too many batches,
        removes the oldest ones that have ended."""
        self._db.execute(
            "insert into batches values (?, ?, ?, ?, ?) "
            "on conflict (id) do update set over = excluded.over, document = excluded.document",
            (document["id"], owner, document["created_at"], over, json.dumps(document)),
        )
        self._db.execute(
            "delete from batches where owner = ?1 and over and id in (select id from batches where "
            "owner = ?1 order by created desc, id desc limit -1 offset ?2)",
            (owner, _MOST_BATCHES),
        )

    def batch(self, owner: str, identifier: str) -> dict[str, Any] | None:
        row = self._db.execute(
            "select document from batches where owner = ? and id = ?", (owner, identifier)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def batches(self, owner: str, *, after: tuple[int, str] | None, most: int) -> list[dict[str, Any]]:
        """Up to ``most`` batches, the newest first."""
        created, identifier = (1 << 62, "") if after is None else after
        rows = self._db.execute(
            "select document from batches where owner = ? and (created, id) < (?, ?) "
            "order by created desc, id desc limit ?",
            (owner, created, identifier, most),
        )
        return [json.loads(document) for (document,) in rows]

    def unfinished(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The id and the document of each batch that has not ended, for all owners."""
        for identifier, document in self._db.execute("select id, document from batches where not over"):
            yield identifier, json.loads(document)

    def owner_of(self, identifier: str) -> str:
        (owner,) = self._db.execute("select owner from batches where id = ?", (identifier,)).fetchone()
        return str(owner)

    def running(self, owner: str) -> int:
        """The number of batches of the owner that have not ended."""
        (count,) = self._db.execute(
            "select count(*) from batches where owner = ? and not over", (owner,)
        ).fetchone()
        return int(count)
