"""Tests of ``gemlet batch``: it answers each request of a file exactly once, even if some runs are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError, UnsupportedError
from gemlet.server.settings import ModelSpec, Settings
from support.extras import optional
from support.processes import environment_of
from support.waiting import PATIENCE, until

if optional("starlette") is not None:
    from gemlet.server.batch import BatchCounts, run_batch

pytestmark = pytest.mark.extra("serve")

DEMO = [ModelSpec("demo", None, {"threads": 1})]


def request(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "demo", **body}}


def write(path: Path, requests: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    return path


def read(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(found) == len(lines)
    return found


def run(source: Path, output: Path, **options: Any) -> BatchCounts:
    return run_batch(source, output, Settings(), DEMO, progress=False, **options)


def test_every_endpoint(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Who is there?"}]
    source = write(
        tmp_path / "in",
        [
            request("a", prompt="The door", max_tokens=5, seed=1),
            request("b", "/v1/chat/completions", messages=chat, max_tokens=5),
            request("c", prompt="The door", max_tokens=-5),
            request("d", prompt="The door", max_tokens=5, stream=True),
            request("e", "/v1/responses", input="Who is there?", max_output_tokens=5),
        ],
    )
    counts = run(source, tmp_path / "out")
    assert counts == BatchCounts(total=5, before=0, answered=3, failed=2)
    found = read(tmp_path / "out")
    with gemlet.load(threads=1) as model:
        expected = model.generate("The door", max_tokens=5, seed=1, temperature=1.0, top_p=1.0, top_k=0)
    assert found["a"]["status_code"] == 200
    assert found["a"]["body"]["usage"]["completion_tokens"] == expected.completion_tokens
    assert found["a"]["request_id"].startswith("req_")
    assert found["b"]["body"]["object"] == "chat.completion"
    assert found["c"]["status_code"] == found["d"]["status_code"] == 400
    assert "max_tokens" in found["c"]["body"]["error"]["message"]
    assert found["e"]["body"]["object"] == "response"


def test_a_batch_does_not_change_the_answers(tmp_path: Path) -> None:
    requests = [request(f"{i}", prompt=f"The door {i}", max_tokens=12, seed=i) for i in range(40)]
    run(write(tmp_path / "in", requests), tmp_path / "together", concurrent=16)
    run(tmp_path / "in", tmp_path / "alone", concurrent=1)
    together, alone = read(tmp_path / "together"), read(tmp_path / "alone")
    for name, response in together.items():
        assert response["body"]["choices"] == alone[name]["body"]["choices"]


def test_answered_requests_are_not_sent_again(tmp_path: Path) -> None:
    requests = [request(f"{i}", prompt="The door", max_tokens=2) for i in range(6)]
    source, output = write(tmp_path / "in", requests), tmp_path / "out"
    assert run(source, output).answered == 6
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # as if a kill had cut off the fourth line
    assert run(source, output) == BatchCounts(total=6, before=3, answered=3, failed=0)
    assert output.read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert read(output).keys() == {str(i) for i in range(6)}
    assert run(source, output).before == 6


def test_after_killed_runs_each_request_has_one_answer(tmp_path: Path) -> None:
    requests = [request(f"{i}", prompt="The door opened", max_tokens=40) for i in range(60)]
    source, output = write(tmp_path / "in", requests), tmp_path / "out"
    command = [sys.executable, "-m", "gemlet", "batch", str(source), str(output), "--threads", "1"]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before = output.stat().st_size if output.exists() else 0
        process = subprocess.Popen(
            command, env=environment_of(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def has_begun(before: int = before, process: subprocess.Popen[bytes] = process) -> bool:
            return (output.exists() and output.stat().st_size > before) or process.poll() is not None

        until(has_begun)
        process.send_signal(number)
        process.wait(PATIENCE)
    assert subprocess.run(command, env=environment_of(), capture_output=True, check=False).returncode == 0
    assert read(output).keys() == {str(i) for i in range(60)}


def test_two_processes_cannot_write_to_the_same_output(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [request("a", prompt="x")])
    output = tmp_path / "out"
    program = (
        "import fcntl,sys,time; f=open(sys.argv[1],'ab'); fcntl.flock(f,2); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(output)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UnsupportedError, match="another process"):
            run(source, output)
        other.kill()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps(request("b", prompt="?")).replace('"?"', "[" * 64 + "]" * 64), "nested too deep"),
        ("[1]", "expected an object"),
        ("{}", "custom_id"),
        (json.dumps(request("") | {"custom_id": 5}), "custom_id"),
        (json.dumps(request("x" * 513)), "custom_id"),
        (json.dumps(request("first")), "earlier line"),
        (json.dumps(request("b") | {"method": "GET"}), "method"),
        (json.dumps(request("b", "/v1/models")), "url"),
        (json.dumps(request("b") | {"body": "x"}), "body"),
    ],
)
def test_the_error_for_a_wrong_line_comes_before_any_answer(line: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text(json.dumps(request("first", prompt="x")) + "\n\n" + line + "\n")
    with pytest.raises(ModelFileError, match="line 3") as caught:
        run(source, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_files_and_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [request("a", prompt="x")])
    (tmp_path / "text").write_text("a diary\n")
    with pytest.raises(ModelFileError, match=r"line 1: got .*, expected an answer of a batch"):
        run(source, tmp_path / "text")
    assert (tmp_path / "text").read_text() == "a diary\n"
    with pytest.raises(ModelFileError, match="cannot be read"):
        run(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ModelFileError, match="cannot be written"):
        run(source, tmp_path / "none" / "out")
    for concurrent in (0, 1025, "x", True):
        with pytest.raises(InvalidRequestError, match="concurrent"):
            run(source, tmp_path / "out", concurrent=concurrent)
    with pytest.raises(gemlet.GemletError):
        run_batch(source, tmp_path / "out", Settings(), [ModelSpec("x", str(tmp_path / "none"), {})])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", [request("a", prompt="The", max_tokens=2), request("b", prompt=3)])
    output = tmp_path / "out"
    assert main(["batch", str(source), str(output), "--concurrent", "2"]) == 1
    assert "1 answered, 1 failed" in capsys.readouterr().err
    assert main(["batch", str(source), str(output)]) == 0
    assert "2 answered before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"my only copy of a poem, without a newline",
        b"a poem\n",
        b'{"custom_id": "a", "method": "POST"}\n',
        b'{"custom_id": "a", "method": "POST"}',
        b'{"id": "batch_req_1", "custom_id": "a", "response": null}\n',
        b'{"id": "other", "custom_id": "a", "response": {}}\n',
        b'{"id": "batch_req_1", "custom_id": 3, "response": {}}\n',
        b'{"id": "batch_req_1", "custom_id": "a", "response": {}}\n{"id": "other_',
        b"[]\n",
        b"\xff",
    ],
)
def test_a_file_with_other_content_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    source, output = write(tmp_path / "in", [request("a", prompt="x", max_tokens=1)]), tmp_path / "out"
    output.write_bytes(content)
    with pytest.raises(ModelFileError, match="expected an answer of a batch"):
        run(source, output)
    assert output.read_bytes() == content


@pytest.mark.parametrize("incomplete", [b"{", b'{"id": "bat', b'{"id": "batch_req_12", "cust'])
def test_an_incomplete_last_line_is_removed(tmp_path: Path, incomplete: bytes) -> None:
    source, output = write(tmp_path / "in", [request("a", prompt="x", max_tokens=1)]), tmp_path / "out"
    output.write_bytes(incomplete)
    assert run(source, output).answered == 1
    assert read(output).keys() == {"a"}


@pytest.mark.parametrize("link", ["none", "symbolic", "hard"])
def test_the_output_must_not_be_the_file_of_requests(tmp_path: Path, link: str) -> None:
    source = tmp_path / "in"
    source.write_text(json.dumps(request("a", prompt="x")))  # the last line has no newline
    before, output = source.read_bytes(), source if link == "none" else tmp_path / "out"
    if link == "symbolic":
        output.symlink_to(source)
    elif link == "hard":
        output.hardlink_to(source)
    with pytest.raises(ModelFileError, match="is the same file as the requests"):
        run(source, output)
    assert source.read_bytes() == before
