"""Tests of a server whose disk is full, and of files that expire or that another process locks, removes or
replaces."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
BODY: Any = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}
DATA = json.dumps({**LINE, "body": BODY}).encode()
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + DATA + b"\r\n--x--\r\n"
)
TYPE = {"Content-Type": "multipart/form-data; boundary=x"}
FULL = sqlite3.OperationalError("database or disk is full")


class Stuck:
    """A database that refuses every write because the disk is full."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(("insert", "delete", "update")):
            raise FULL
        return self._database.execute(statement, *values)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    from gemlet.server.settings import Settings

    with serving(Settings(port=0, data=str(tmp_path / "data"))) as running:
        yield running


def store_of(server: RunningServer) -> Any:
    return server.server.app.service.batches.store


def upload(server: RunningServer, **more: Any) -> Any:
    return server.ask("POST", "/v1/files", FORM, TYPE, **more)


def begin(server: RunningServer, file: str) -> Any:
    endpoint = {"endpoint": LINE["url"], "completion_window": "24h"}
    return server.post("/v1/batches", {"input_file_id": file, **endpoint})


def test_a_full_disk_loses_no_stored_file(server: RunningServer) -> None:
    file = upload(server).json["id"]
    store = store_of(server)
    with mock.patch.object(store, "_db", Stuck(store._db)):
        assert upload(server).status == 507
        assert server.ask("DELETE", f"/v1/files/{file}").status == 507
        assert begin(server, file).status == 507
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("gemlet.server.uploads._Form._data", side_effect=full):
        assert upload(server).status == 507
    assert os.listdir(store.folder / "files") == [file]
    assert server.ask("GET", f"/v1/files/{file}/content").body == DATA
    assert upload(server).status == 200


