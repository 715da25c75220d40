"""Tests of everything that an operator of the server uses: starting, readiness, metrics, several models,
settings and stopping."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gemlet
from gemlet.chat.reply import Content
from gemlet.cli import main
from gemlet.errors import ConfigError, GemletError, InvalidRequestError
from support.extras import optional
from support.paths import ROOT
from support.processes import environment_of
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
CHAT = "/v1/chat/completions"
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
GOLDEN = ROOT / "tests/golden"


@pytest.fixture(scope="module")
def several() -> Iterator[RunningServer]:
    """A server with the demo model, a model with an adapter, and an embedding model."""
    from gemlet.server.settings import ModelSpec

    adapter = {"tuned": str(GOLDEN / "adapters/gemma3-plain")}
    specs = [
        ModelSpec("demo"),
        ModelSpec("tiny", str(GOLDEN / "gemma3-270m"), {"weights": "f32"}, adapter),
        ModelSpec("vectors", str(GOLDEN / "embeddinggemma")),
    ]
    with serving(specs=specs) as running:
        yield running


def test_models_and_adapters(several: RunningServer) -> None:
    listed = {model["id"]: model["parent"] for model in several.ask("GET", "/v1/models").json["data"]}
    assert listed == {"demo": None, "tiny": None, "tuned": "tiny", "vectors": None}
    ids = [2, 7, 11]
    with gemlet.load(GOLDEN / "gemma3-270m", weights="f32") as model:
        model.load_adapter(GOLDEN / "adapters/gemma3-plain", name="tuned")
        expected = [
            model.generate(ids, max_tokens=8, temperature=0, adapter=name).token_ids
            for name in (None, "tuned")
        ]
    assert expected[0] != expected[1]
    for name, token_ids in zip(("tiny", "tuned"), expected, strict=True):
        body = {"model": name, "prompt": ids, "max_tokens": 8, "temperature": 0}
        answer = several.post("/v1/completions", body)
        assert answer.json["usage"]["completion_tokens"] == len(token_ids)
        assert answer.json["model"] == name


def test_the_deep_check(several: RunningServer) -> None:
    from gemlet.server import operations

    before = several.server.app.service.models.loaded[0][1].stats()["generated_tokens"]
    assert several.ask("GET", "/health?deep=1").json == {"status": "ok"}
    assert several.server.app.service.models.loaded[0][1].stats()["generated_tokens"] == before + 1
    with mock.patch.object(operations, "_DEADLINE", 0.0):
        assert several.ask("GET", "/health?deep=1").status == 503
        assert several.ask("GET", "/health").status == 200


def test_errors_do_not_reveal_paths_of_this_machine(several: RunningServer) -> None:
    for path, body in (
        ("/v1/completions", {"model": "tiny", "prompt": "text"}),
        (CHAT, {"model": "tiny", "messages": QUESTION}),
        ("/v1/embeddings", {"model": "tiny", "input": "x"}),
        ("/v1/embeddings", {"model": "vectors", "input": "x"}),
        ("/v1/completions", {"model": "vectors", "prompt": [7]}),
        ("/tokenize", {"model": "tiny", "prompt": "x"}),
    ):
        answer = several.post(path, body)
        assert answer.status == 400, path
        assert str(ROOT) not in answer.body.decode()
        assert "golden" not in answer.body.decode()


@pytest.mark.extra("test-serve")
def test_embeddings(several: RunningServer) -> None:
    texts = [[2, 5, 7, 1], [2, 9, 4, 3, 1]]
    with gemlet.load(GOLDEN / "embeddinggemma") as model:
        expected = model.embed(texts, dimensions=8)
    openai = optional("openai")
    with openai.OpenAI(base_url=f"{several.url}/v1", api_key="none", max_retries=0) as client:
        # The client asks for base64 by default.
        for more in ({}, {"encoding_format": "float"}):
            found = client.embeddings.create(model="vectors", input=texts, dimensions=8, **more)
            np.testing.assert_array_equal(np.float32([item.embedding for item in found.data]), expected)
            assert found.usage.prompt_tokens == 9
    body = {"model": "vectors", "input": texts[0], "dimensions": 8, "encoding_format": "base64"}
    packed = several.post("/v1/embeddings", body).json["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == tuple(map(float, expected[0]))
    answer = several.post("/api/embed", {"model": "vectors", "input": texts, "dimensions": 8})
    np.testing.assert_array_equal(np.float32(answer.json["embeddings"]), expected)
    assert (
        several.post("/v1/embeddings", {"model": "vectors", "input": texts, "dimensions": 10**4}).status
        == 400
    )


def test_no_thread_waits_for_embeddings(several: RunningServer) -> None:
    """The thread that encodes long texts is free again before the vectors are computed."""
    from gemlet.server import openai_embeddings

    body = {"model": "vectors", "input": [[2, 5, 7, 1]] * 40}
    with mock.patch.object(openai_embeddings.anyio.to_thread, "run_sync", side_effect=AssertionError):
        assert len(several.post("/v1/embeddings", body).json["data"]) == 40
        assert len(several.post("/api/embed", body).json["embeddings"]) == 40
    with mock.patch.object(openai_embeddings, "_LONG", 10):
        assert len(several.post("/v1/embeddings", body).json["data"]) == 40
    settings = several.server.app.service.settings

    # This replaces the function that computes vectors, which could return too soon.
    async def forever(*given: object, **named: object) -> None:
        await asyncio.Event().wait()

    with (
        mock.patch.object(settings.__class__, "request_seconds", 0.0, create=True),
        mock.patch("gemlet.model.model.Model.aembed", forever),
    ):
        found = settings.__dict__.pop("request_seconds")
        try:
            answer = several.post("/v1/embeddings", body)
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        finally:
            settings.__dict__["request_seconds"] = found


def test_tokenize_and_detokenize(server: RunningServer) -> None:
    with gemlet.load() as model:
        tokenizer, chat_format = model.tokenizer, model.chat_format
        assert tokenizer is not None
        assert chat_format is not None
        ids, chat = tokenizer.encode("The door opened"), chat_format.encode_chat(tokenizer, QUESTION)
    answer = server.post("/tokenize", {"prompt": "The door opened"}).json
    assert answer == {"count": len(ids), "max_model_len": 1024, "tokens": ids}
    assert (
        server.post("/tokenize", {"prompt": "The door opened", "add_special_tokens": False}).json["tokens"]
        == ids[1:]
    )
    assert server.post("/tokenize", {"messages": QUESTION}).json["tokens"] == chat
    assert server.post("/detokenize", {"tokens": ids[1:]}).json == {"prompt": "The door opened"}
    assert server.post("/detokenize", {"tokens": [10**6]}).status == 400
    assert server.post("/tokenize", {}).status == 400
    assert server.running() == 0


def test_the_server_is_ready_only_after_its_model() -> None:
    from gemlet.server.models import Models

    go, load = threading.Event(), Models.load

    def slowly(self: Any) -> None:
        go.wait(30)
        load(self)

    found: list[tuple[int, int]] = []

    def look(server: RunningServer) -> None:
        found.extend((server.ask("GET", path).status, 0) for path in ("/health", "/ready", "/version"))
        answer = server.post(CHAT, {"messages": QUESTION})
        found.append((answer.status, answer.error["code"]))
        assert answer.headers["retry-after"]
        go.set()

    with mock.patch.object(Models, "load", slowly), serving(while_starting=look) as server:
        assert found == [(503, 0), (503, 0), (200, 0), (503, "loading")]
        assert server.ask("GET", "/health").json == {"status": "ok"}
        assert server.post(CHAT, {"messages": QUESTION, "max_tokens": 1}).status == 200


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    from gemlet.server.run import Server, bind
    from gemlet.server.settings import ModelSpec, Settings

    server = Server(Settings(), [ModelSpec("x", str(tmp_path))])
    listener = bind("127.0.0.1", 0)
    asyncio.run(server.serve(sockets=[listener]))
    listener.close()
    assert isinstance(server.failure, GemletError)


def test_ping_and_load_answer_as_in_vllm(server: RunningServer) -> None:
    answer = server.ask("GET", "/ping")
    assert (answer.status, answer.body) == (200, b"")
    assert server.ask("GET", "/load").json == {"server_load": 0}
    with saying(0.3, chunk(Content("a"), reason="stop")):
        asking = threading.Thread(target=server.post, args=(CHAT, {"messages": QUESTION}))
        asking.start()
        seen = {0}
        while asking.is_alive():
            seen.add(server.ask("GET", "/load").json["server_load"])
        asking.join()
    assert seen == {0, 1}


def test_metrics_of_adapters() -> None:
    """The server has vLLM's gauge of the adapters that have requests, because routers read it."""
    from gemlet.server.settings import ModelSpec, Settings

    folder = str(GOLDEN / "gemma3-270m")
    spec = ModelSpec("m", folder, adapters={"poems": str(GOLDEN / "adapters/gemma3-plain")})

    def gauge(server: RunningServer) -> tuple[dict[str, str], float]:
        text = server.ask("GET", "/metrics").body.decode()
        [found] = re.findall(r"^vllm:lora_requests_info{(.*)} (\S+)$", text, re.MULTILINE)
        return dict(re.findall(r'(\w+)="([^"]*)"', found[0])), float(found[1])

    with serving(Settings(vllm_metrics=True), [spec]) as server:
        before, seen = time.time(), []
        for model in ("poems", "m"):  # requests to the model without an adapter do not count
            with saying(0.3, chunk(Content("a")), 0.3, chunk(Content("b"), reason="stop")):
                body = {"model": model, "prompt": [2, 5], "max_tokens": 2}
                asking = threading.Thread(target=server.post, args=("/v1/completions", body))
                asking.start()
                while asking.is_alive():
                    labels, at = gauge(server)
                    assert labels.pop("max_lora") == "1"
                    assert before <= at <= time.time()
                    names = (labels["waiting_lora_adapters"], labels["running_lora_adapters"])
                    seen += [names] if names not in seen[-1:] else []
                asking.join()
    assert [names for names in seen if any(names)] == [("poems", ""), ("", "poems")]


