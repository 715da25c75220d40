"""Tests of files and batches over HTTP with OpenAI's client: the files that each key can see, limits,
restarts and kills of the server."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.extras import optional
from support.processes import environment_of
from support.servers import RunningServer, serving
from support.waiting import until

pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
openai = optional("openai")
CHAT = "/v1/chat/completions"
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
OVER = ("completed", "failed", "expired", "cancelled")


CLIENTS: list[Any] = []


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    """Closes the clients that a test made."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client_of(server: RunningServer, key: str = "none") -> Any:
    CLIENTS.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0))
    return CLIENTS[-1]


def lines(requests: Sequence[Any], url: str = CHAT) -> bytes:
    """The lines of a batch file, with one request for each body. The requests are named by their numbers."""
    made = [
        {"custom_id": str(i), "method": "POST", "url": url, "body": body} for i, body in enumerate(requests)
    ]
    return "".join(json.dumps(one) + "\n" for one in made).encode()


def chat(tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"messages": QUESTION, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}


def upload(client: Any, data: bytes, **more: Any) -> Any:
    return client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch", **more)


def begin(client: Any, data: bytes, endpoint: str = CHAT, **more: Any) -> Any:
    name = upload(client, data).id
    return client.batches.create(
        input_file_id=name, endpoint=endpoint, completion_window=more.pop("completion_window", "24h"), **more
    )


def wait(client: Any, name: str) -> Any:
    def over() -> Any:
        batch = client.batches.retrieve(name)
        return batch if batch.status in OVER else None

    return until(over)


def read(client: Any, name: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in client.files.content(name).content.splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows), "a request has two answers"
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from gemlet.server.settings import Settings

    data = tmp_path_factory.mktemp("data")
    with serving(Settings(data=str(data), max_file=100_000, max_storage=400_000)) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Any:
    client = client_of(server)
    for file in client.files.list():
        client.files.delete(file.id)
    return client


# --- files --------------------------------------------------------------------------------------------------


def test_a_file(client: Any) -> None:
    data = lines([chat()]) * 50
    file = upload(client, data)
    assert (file.object, file.bytes, file.purpose, file.filename) == ("file", len(data), "batch", "in.jsonl")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == data
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_lists_in_pages(client: Any) -> None:
    names = [upload(client, b"{}\n").id for _ in range(5)]
    assert {file.id for file in client.files.list()} == set(names)
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in client.files.list()]
    up = [file.id for file in client.files.list(order="asc", limit=2)]
    assert up == [file.id for file in client.files.list(order="desc")][::-1]
    assert not list(client.files.list(purpose="batch_output"))
    with pytest.raises(openai.NotFoundError):
        list(client.files.list(after="file-none"))
    with pytest.raises(openai.BadRequestError, match="limit"):
        list(client.files.list(limit=0))