def test_a_batch_waits_until_the_disk_has_room(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemlet.server.batches._RETRY", 0.05)
    store = store_of(server)
    good = store.put_batch
    tries: list[str] = []

    def put(owner: str, document: Any, *, over: bool) -> None:
        tries.append(document["status"])
        if 1 < len(tries) < 6:  # the first write succeeds and creates the batch
            raise FULL
        good(owner, document, over=over)

    with mock.patch.object(store, "put_batch", side_effect=put):
        batch = begin(server, upload(server).json["id"]).json["id"]

        def status() -> str:
            return str(server.ask("GET", f"/v1/batches/{batch}").json["status"])

        until(lambda: status() in ("completed", "failed"))
    assert (status(), tries[1:6]) == ("completed", ["in_progress"] * 5)


def test_a_batch_whose_failure_cannot_be_written(server: RunningServer) -> None:
    store = store_of(server)
    good = store.put_batch
    tries: list[str] = []

    def put(owner: str, document: Any, *, over: bool) -> None:
        tries.append(document["status"])
        if len(tries) > 1:
            raise ZeroDivisionError
        good(owner, document, over=over)

    with mock.patch.object(store, "put_batch", side_effect=put):
        begin(server, upload(server).json["id"])
        until(lambda: len(tries) == 3)
        assert server.ask("GET", "/health").status == 200  # the event loop still runs
    assert tries == ["validating", "in_progress", "failed"]


def test_a_file_that_another_process_locks(server: RunningServer, tmp_path: Path) -> None:
    from gemlet.server.file_store import FileStore

    alike, store = FileStore(str(tmp_path / "alike")), store_of(server)
    ((milliseconds,),) = alike._db.execute("pragma busy_timeout")
    assert milliseconds <= 100  # the event loop waits for the lock for at most this time
    alike.close()
    other = sqlite3.connect(store.folder / "files.db", isolation_level=None)
    other.execute("begin immediate")
    answer = upload(server)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    other.execute("rollback")
    other.close()
    assert len(os.listdir(store.folder / "files")) == 0
    assert upload(server).status == 200


@pytest.mark.parametrize("what", ["nothing", "a link", "another file"])
def test_files_whose_content_another_process_changed(
    server: RunningServer, tmp_path: Path, what: str
) -> None:
    file = upload(server).json["id"]
    place = store_of(server).path(file)
    secret = tmp_path / "secret"
    secret.write_bytes(DATA if what == "a link" else b"other")
    place.unlink()
    if what == "a link":
        place.symlink_to(secret)
    elif what == "another file":
        place.write_bytes(b"other")
    assert server.ask("GET", f"/v1/files/{file}/content").status == 404
    if what != "another file":
        batch = begin(server, file).json["id"]
        until(lambda: server.ask("GET", f"/v1/batches/{batch}").json["status"] == "failed")
        (error,) = server.ask("GET", f"/v1/batches/{batch}").json["errors"]["data"]
        assert (error["code"], error["line"]) == ("invalid_file", None)
    assert server.ask("DELETE", f"/v1/files/{file}").status == 200
    assert secret.exists()


def test_expired_files_leave_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemlet.server.settings import Settings

    monkeypatch.setattr("gemlet.server.app._SWEEP", 0.02)
    with serving(Settings(port=0, data=str(tmp_path / "data"))) as server:
        file, store = upload(server).json["id"], store_of(server)
        with sqlite3.connect(store.folder / "files.db", isolation_level=None) as other:
            other.execute("update files set expires = 1 where id = ?", (file,))
        other.close()
        until(lambda: not store.path(file).exists())


# --- starts of the server after a crash or a lost database --------------------------------------------------


def put(store: Any, name: str, data: bytes = DATA) -> None:
    from gemlet.server.file_store import StoredFile

    place = store.path(f"{name}.part")
    place.write_bytes(data)
    store.add(StoredFile(name, "", "a", "batch", len(data), 1, None), place)


def test_a_start_without_the_database_removes_no_file_of_a_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path))
    for number, over in ((1, True), (2, False), (3, True)):
        store.put_batch("", {"id": f"batch_{number}", "created_at": 1}, over=over)
    store.close()
    older = (tmp_path / "files.db").read_bytes()
    store = FileStore(str(tmp_path))
    put(store, "file-1")
    store.put_batch("", {"id": "batch_4", "created_at": 1}, over=False)
    store.close()
    newer = (tmp_path / "files.db").read_bytes()
    files = tmp_path / "files"
    for name in ("file-2.part", "batch_1.work", "batch_2.work", "batch_4.work"):
        (files / name).write_bytes(b"half")
    (files / "folder.part").mkdir()
    caplog.set_level("WARNING", "gemlet.server")
    for database, count in ((older, 3), (b"", 4), (newer, 1)):
        caplog.clear()
        (tmp_path / "files.db").write_bytes(database)
        store = FileStore(str(tmp_path))
        (told,) = caplog.records
        assert vars(told)["fields"] == {"folder": str(files), "count": count}
        # The server keeps the answers of unfinished batches (.work) too.
        assert {*os.listdir(files)} == {"file-1", "batch_2.work", "batch_4.work", "folder.part"}
        assert [one.id for one in store._files("true")] == (["file-1"] if database == newer else [])
        store.close()


class Killed(BaseException):
    """Ends the code under test, as the end of the process would."""


def test_the_process_ends_while_it_adds_a_file(tmp_path: Path) -> None:
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path))
    with mock.patch("os.replace", side_effect=OSError), pytest.raises(OSError):  # noqa: PT011
        put(store, "file-0")
    for number in (1, 2):
        with mock.patch("os.replace", side_effect=Killed), pytest.raises(Killed):
            put(store, f"file-{number}")
    store.path("file-2.part").write_bytes(b"half")
    store.close()
    store = FileStore(str(tmp_path))
    assert os.listdir(tmp_path / "files") == ["file-1"]
    assert [store.has(f"file-{number}", len(DATA)) for number in range(3)] == [False, True, False]
    assert store.find("", "file-0") is None
    store.close()


