"""Tests of replicas on Ray: their answers, a replica that is killed under load, batches, and the router,
which recognizes requests with the same beginning. The tests are skipped without the extra ``ray``."""

from __future__ import annotations

import json

import pytest

from gemlet.errors import InvalidRequestError
from support.processes import run_program
from support.programs.replicas import answer_with_ray_data, serve_and_kill

pytestmark = [pytest.mark.slow, pytest.mark.extra("ray"), pytest.mark.extra("serve")]


def test_killing_one_of_two_replicas_loses_no_service() -> None:
    found = run_program(serve_and_kill, timeout=300)
    assert found["page"][0] == 200
    assert b"<title>gemlet" in found["page"][1]
    assert len(set(found["texts"])) == 1
    assert found["stream"].endswith(b"data: [DONE]\n\n")
    assert found["wrong"] == 400
    assert len(found["before"]) == 2
    assert set(found["statuses"]) == {"200"}, found["statuses"]
    assert found["statuses"]["200"] > 20
    assert found["after"] != found["before"]


def test_ray_data() -> None:
    body = {"prompt": "The door", "max_tokens": 5}
    lines = [
        json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body})
        for i in range(20)
    ]
    answers = run_program(answer_with_ray_data, [*lines, "no JSON"], timeout=300)
    assert sorted(a["custom_id"] for a in answers) == sorted(["", *map(str, range(20))])
    for answer in answers:
        if answer["custom_id"]:
            assert answer["response"]["status_code"] == 200
            assert answer["response"]["body"]["usage"]["completion_tokens"] <= 5
        else:
            assert answer["error"]["code"] == "invalid_line"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's use of pydantic causes these warnings
def test_requests_with_the_same_beginning_are_recognized() -> None:
    from gemlet.replicas.request import Request
    from gemlet.replicas.router import beginnings

    def names(body: bytes, key: bytes = b"a") -> list[bytes]:
        headers = ((b"host", b"x"), (b"Authorization", key))
        return beginnings(Request("POST", "/v1/messages", headers=headers, body=body))

    long = bytes(range(256)) * 8
    assert len(names(long)) == 4
    assert names(long)[-3:] == names(long[:1536])
    assert set(names(long)) & set(names(long, b"b")) == set()
    assert set(names(long)) & set(names(b"x" + long)) == set()
    assert names(b"") == []


def test_wrong_arguments_are_named() -> None:
    from gemlet.replicas import build

    for arguments, message in [
        ({"replicas": "two"}, "replicas: got 'two', expected a whole number of at least 1"),
        ({"replicas": "0"}, "replicas: got '0', expected"),
        ({"cpus": "-1"}, "cpus: got '-1', expected a number above 0"),
        ({"cpus": "nan"}, "cpus: got 'nan', expected"),
        ({"copies": "2"}, "arguments: got copies; expected only config, cpus, replicas"),
    ]:
        with pytest.raises(InvalidRequestError, match=message):
            build(arguments)