def test_metrics() -> None:
    from gemlet.server.settings import Settings

    with serving(Settings(vllm_metrics=True)) as server:
        body = {"messages": QUESTION, "max_tokens": 5, "ignore_eos": True}
        usage = server.post(CHAT, body).json["usage"]
        server.post(CHAT, {**body, "stream": True})
        server.post(CHAT, {**body, "n": 0})
        server.wait_idle()
        answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()

    def value(name: str, **labels: str) -> float:
        inside = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        found = re.search(rf"^{re.escape(name)}{{{re.escape(inside)}}} (\S+)$", text, re.MULTILINE)
        assert found, f"{name} {inside}\n{text}"
        return float(found[1])

    model = {"engine": "0", "model_name": "demo"}
    for prefix in ("gemlet", "vllm"):
        assert value(f"{prefix}:generation_tokens_total", **model) == 10
        assert value(f"{prefix}:prompt_tokens_total", **model) == 2 * usage["prompt_tokens"]
        assert value(f"{prefix}:request_success_total", **model, finished_reason="length") == 2
        assert value(f"{prefix}:time_to_first_token_seconds_count", **model) == 2
        assert value(f"{prefix}:num_requests_running", **model) == 0
        assert value(f"{prefix}:steps_total", **model) >= 4  # a step may generate several tokens
        assert value(f"{prefix}:memory_weights_bytes", **model) > 10**6
        for name in (
            *("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"),
            "request_inference_time",
        ):
            assert value(f"{prefix}:{name}_seconds_count", **model) == 2
        assert value(f"{prefix}:inter_token_latency_seconds_count", **model) == 8
        assert value(f"{prefix}:inter_token_latency_seconds_bucket", **model, le="+Inf") == 8
        assert 0 < value(f"{prefix}:inter_token_latency_seconds_sum", **model) < 60
        assert 0 <= value(f"{prefix}:kv_cache_usage_perc", **model) < 1
        [labels] = re.findall(rf"^{prefix}:cache_config_info{{(.*)}} 1.0$", text, re.MULTILINE)
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert int(found.pop("num_gpu_blocks")) > 100
        assert found == {**model, "block_size": "64", "cache_dtype": "bf16"}
    assert value("gemlet:http_responses_total", route=CHAT, status="200") == 2
    assert value("gemlet:http_responses_total", route=CHAT, status="400") == 1


