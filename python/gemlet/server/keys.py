"""The keys of clients. An SQLite file has the hash of each, what it may do, and what it has used."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.records import field, record
from gemlet.base.text import show
from gemlet.errors import InvalidRequestError, ModelFileError
from gemlet.server.problems import Problem

__all__ = ["RIGHTS", "Key", "KeyStore", "Limits"]

_log = logging.getLogger("gemlet.server")
RIGHTS = ("use", "metrics")
_LARGEST = 1 << 62
_SCHEMA = """
create table if not exists keys (
    id text primary key, name text unique not null, hash blob not null, created integer not null,
    revoked integer, rights text not null, limits text not null);
create table if not exists usage (
    key text not null, model text not null, hour integer not null, requests integer not null,
    prompt_tokens integer not null, completion_tokens integer not null, primary key (key, model, hour));
pragma user_version = 1;
"""
_VERSION = 1


@record(frozen=True)
class Limits:
    """The limits of a key; None means that there is no limit.

    >>> Limits(concurrent=0)
    Traceback (most recent call last):
    gemlet.errors.InvalidRequestError: concurrent: got 0, expected an integer from 1
    """

    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent: int | None = None
    max_prompt: int | None = None
    max_reply: int | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and (type(value) is not int or not 1 <= value < _LARGEST):
                raise InvalidRequestError(f"{name}: got {show(value)}, expected an integer from 1")


@record(frozen=True)
class Key:
    """A key, without its secret.

    Attributes:
        models: the aliases of the models and adapters that it may use; empty: all of them.
    """

    id: str
    name: str
    rights: frozenset[str] = frozenset({"use"})
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] = ()

    def check_right(self, right: str) -> None:
        if right not in self.rights:
            raise Problem(
                403, f"this key does not have the right {right!r}", kind="permission_error", code="no_right"
            )

    def check_model(self, name: str) -> None:
        if self.models and name not in self.models:
            raise Problem(
                403,
                "this key may not use this model",
                kind="permission_error",
                param="model",
                code="model_not_allowed",
            )


class KeyStore:
    """The keys in a file. Other processes may change the file meanwhile.

    Args:
        path: the SQLite file.
        create: whether to make the file if it does not exist. Only its owner can read it then.
        patience: seconds to wait for another process that writes.

    Raises:
        ModelFileError: the file cannot be opened, or is not a file of keys.
    """

    def __init__(self, path: str, *, create: bool = False, patience: float = 5.0) -> None:
        self.path = path
        self._pending: dict[tuple[str, str, int], list[int]] = {}  # usage that is not yet in the file
        try:
            if create:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            elif not os.path.isfile(path):
                raise ModelFileError(
                    f"{path}: there is no such file; make one with gemlet keys create NAME --db {path}"
                )
            self._db = sqlite3.connect(path, timeout=patience, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ModelFileError(f"{path}: cannot be used as a file of keys: {error}") from None
        self._known: dict[str, tuple[bytes, Key]] = {}
        self._version: object = None

    def _prepare(self) -> None:
        (version,) = self._db.execute("pragma user_version").fetchone()
        if version not in (0, _VERSION):
            raise ModelFileError(
                f"{self.path}: got version {version}, expected {_VERSION}; choose another file"
            )
        # A commit survives if this process ends at any moment. In WAL mode others can read during a write.
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        if version == 0:
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._write_usage()
        self._db.close()

    def create(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        rights: Sequence[str] = ("use",),
        models: Sequence[str] = (),
    ) -> str:
        """Makes a key, and returns it as text. The file keeps only its hash.

        Raises:
            InvalidRequestError: the name is in use or not allowed, or there is no such right.
        """
        if not (name.isprintable() and 1 <= len(name) <= 100):
            raise InvalidRequestError(f"name: got {show(name)}, expected 1 to 100 printable characters")
        unknown = sorted(set(rights) - set(RIGHTS))
        if unknown or not rights:
            raise InvalidRequestError(
                f"rights: got {show(list(rights))}, expected some of {', '.join(RIGHTS)}"
            )
        identifier, secret = secrets.token_hex(6), secrets.token_hex(32)
        settings = {**dataclasses.asdict(limits or Limits()), "models": list(models)}
        token = f"gemlet-{identifier}-{secret}"
        try:
            self._db.execute(
                "insert into keys values (?, ?, ?, ?, null, ?, ?)",
                (identifier, name, _hash(token), int(time.time()), " ".join(rights), json.dumps(settings)),
            )
        except sqlite3.IntegrityError:
            raise InvalidRequestError(
                f"name: there is a key {show(name)} already, in use or revoked; choose another name"
            ) from None
        self._version = None
        return token

    def revoke(self, name: str) -> None:
        """Revokes the key with this name or id. Raises :class:`InvalidRequestError` if no key in use has
        it."""
        done = self._db.execute(
            "update keys set revoked = ? where (name = ? or id = ?) and revoked is null",
            (int(time.time()), name, name),
        )
        self._version = None
        if done.rowcount == 0:
            raise InvalidRequestError(
                f"there is no key {show(name)} that is in use; gemlet keys list --db {self.path} shows all"
            )

    def all(self) -> list[dict[str, Any]]:
        """All keys, also revoked ones, for people to read."""
        names = ("id", "name", "created", "revoked", "rights", "limits")
        rows = self._db.execute(f"select {', '.join(names)} from keys order by created, name")
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for key in found:
            key["rights"] = key["rights"].split()
            key["limits"] = {n: v for n, v in json.loads(key["limits"]).items() if v not in (None, [])}
        return found

    def find(self, token: bytes) -> Key | None:
        """The key whose text is ``token``; None if there is none, or it was revoked. All cases take the same
        time."""
        self._refresh()
        identifier = token[:_ID_END].rpartition(b"-")[2].decode("latin-1")
        wanted, key = self._known.get(identifier, (_NOBODY, None))
        is_right = hmac.compare_digest(_hash_bytes(token), wanted)
        return key if is_right else None

    def in_use(self, identifier: str) -> Key | None:
        """The key with this id; None if there is none, or it was revoked."""
        self._refresh()
        return self._known.get(identifier, (_NOBODY, None))[1]

    def has(self, identifier: str) -> bool:
        """Whether there is or was a key with this id."""
        return self._db.execute("select 1 from keys where id = ?", (identifier,)).fetchone() is not None

    def _refresh(self) -> None:
        (version,) = self._db.execute("pragma data_version").fetchone()
        if version != self._version:
            self._version = version
            self._read()

    def _read(self) -> None:
        self._known.clear()
        rows = self._db.execute("select id, name, hash, rights, limits from keys where revoked is null")
        for identifier, name, digest, rights, text in rows:
            values: Mapping[str, Any] = json.loads(text)
            limits = Limits(**{n: v for n, v in values.items() if n != "models"})
            key = Key(identifier, name, frozenset(rights.split()), limits, tuple(values["models"]))
            self._known[identifier] = digest, key

    # --- usage ----------------------------------------------------------------------------------------------

    def add_usage(self, key: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts a request that has ended. If another process locks the file, the count is written later."""
        place = key, model, int(time.time()) // 3600
        counts = self._pending.setdefault(place, [0, 0, 0])
        for i, count in enumerate((1, prompt_tokens, completion_tokens)):
            counts[i] += count
        self._write_usage()

    def _write_usage(self) -> None:
        try:
            for place in list(self._pending):
                self._db.execute(
                    "insert into usage values (?, ?, ?, ?, ?, ?) "
                    "on conflict (key, model, hour) do update set "
                    "requests = requests + excluded.requests, "
                    "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                    "completion_tokens = completion_tokens + excluded.completion_tokens",
                    (*place, *self._pending[place]),
                )
                del self._pending[place]
        except sqlite3.Error as error:
            _log.error("usage not written", extra={"fields": {"error": str(error)}})

    def recent(self, key: str) -> list[tuple[float, int, int]]:
        """The age in seconds, the requests and the tokens of each hour of the last day. If the clock was set
        back, the file may have hours that are still to come. Hours of the next day have the age 0. Later
        hours were written while the clock was wrong, and are left out."""
        now = time.time()
        rows = self._db.execute(
            "select hour, sum(requests), sum(prompt_tokens + completion_tokens) from usage "
            "where key = ? and hour > ? and hour < ? group by hour order by hour",
            (key, int(now) // 3600 - 25, int(now) // 3600 + 25),
        )
        return [(max(0.0, now - (hour + 1) * 3600), requests, tokens) for hour, requests, tokens in rows]

    def usage(self, key: str | None = None, days: int = 30) -> list[dict[str, Any]]:
        """Requests and tokens by day, key and model, of the key with the id ``key``, or of all keys."""
        rows = self._db.execute(
            "select date(hour * 3600, 'unixepoch'), coalesce(name, usage.key), model, sum(requests), "
            "sum(prompt_tokens), sum(completion_tokens) from usage left join keys on keys.id = usage.key "
            "where (?1 is null or usage.key = ?1) and hour > ?2 group by 1, 2, 3 order by 1, 2, 3",
            (key, int(time.time()) // 3600 - 24 * days),
        )
        names = ("day", "key", "model", "requests", "prompt_tokens", "completion_tokens")
        return [dict(zip(names, row, strict=True)) for row in rows]


_ID_END = len("gemlet-") + 12


def _hash_bytes(token: bytes) -> bytes:
    # The secret has 256 random bits, so a fast hash is as safe as a slow one.
    return hashlib.sha256(token).digest()


def _hash(token: str) -> bytes:
    return _hash_bytes(token.encode())


_NOBODY = secrets.token_bytes(32)