def test_files_expire(client: Any) -> None:
    file = upload(client, b"{}", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        upload(client, b"{}", expires_after={"anchor": "created_at", "seconds": 5})


def test_a_file_that_has_expired_is_gone(tmp_path: Path) -> None:
    from gemlet.server.file_store import FileStore, StoredFile

    store = FileStore(str(tmp_path))
    now = int(time.time())
    for name, expires in (("file-old", now - 1), ("file-new", now + 60), ("file-kept", None)):
        (tmp_path / "files" / f"{name}.part").write_bytes(b"{}")
        file = StoredFile(name, "me", "in", "batch", 2, now - 100, expires)
        store.add(file, tmp_path / "files" / f"{name}.part")
    assert store.find("me", "file-old") is None
    assert store.find("me", "file-new") is not None
    assert store.used("me") == (2, 4)
    assert (tmp_path / "files" / "file-old").exists()
    store.remove_expired()
    assert {place.name for place in (tmp_path / "files").iterdir()} == {"file-new", "file-kept"}
    store.close()


def test_wrong_uploads_are_refused(client: Any, server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=io.BytesIO(b"x"), purpose="assistants")
    with pytest.raises(openai.APIStatusError) as caught:
        upload(client, b"x" * 100_001)
    assert caught.value.status_code == 413
    for _ in range(4):
        upload(client, b"x" * 90_000)
    with pytest.raises(openai.APIStatusError, match="no more room") as caught:
        upload(client, b"x" * 90_000)
    assert caught.value.status_code == 413
    folder = server.server.app.service.batches.store.folder / "files"
    assert not list(folder.glob("*.part"))


FORM = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
PURPOSE = FORM % (b"purpose", b"", b"batch")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (PURPOSE + b"--b--\r\n", 400),
        (PURPOSE + FORM % (b"file", b'; filename="x"', b"{}"), 400),  # the form is cut off
        (PURPOSE * 2 + FORM % (b"file", b'; filename="x"', b"{}") + b"--b--\r\n", 400),
        (PURPOSE + FORM % (b"file", b"", b"{}") * 2 + b"--b--\r\n", 400),
        (PURPOSE + FORM % (b"other", b"", b"x" * 5000) + b"--b--\r\n", 400),
        (b"".join(FORM % (b"f%d" % i, b"", b"x") for i in range(40)) + b"--b--\r\n", 400),
        (b"--b\r\n" + b"X: y\r\n" * 50 + b"\r\n", 400),
        (b"--b\r\nX: " + b"y" * 10_000, 400),
        (PURPOSE + FORM % (b"odd", b"", b"x") + FORM % (b"file", b"", b"{}") + b"--b--\r\n", 400),
        (FORM % (b"purpose", b"", b"\xff") + FORM % (b"file", b"", b"{}") + b"--b--\r\n", 400),
        (PURPOSE + FORM % (b"file", b'; filename="../../etc/passwd"', b"{}") + b"--b--\r\n", 200),
        (b"\x00" * 3000, 400),
    ],
)
def test_odd_forms(server: RunningServer, client: Any, body: bytes, status: int) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.ask("POST", "/v1/files", body, kind)
    assert answer.status == status, answer.body
    if status == 200:
        assert answer.json["filename"] == "passwd"
    for header in ("", "text/plain", "multipart/form-data", f"multipart/form-data; boundary={'b' * 71}"):
        assert server.ask("POST", "/v1/files", body, {"Content-Type": header}).status == 415


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "file-", "lock", "files.db", "'"])
def test_names_that_are_not_ids_find_nothing(server: RunningServer, name: str) -> None:
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
        assert server.ask("GET", path).status == 404


def test_a_server_without_a_folder() -> None:
    with serving() as server:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches")):
            answer = server.ask(method, path, b"")
            assert (answer.status, answer.error["code"]) == (404, "unsupported")


# --- batches ------------------------------------------------------------------------------------------------


def test_a_batch(client: Any) -> None:
    data = lines([chat(seed=i) for i in range(5)] + [chat(-1), chat(stream=True)])
    begun = begin(client, data, metadata={"whose": "mine"})
    assert begun.status == "validating"
    batch = wait(client, begun.id)
    assert batch.status == "completed"
    assert batch.metadata == {"whose": "mine"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 5, 2)
    good, bad = read(client, batch.output_file_id), read(client, batch.error_file_id)
    assert good.keys() == {"0", "1", "2", "3", "4"}
    assert bad.keys() == {"5", "6"}
    alone = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
    )
    body = good["3"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert bad["5"]["response"]["body"]["error"]["param"] == "max_tokens"
    assert batch.usage.output_tokens == 20
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    # The batch has ended already, so cancelling changes nothing.
    assert client.batches.cancel(batch.id) == batch
    assert client.batches.list(limit=1).data[0].id == batch.id


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "The door", "max_tokens": 2}, "text_completion"),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 2}, "response"),
        (CHAT, chat(), "chat.completion"),
    ],
)
def test_every_endpoint(client: Any, endpoint: str, body: Any, kind: str) -> None:
    batch = wait(client, begin(client, lines([body], endpoint), endpoint).id)
    assert read(client, batch.output_file_id)["0"]["response"]["body"]["object"] == kind
    assert batch.error_file_id is None


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", None, "no requests"),
        (b"\n\n", None, "no requests"),
        (lines([chat()]) + b"{", 2, "not JSON"),
        (lines([chat()], "/v1/completions"), 1, "url"),
        (lines([chat()]) * 2, 2, "earlier line"),
        (lines([chat()]) + b"[" * 50_000, 2, "nested too deep"),
        (b"\xff\xfe", 1, "not JSON"),
        (lines([chat()]) + b'{"x":"' + b"[" * 95_000 + b'"}', 2, "custom_id"),
    ],
)
def test_a_wrong_file(client: Any, data: bytes, line: int | None, message: str) -> None:
    batch = wait(client, begin(client, data).id)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    (error,) = batch.errors.data
    assert error.line == line
    assert message in error.message
    assert "/files/" not in error.message  # no path of this machine


