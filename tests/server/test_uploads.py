"""Tests of large uploads, uploads that end early, and requests for files and batches in each state of a
batch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gemlet.chat import Content
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving, spawned
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
HEAD = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
TAIL = b"\r\n--x--\r\n"
TYPE = {"Content-Type": "multipart/form-data; boundary=x"}
LINE: Any = {
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2},
}
ASKED = {"endpoint": "/v1/chat/completions", "completion_window": "1h"}
SAYS = chunk(Content("Yes"), reason="stop")


@contextlib.contextmanager
def with_files(folder: Path, **more: Any) -> Iterator[RunningServer]:
    from gemlet.server.settings import Settings

    with serving(Settings(data=str(folder), **more)) as server:
        yield server


def uploaded(server: RunningServer, content: bytes, **more: Any) -> Any:
    return server.ask("POST", "/v1/files", HEAD + content + TAIL, TYPE, **more)


def on_disk(folder: Path) -> list[str]:
    return sorted(place.name for place in (folder / "files").iterdir())


@contextlib.contextmanager
def uploading(port: int, length: int | None, headers: str = "") -> Iterator[socket.socket]:
    """A connection that has sent the headers of an upload. Without ``length``, the body must be sent in
    chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n{size}\r\n{headers}"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        yield connection


def as_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_an_upload_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    with with_files(tmp_path, body_seconds=0.5) as server:
        size = 3_000_000
        for ends in ("closed", "reset", "silent", "malformed"):
            with uploading(server.port, None if ends == "malformed" else size) as connection:
                begun = HEAD + b"y" * 1_000_000
                connection.sendall(as_chunk(begun) if ends == "malformed" else begun)
                until(lambda: on_disk(tmp_path))
                if ends == "reset":
                    linger = bytes([1, 0, 0, 0, 0, 0, 0, 0])
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if ends == "malformed":
                    connection.sendall(b"no length\r\n")
                if ends in ("silent", "malformed"):
                    assert connection.recv(12) == (b"HTTP/1.1 408" if ends == "silent" else b"HTTP/1.1 400")
            until(lambda: not on_disk(tmp_path))
            server.wait_idle()
        assert not server.server.app.service.batches.store._arriving
        assert server.ask("GET", "/v1/files").json["data"] == []