def test_metrics_do_not_contain_paths_that_clients_invent(server: RunningServer) -> None:
    for i in range(5):
        assert server.ask("GET", f"/secret-{i}").status == 404
    server.wait_idle()
    assert b"secret" not in server.ask("GET", "/metrics").body


def test_unknown_fields(server: RunningServer) -> None:
    from gemlet.server.settings import Settings

    body = {"messages": QUESTION, "max_tokens": 1}
    answer = server.post(CHAT, {**body, "temprature": 0.5})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "unknown_field",
        "temprature",
    )
    assert "did you mean temperature?" in answer.error["message"]
    half = server.post(CHAT, b'{"half \\ud83d": 1}')
    assert (half.status, half.error["code"]) == (400, "unknown_field")
    assert server.post(CHAT, {**body, "surprise": None, "other": [], "more": {}}).status == 200
    with serving(Settings(unknown_fields="ignore")) as open_:
        assert open_.post(CHAT, {**body, "temprature": 0.5}).status == 200
        assert open_.post(CHAT, {**body, "guided_regex": "x"}).status == 400


def test_errors_name_unsupported_fields(server: RunningServer) -> None:
    body = {"messages": QUESTION, "max_tokens": 1}
    for name, value in {
        "grammar": "start: x",
        "guided_json": {"type": "object"},
        "best_of": 2,
        "functions": [{"name": "f"}],
        "web_search_options": {"x": 1},
        "audio": {"voice": "x"},
    }.items():
        answer = server.post(CHAT, {**body, name: value})
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, name, "unsupported")
    nothing = {
        "response_format": {"type": "text"},
        "n": 1,
        "modalities": ["text"],
        "user": "x",
        "store": True,
    }
    assert server.post(CHAT, {**body, **nothing}).status == 200