@pytest.mark.parametrize("expired", [False, True])
def test_the_process_ends_while_it_removes_a_file(tmp_path: Path, expired: bool) -> None:
    """The server removes the content of a file first, and then its entry in the database. In the other order,
    content without an entry could stay on the disk forever."""
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path))
    put(store, "file-1")
    store._db.execute("update files set expires = ?", (1 if expired else 1 << 40,))

    def remove() -> None:
        if expired:
            store.remove_expired()
        else:
            store.remove("file-1")

    for error in (Killed, OSError):
        with mock.patch.object(Path, "unlink", side_effect=error), pytest.raises(error):
            remove()
        store.close()
        store = FileStore(str(tmp_path))
        assert store._db.execute("select id from files").fetchall() == [("file-1",)]
    remove()
    assert store._db.execute("select id from files").fetchall() == []
    assert os.listdir(tmp_path / "files") == []
    store.close()


def test_a_batch_waits_until_its_key_is_known_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the file of keys was lost or replaced by an older version, the server does not end the batches of
    keys that the file no longer has."""
    from gemlet.server.file_store import FileStore
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    owners = []
    for name in ("first", "second"):
        keys = KeyStore(str(tmp_path / name), create=True)
        keys.create("a")
        owners.append(str(keys.all()[0]["id"]))
        keys.close()
    store = FileStore(str(tmp_path / "data"))
    (tmp_path / "data/files/file-1").write_bytes(DATA)
    batch: Any = {"id": "batch_1", "endpoint": LINE["url"], "input_file_id": "file-1", "created_at": 1}
    batch |= {"status": "validating", "expires_at": 1 << 40, "output_expires_after": None, "errors": None}
    batch |= {"output_file_id": None, "error_file_id": None, "request_counts": {"completed": 0, "failed": 0}}
    store.put_batch(owners[0], batch, over=False)
    store.close()

    def status() -> str:
        other = sqlite3.connect(tmp_path / "data/files.db")
        ((document,),) = other.execute("select document from batches").fetchall()
        other.close()
        return str(json.loads(document)["status"])

    caplog.set_level("WARNING", "gemlet.server")
    for path in (str(tmp_path / "second"), None):
        caplog.clear()
        with serving(Settings(port=0, data=str(tmp_path / "data"), keys=path)):
            until(lambda: caplog.records)
            assert vars(caplog.records[-1])["fields"] == {"count": 1}
            assert status() == "validating"
    with serving(Settings(port=0, data=str(tmp_path / "data"), keys=str(tmp_path / "first"))):
        until(lambda: status() == "completed")


# --- keys ---------------------------------------------------------------------------------------------------


def test_revoking_a_key_during_an_upload(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    keys = KeyStore(path, create=True)
    key = keys.create("a")
    with serving(Settings(port=0, keys=path, data=str(tmp_path / "data"))) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        sent = {**TYPE, "Authorization": f"Bearer {key}", "Content-Length": str(len(FORM))}
        connection.putrequest("POST", "/v1/files")
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(FORM[:-9])
        until(lambda: server.running() == 1)
        keys.revoke("a")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (401, "invalid_api_key")
        connection.close()
        server.wait_idle()
        assert os.listdir(store_of(server).folder / "files") == []
    keys.close()


def test_revoking_a_key_during_an_embedding() -> None:
    from starlette.requests import Request

    from gemlet.server.answers import while_connected
    from gemlet.server.call import Call
    from gemlet.server.problems import Problem, key_revoked

    async def ask() -> None:
        call = Call()
        scope: dict[str, Any] = {"type": "http"}
        call.put_into(scope)
        request = Request(scope, receive=asyncio.Event().wait)  # type: ignore[arg-type]
        asyncio.get_running_loop().call_later(0.01, call.end, key_revoked())
        with pytest.raises(Problem, match="revoked"):
            await while_connected(request, asyncio.Event().wait())
        assert not call.cancels

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))