def test_memory_of_a_large_upload(tmp_path: Path) -> None:
    """The server's memory does not grow with the size of the file, for each way to send the file and for each
    kind of content."""
    size = 150 << 20
    with spawned("--data", str(tmp_path), "--max-file", "300MB", "--max-storage", "1GB") as process:
        grown: list[int] = []
        for piece in (b"y" * (1 << 20), b"\r\n--" * (1 << 18)):
            before = process.resident()
            with uploading(process.port, None) as connection:
                connection.sendall(as_chunk(HEAD))
                for _ in range(size // len(piece)):
                    connection.sendall(as_chunk(piece))
                    grown.append(process.resident() - before)
                connection.sendall(as_chunk(TAIL) + b"0\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
        assert max(grown) < size // 4
        server = RunningServer(process.port, None)
        for file in server.ask("GET", "/v1/files").json["data"]:
            assert file["bytes"] == size
            begun = process.resident()
            assert len(server.ask("GET", f"/v1/files/{file['id']}/content").body) == size
            assert process.resident() - begun < size // 4


def test_an_upload_reserves_its_space_before_it_arrives(tmp_path: Path) -> None:
    with with_files(tmp_path, max_file=5_000_000, max_storage=6_000_000) as server:
        with uploading(server.port, len(HEAD + TAIL) + 4_000_000) as first:
            first.sendall(HEAD + b"y" * 100_000)
            until(lambda: on_disk(tmp_path))
            refused = uploaded(server, b"z" * 3_000_000)
            assert (refused.status, refused.error["code"]) == (413, "storage_full")
            first.sendall(b"y" * 3_900_000 + TAIL)
            assert first.recv(12) == b"HTTP/1.1 200"
        assert uploaded(server, b"z" * 3_000_000).status == 413
        with uploading(server.port, 4_000_000, "Expect: 100-continue\r\n") as second:
            assert second.recv(12) == b"HTTP/1.1 413"  # status 100 would ask the client to send the file
        assert uploaded(server, b"z" * 1_000_000).status == 200
        assert len(on_disk(tmp_path)) == 2


def test_the_free_space_of_the_disk_is_checked_before_an_upload(tmp_path: Path) -> None:
    """If a file does not fit on the disk, the server refuses it before the client sends it."""
    with with_files(tmp_path) as server:
        left = os.statvfs_result((4096, 4096, 9000, 100, 100, 9, 9, 9, 0, 255))
        with mock.patch("os.statvfs", return_value=left):
            with uploading(server.port, 5_000_000, "Expect: 100-continue\r\n") as connection:
                assert connection.recv(12) == b"HTTP/1.1 507"
            assert uploaded(server, b"z" * 1000).status == 200


def test_many_files_expire_at_once(tmp_path: Path) -> None:
    """The server removes a limited number of files at a time, so that other requests wait only shortly."""
    from gemlet.server import file_store

    store = file_store.FileStore(str(tmp_path))
    (tmp_path / "files" / "part").write_bytes(b"{}")
    for i in range(250):
        (tmp_path / "files" / f"{i}.part").write_bytes(b"{}")
        expires = int(time.time()) + (-1 if i % 25 else 60)
        file = file_store.StoredFile(f"file-{i}", "me", "in", "batch", 2, 5, expires)
        store.add(file, tmp_path / "files" / f"{i}.part")
    (tmp_path / "files" / "part").unlink()
    assert [store.remove_expired(), store.remove_expired(), store.remove_expired()] == [True, True, False]
    assert len(list((tmp_path / "files").iterdir())) == 10 == store.used("me")[0]
    store.close()


# --- files and batches in each state ------------------------------------------------------------------------


@contextlib.contextmanager
def batch_of(server: RunningServer, count: int = 3) -> Iterator[tuple[str, str]]:
    lines = [json.dumps({**LINE, "custom_id": str(i)}).encode() for i in range(count)]
    file = uploaded(server, b"\n".join(lines)).json["id"]
    yield server.post("/v1/batches", {**ASKED, "input_file_id": file}).json["id"], file


def status(server: RunningServer, name: str) -> str:
    return str(server.ask("GET", f"/v1/batches/{name}").json["status"])


def test_the_output_while_a_batch_runs(tmp_path: Path) -> None:
    """A client can read the output file only after the end of the batch, and the file is then complete."""
    with (
        with_files(tmp_path, batch_concurrent=1) as server,
        saying(0.1, SAYS),
        batch_of(server, 5) as (name, file),
    ):
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["status"] not in ("completed", "failed"):
            seen.append(server.ask("GET", f"/v1/batches/{name}").json)
            if seen[-1]["status"] == "completed":
                break
            assert seen[-1]["output_file_id"] is None
            for place in on_disk(tmp_path):
                if place != file:
                    answer = server.ask("GET", f"/v1/files/{place}/content")
                    # The batch may have ended just before this request.
                    assert answer.status == 404 or status(server, name) != "in_progress"
        output = seen[-1]["output_file_id"]
        assert server.ask("GET", f"/v1/files/{output}/content").body.count(b"\n") == 5
        assert len([one for one in seen if one["status"] == "in_progress"]) > 1


def test_a_file_is_deleted_while_a_client_reads_it(tmp_path: Path) -> None:
    """A client that has begun to read the file before the deletion gets the whole file."""
    size = 30 << 20
    with with_files(tmp_path) as server:
        name = uploaded(server, b"y" * size).json["id"]
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(f"GET /v1/files/{name}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = len(connection.recv(1000))
            assert server.ask("DELETE", f"/v1/files/{name}").status == 200
            assert not on_disk(tmp_path)
            assert server.ask("GET", f"/v1/files/{name}/content").status == 404
            while received < size:
                piece = connection.recv(1 << 20)
                assert piece
                received += len(piece)


def test_cancel_and_delete_in_each_state(tmp_path: Path) -> None:
    from gemlet.server import batches

    go: dict[str, threading.Event] = {"checked_ids": threading.Event(), "_parted": threading.Event()}

    def held(name: str) -> Any:
        real = getattr(batches, name)

        def wait(*arguments: Any, **named: Any) -> Any:
            assert go[name].wait(PATIENCE)
            return real(*arguments, **named)

        return mock.patch.object(batches, name, wait)

    def cancel(name: str) -> str:
        return str(server.post(f"/v1/batches/{name}/cancel", {}).json["status"])

    def delete(file: str) -> int:
        return server.ask("DELETE", f"/v1/files/{file}").status

    with with_files(tmp_path) as server:
        with held("checked_ids"), batch_of(server) as (name, file):
            assert status(server, name) == "validating"
            assert delete(file) == 409
            assert cancel(name) == "cancelling"
            assert cancel(name) == "cancelling"
            assert delete(file) == 409
            go["checked_ids"].set()
            until(lambda: status(server, name) == "cancelled")
            assert cancel(name) == "cancelled"
            until(lambda: delete(file) == 200)
        with saying(PATIENCE), batch_of(server) as (name, file):
            until(lambda: status(server, name) == "in_progress")
            assert delete(file) == 409
            assert cancel(name) == "cancelling"
            until(lambda: status(server, name) == "cancelled")
            until(lambda: delete(file) == 200)
        with held("_parted"), saying(SAYS), batch_of(server) as (name, file):
            until(lambda: status(server, name) == "finalizing")
            assert delete(file) == 409
            assert cancel(name) == "finalizing"  # cancelling is too late, because all lines have answers
            go["_parted"].set()
            until(lambda: status(server, name) == "completed")
            assert cancel(name) == "completed"
            until(lambda: delete(file) == 200)
            output = server.ask("GET", f"/v1/batches/{name}").json["output_file_id"]
            assert delete(output) == 200
            assert delete(output) == 404
        assert server.ask("DELETE", f"/v1/batches/{name}").status == 405
        assert server.post("/v1/batches/batch_none/cancel", {}).status == 404
        until(lambda: not on_disk(tmp_path))


def test_a_batch_that_is_cancelled_while_it_waits(tmp_path: Path) -> None:
    """The limit of its key makes the batch wait for a long time. Cancelling ends the batch at once."""
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    key = store.create("a", Limits(requests_per_hour=4))
    store.close()
    with serving(Settings(data=str(tmp_path / "d"), keys=path)) as server:
        lines = [json.dumps({**LINE, "custom_id": str(i)}).encode() for i in range(6)]
        file = uploaded(server, b"\n".join(lines), key=key).json["id"]
        name = server.post("/v1/batches", {**ASKED, "input_file_id": file}, key=key).json["id"]

        def found() -> Any:
            return server.ask("GET", f"/v1/batches/{name}", key=key).json

        until(lambda: found()["request_counts"]["completed"] == 2)
        time.sleep(0.05)
        begun = time.monotonic()
        assert server.ask("POST", f"/v1/batches/{name}/cancel", key=key).json["status"] == "cancelling"
        until(lambda: found()["status"] == "cancelled")
        # Without the cancellation, the batch would have waited for a minute.
        assert time.monotonic() - begun < 30
        assert found()["request_counts"] == {"total": 6, "completed": 2, "failed": 0}