def test_requests_may_have_odd_names(client: Any) -> None:
    names = ["\ud83d", "<end_of_turn>", "\x00", "é" * 512, '"', "a\nb"]
    data = "".join(
        json.dumps({"custom_id": n, "method": "POST", "url": CHAT, "body": chat(1)}) + "\n" for n in names
    )
    batch = wait(client, begin(client, data.encode()).id)
    assert read(client, batch.output_file_id).keys() == set(names)


def test_wrong_batches_are_refused(client: Any) -> None:
    name = upload(client, lines([chat()])).id
    good = {"input_file_id": name, "endpoint": CHAT, "completion_window": "24h"}
    for field, value in (
        ("endpoint", "/v1/models"),
        ("completion_window", "0h"),
        ("completion_window", "1y"),
        ("completion_window", "721h"),
        ("metadata", {"x": 5}),
        ("metadata", {str(i): "" for i in range(17)}),
    ):
        with pytest.raises(openai.BadRequestError, match=field):
            client.batches.create(**{**good, field: value})
    for missing in ("file-none", "lock"):
        with pytest.raises(openai.NotFoundError):
            client.batches.create(**{**good, "input_file_id": missing})
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_cancelling(client: Any) -> None:
    begun = begin(client, lines([chat(3)] + [chat(500) for _ in range(300)]))
    while client.batches.retrieve(begun.id).request_counts.completed == 0:
        time.sleep(0.02)
    with pytest.raises(openai.ConflictError):
        client.files.delete(begun.input_file_id)
    assert client.batches.cancel(begun.id).status == "cancelling"
    batch = wait(client, begun.id)
    assert batch.status == "cancelled"
    counts = batch.request_counts
    assert 1 <= counts.completed < 301
    assert len(read(client, batch.output_file_id)) == counts.completed
    client.files.delete(begun.input_file_id)


def test_a_batch_expires_with_its_window(tmp_path: Path) -> None:
    from gemlet.server.file_store import FileStore
    from gemlet.server.settings import Settings

    settings = Settings(data=str(tmp_path), drain_seconds=1)
    with serving(settings) as server:
        client = client_of(server)
        name = begin(client, lines([chat(200) for _ in range(100)])).id
        while client.batches.retrieve(name).request_counts.completed == 0:
            time.sleep(0.02)
    store = FileStore(str(tmp_path))
    ((_, document),) = store.unfinished()
    store.put_batch("", {**document, "expires_at": int(time.time())}, over=False)
    store.close()
    with serving(settings) as server:
        client = client_of(server)
        batch = wait(client, name)
        assert batch.status == "expired"
        late = read(client, batch.error_file_id).values()
        assert {row["error"]["code"] for row in late} == {"batch_expired"}
        counts = batch.request_counts
        assert (counts.failed, counts.completed + counts.failed) == (len(late), 100)