def test_errors_name_the_place_in_a_field(server: RunningServer) -> None:
    for message, place in (
        ({"role": "user", "content": 5}, "messages[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "tool", "tool_call_id": "x", "content": "y"}, "messages[0]"),
    ):
        answer = server.post(CHAT, {"messages": [message], "max_tokens": 1})
        assert (answer.status, answer.error["param"]) == (400, place)
    assert server.post("/v1/embeddings", {"input": "x"}).error["param"] == "model"


def test_the_published_document(server: RunningServer) -> None:
    """The OpenAPI document has every route and every field. It says which fields are ignored or refused."""
    from gemlet.server.app import ROUTES

    found = server.ask("GET", "/openapi.json").json
    assert found["openapi"] == "3.1.0"
    assert sum(len(operations) for operations in found["paths"].values()) == len(ROUTES)
    body = found["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["messages"]
    assert body["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 16}
    assert body["properties"]["best_of"]["description"].startswith("not supported: ")
    assert body["properties"]["user"] == {"description": "accepted, and changes nothing"}
    assert body["additionalProperties"] is False


def test_settings_in_a_file(tmp_path: Path) -> None:
    from gemlet.server.settings import ModelSpec, Settings, read_file_of_settings

    path = tmp_path / "serve.toml"
    path.write_text(
        '[server]\nport = 9000\nmax_body = "4MB"\n[models.small]\nsource = "folder"\nweights = "q4"\n'
        '[models.small.adapters]\nmine = "adapter"\n[models.demo]\n'
    )
    values, specs = read_file_of_settings(str(path))
    assert Settings(**values).max_body == 4_000_000
    assert specs == [
        ModelSpec("small", "folder", {"weights": "q4"}, {"mine": "adapter"}),
        ModelSpec("demo"),
    ]
    for wrong, message in (
        ("[server]\nprot = 1", "did you mean port"),
        ("[models.x]\nwieghts = 'q4'", "did you mean weights"),
        ("[models.x]\nweights = 'q7'", "weights is 'q7'"),
        ("[modles]", "did you mean models"),
        ("[server", "is not TOML"),
        ("[models.x]\nsource = 5", "source of [models.x]: got 5, expected a text"),
        ("[models.'a b']", "alias"),
        ("server = 5", "tables"),
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=re.escape(message)):
            read_file_of_settings(str(path))
    for name, value in (("port", 70000), ("ping_seconds", "soon"), ("max_body", 5), ("unknown_fields", "x")):
        with pytest.raises(InvalidRequestError, match=name):
            Settings(**{name: value})


def test_a_settings_file_accepts_every_flag(tmp_path: Path) -> None:
    from gemlet.loading.options import LoadOptions, command_line
    from gemlet.server.settings import read_file_of_settings

    path = tmp_path / "serve.toml"
    values = {name: getattr(LoadOptions, name) for name in command_line()}
    given = {name: value for name, value in values.items() if isinstance(value, str | bool)}
    assert {"device", "weights", "vision", "cache"} <= given.keys()
    path.write_text("[models.x]\n" + "".join(f"{n} = {json.dumps(v)}\n" for n, v in given.items()))
    assert read_file_of_settings(str(path))[1][0].options == given
    for name in values.keys() - given.keys():
        path.write_text(f"[models.x]\n{name} = []")
        try:
            read_file_of_settings(str(path))
        except GemletError as error:
            assert "has no key" not in str(error)  # noqa: PT017  the error is about the value, not about the key


def test_serve_can_check_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[server]\nport = 9000\n[models.demo]\nweights = 'q8'\n")
    assert main(["serve", "--config", str(path), "--check", "--drain-seconds", "5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["server"]["port"], shown["server"]["drain_seconds"]) == (9000, 5)
    assert list(shown["models"]) == ["demo"]
    assert main(["serve", "--check", "--model", f"x={tmp_path}", "--keys", str(tmp_path / "no.db")]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2
    path.write_text("[models.demo]\nchat_template = '/none'\n[models.x]\n[models.x.adapters]\ny = '/none'\n")
    assert main(["serve", "--check", "--config", str(path)]) == 1
    template, adapter = json.loads(capsys.readouterr().out)["problems"]
    assert template.startswith("models.demo: /none: ")
    assert adapter.startswith("models.x.adapters.y: /none: ")
    assert main(["serve", "--check", "--model", "demo=", "--model", "demo="]) == 1
    assert main(["serve", "--check", "--host", "0.0.0.0"]) == 1
    assert main(["serve", "--check", "--config", str(path), "--weights", "q4"]) == 1


def test_stopping_waits_for_replies() -> None:
    from gemlet.chat import Content
    from gemlet.server.settings import Settings

    with serving(Settings(drain_seconds=20)) as server, saying(0.6, chunk(Content("Yes"), reason="stop")):
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(server.post(CHAT, {"messages": QUESTION})))
        thread.start()
        while not server.running():
            time.sleep(0.01)
        server.server.should_exit = True
        thread.join(PATIENCE)
    assert answers[0].json["choices"][0]["message"]["content"] == "Yes"


def test_stopping_waits_at_most_for_the_time_limit() -> None:
    from gemlet.server.settings import Settings

    with serving(Settings(drain_seconds=0.3)) as server, saying(2 * PATIENCE) as begun:
        thread = threading.Thread(target=lambda: _ignore(server))
        thread.start()
        until(lambda: begun)
        server.server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert begun[0].was_closed


def _ignore(server: RunningServer) -> None:
    with contextlib.suppress(OSError):
        server.post(CHAT, {"messages": QUESTION})


def test_the_command() -> None:
    """``gemlet serve`` answers and writes its log as lines of JSON. SIGTERM ends it with the exit code 0."""
    command = [sys.executable, "-m", "gemlet", "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment_of(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert found
        server = RunningServer(int(found[1]), None)
        until(lambda: server.ask("GET", "/ready").status == 200)
        assert server.post(CHAT, {"messages": QUESTION, "max_tokens": 2}).status == 200
        os.kill(process.pid, signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert "request" in events
    assert "ready" in events


def test_the_server_has_a_field_for_every_option_of_the_library() -> None:
    from gemlet.server.fields import GENERATION

    options = {field.name for field in dataclasses.fields(gemlet.GenerationConfig)}
    assert GENERATION.keys() == options - {"max_tokens", "logprobs", "prompt_logprobs"}