def test_async(server: RunningServer) -> None:
    async def main() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            file = await client.files.create(file=("in", lines([chat()])), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            while batch.status not in OVER:
                await asyncio.sleep(0.05)
                batch = await client.batches.retrieve(batch.id)
            return batch, (await client.files.content(batch.output_file_id)).content

    batch, content = asyncio.run(main())
    assert batch.status == "completed"
    assert json.loads(content)["custom_id"] == "0"


# --- keys and limits ----------------------------------------------------------------------------------------


def test_each_key_sees_only_its_own_files(tmp_path: Path) -> None:
    from gemlet.server.file_store import FileStore
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.settings import Settings

    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    keys = [store.create(name, Limits(concurrent=2, requests_per_minute=400)) for name in ("alice", "bob")]
    with serving(Settings(keys=str(tmp_path / "keys.db"), data=str(tmp_path / "data"))) as server:
        alice, bob = (client_of(server, key) for key in keys)
        batch = begin(alice, lines([chat(3) for _ in range(30)]))
        assert not list(bob.files.list())
        assert not list(bob.batches.list())
        for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(batch.input_file_id)
        for call in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(batch.id)
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        # The batch does not use all places of its key, so an interactive request still finds a free place.
        body = {"messages": QUESTION, "max_tokens": 2}
        assert server.post(CHAT, body, key=keys[0]).status == 200
        batch = wait(alice, batch.id)
        assert batch.request_counts.completed == 30
        rows = {row["key"]: row for row in store.usage() if row["model"]}
        assert rows["alice"]["completion_tokens"] >= 90
        assert "bob" not in rows
        # When a key is revoked, the batches of the key end.
        begun = begin(alice, lines([chat(500) for _ in range(200)]))
        store.revoke("alice")
        batches = server.server.app.service.batches
        until(lambda: not batches.uses(begun.input_file_id))
    files = FileStore(str(tmp_path / "data"))
    found = files.batch(files.owner_of(begun.id), begun.id)
    assert found is not None
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "invalid_api_key")
    files.close()
    store.close()


# --- restarts -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stopping_and_starting(tmp_path: Path) -> None:
    from gemlet.server.settings import Settings

    settings = Settings(data=str(tmp_path / "data"), drain_seconds=1)
    with serving(settings) as server:
        client = client_of(server)
        begun = begin(client, lines([chat(100) for _ in range(60)]))
        while client.batches.retrieve(begun.id).request_counts.completed == 0:
            time.sleep(0.02)
    with serving(settings) as server:
        client = client_of(server)
        batch = wait(client, begun.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 60)
        assert read(client, batch.output_file_id).keys() == {str(i) for i in range(60)}
        assert not list((tmp_path / "data/files").glob("*.work"))


@pytest.mark.slow
def test_after_kills_each_request_has_one_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.programs.serve_until_killed", "", str(tmp_path / "data")]
    name, total, seen = "", 150, [0]

    def run(more: Any) -> Any:
        process = subprocess.Popen(command, env=environment_of(), stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            return more(client_of(RunningServer(int(process.stdout.readline()), None)))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def some(client: Any) -> None:
        nonlocal name
        name = name or begin(client, lines([chat(30, seed=i) for i in range(total)])).id

        def further() -> Any:
            batch = client.batches.retrieve(name)
            return batch if batch.request_counts.completed > seen[-1] or batch.status in OVER else None

        seen.append(until(further).request_counts.completed)

    for _ in range(3):
        run(some)
    assert 0 < seen[1] < total  # the first kill came in the middle of the batch

    def rest(client: Any) -> None:
        batch = wait(client, name)
        assert (batch.status, batch.request_counts.completed) == ("completed", total)
        assert read(client, batch.output_file_id).keys() == {str(i) for i in range(total)}

    run(rest)


def test_two_servers_cannot_use_the_same_folder(tmp_path: Path) -> None:
    from gemlet.errors import ModelFileError, UnsupportedError
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path / "data"))
    (tmp_path / "data/files/file-x.part").write_bytes(b"half")
    with pytest.raises(UnsupportedError, match="another server"):
        FileStore(str(tmp_path / "data"))
    store.close()
    FileStore(str(tmp_path / "data")).close()
    assert not list((tmp_path / "data/files").iterdir())
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    (tmp_path / "text").write_text("a diary")
    with pytest.raises(ModelFileError, match="cannot be used"):
        FileStore(str(tmp_path / "text"))


def test_a_folder_that_cannot_be_used_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a diary")
    command = [sys.executable, "-m", "gemlet", "serve", "--port", "0", "--data", str(tmp_path / "text")]
    done = subprocess.run(command, env=environment_of(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot be used as a folder for files" in done.stderr.splitlines()[-1]
    assert (tmp_path / "text").read_text() == "a diary"
    done = subprocess.run(
        [*command, "--check"], env=environment_of(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "is not a folder that this user can write to" in done.stdout
