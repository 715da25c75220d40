"""Tests of the content filter: the words and patterns that it finds, the text that it holds back, and the
answers that clients of each dialect get."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.chat import Content, Reasoning, ToolCall
from gemlet.errors import ConfigError
from gemlet.generation import TokenLogprob
from support.extras import optional
from support.pace import assert_quick
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import until

openai, anthropic, ollama = map(optional, ("openai", "anthropic", "ollama"))
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve"), pytest.mark.extra("filter")]
GOOD: Any = [{"role": "user", "content": "Who is there?"}]
BAD: Any = [{"role": "user", "content": "Is it a Goblin?"}]
LONG = "All is well in the old house. " * 20  # this text is longer than the window of the filter
PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
]


def settings(folder: Path, **more: Any) -> Any:
    from gemlet.server.settings import Settings

    (folder / "words").write_text("# a comment\n\ngoblin\nred hat\nÄrger\n", encoding="utf-8")
    (folder / "patterns").write_text("sk-[a-z0-9]{8,}\n(?i)SECRET\\d+$\n")
    return Settings(filter_words=str(folder / "words"), filter_patterns=str(folder / "patterns"), **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(settings(tmp_path_factory.mktemp("lists"), filter_window=30)) as running:
        yield running


# --- words and patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A goblin.", "words"),
        ("GOBLIN", "words"),
        ("gob\u200blin", "words"),
        ("\uff27\uff4f\uff42lin", "words"),
        ("the red\n  hat", "words"),
        ("so viel ÄRGER!", "words"),
        ("so viel A\u0308rger!", "words"),
        ("goblins hobgoblin goblin_1 2goblin", None),
        ("ärgerlich", None),
        ("key sk-abcdefgh1", "patterns"),
        ("key sk-abc", None),
        ("my secret12", "patterns"),
        ("my secret12 is", None),
        ("\ud83d goblin \udc00", "words"),
        ("", None),
    ],
)
def test_the_word_lists_find_words_and_patterns(text: str, found: str | None) -> None:
    from gemlet.server.word_lists import WordList

    lists = WordList(["goblin", "red hat", "Ärger"], ["sk-[a-z0-9]{8,}", r"(?i)SECRET\d+$"])
    assert lists.search(text) == found


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(a|b)*a(a|b){12}c", "(.*)*x", "(?:a?){30}a{30}", r"(\w+\s?)+$"]
)
def test_patterns_take_linear_time(pattern: str) -> None:
    from gemlet.server.word_lists import WordList

    lists = WordList([], [pattern])
    texts = ("a" * 200_000 + "!", "ab" * 100_000, "a b" * 60_000)
    assert_quick(lambda: [lists.search(text) for text in texts], 5)


@pytest.mark.parametrize("pattern", ["[", "(?=x)", r"(a)\1", "(x{1000}){1000}", "(?:(?:x{30}){30}){9}", "*"])
def test_patterns_that_are_refused(pattern: str, tmp_path: Path) -> None:
    from gemlet.server.word_lists import WordList

    with pytest.raises(ConfigError, match="pattern"):
        WordList([], [pattern])


def test_files_that_are_not_lists_are_refused(tmp_path: Path) -> None:
    from gemlet.server.word_lists import read_lines

    place = tmp_path / "list"
    for data, message in (
        (b"\xff\n", "UTF-8"),
        (b"x" * 1001, "longer than"),
        (b"x\n" * 20_001, "at most"),
    ):
        place.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            read_lines(str(place), "words")
    with pytest.raises(gemlet.ModelFileError):
        read_lines(str(tmp_path / "none"), "words")
    place.write_bytes("\ufeffone\r\ntwo words\r\n".encode())
    assert read_lines(str(place), "words") == ["one", "two words"]


# --- text that is held back ---------------------------------------------------------------------------------


def gate(words: Sequence[str], patterns: Sequence[str], window: int) -> Any:
    from gemlet.server.content_filter import ListFilter, ReplyGate, Said
    from gemlet.server.word_lists import WordList

    check = ListFilter(WordList(words, patterns), window).reply(Said([]))
    return ReplyGate([check], lambda rule: True, "block")


def shown(
    events: Sequence[Sequence[Any]], words: Sequence[str], patterns: Sequence[str] = ()
) -> tuple[list[Any], bool]:
    """Sends the events of each step through a gate. Returns the events that the gate lets through, and
    whether the gate blocked the reply."""

    async def main() -> tuple[list[Any], bool]:
        through, found = gate(words, patterns, 12), []
        steps = [chunk(*step) for step in events] + [chunk(reason="stop")]
        for step in steps:
            passed = await through.through(step)
            if passed is None:
                return found, True
            found += passed.events
        return found, False

    return asyncio.run(main())


def texts(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


@pytest.mark.parametrize(
    "text", ["A goblin is here, look at it.", "x" * 50 + " goblin", "goblin", "a goblin"]
)
def test_a_word_is_found_when_it_arrives_in_pieces(text: str) -> None:
    random_ = random.Random(text)
    for _ in range(60):
        cuts = sorted(random_.choices(range(len(text) + 1), k=random_.randrange(8)))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        events, blocked = shown([[Content(piece)] for piece in pieces], ["goblin"])
        assert blocked
        assert "g" not in texts(events)
        assert text.startswith(texts(events))


def test_allowed_text_gets_through_completely() -> None:
    random_ = random.Random(3)
    text = "A hobgoblin and goblins, a gob and a lin. " * 5 + "gobl"
    for _ in range(60):
        cuts = sorted(random_.choices(range(len(text) + 1), k=random_.randrange(30)))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        events, blocked = shown([[Content(piece)] for piece in pieces], ["goblin"], ["^x", "n$"])
        assert not blocked
        assert texts(events) == text


def test_checked_text_is_shown_at_once() -> None:
    async def main() -> list[int]:
        through, counts, count = gate(["goblin"], [], 12), [], 0
        for _ in range(40):
            passed = await through.through(chunk(Content("word ")))
            count += len(texts(passed.events))
            counts.append(count)
        return counts

    assert asyncio.run(main()) == [max(0, 5 * i - 12) for i in range(1, 41)]


def test_invisible_letters_do_not_hide_a_word() -> None:
    pieces = [Content("a go"), *[Content("\u200b" * 50)] * 3, Content("blin is here and more")]
    events, blocked = shown([[piece] for piece in pieces], ["goblin"])
    assert blocked
    assert texts(events).strip() in ("", "a")


def test_text_that_may_still_match_is_held_back() -> None:
    events, blocked = shown([[Content("see ")], *[[Content("sk-" + "a" * 40)]] * 9], [], ["sk-[^ ]*x"])
    assert not blocked
    events, blocked = shown(
        [[Content("see ")], *[[Content("sk-" + "a" * 40)]] * 9, [Content(" ")]], [], ["sk-[^ ]*"]
    )
    assert blocked
    assert texts(events) in ("", "see ", "see")


def test_thoughts_and_calls_are_checked_too() -> None:
    call = ToolCall("hunt", {"what": "goblin"})
    for bad in (Reasoning("a goblin "), call):
        events, blocked = shown([[Content("well " * 9)], [bad], [Content("fine " * 9)]], ["goblin"])
        assert blocked
        assert bad not in events
    fine = [Reasoning("so many words"), Content("so few"), ToolCall("f", {"x": "y"}), Content("at the end")]
    events, blocked = shown([[event] for event in fine], ["goblin"])
    assert not blocked
    kinds = [kind for kind, _ in itertools.groupby(events, type)]
    assert kinds == [Reasoning, Content, ToolCall, Content]
    # The end of a thought and the beginning of the reply do not form a word together.
    assert shown([[Reasoning("gob")], [Content("lin")]], ["goblin"])[1] is False


def test_tokens_are_held_until_their_text_is_checked() -> None:
    """While the server holds a possible stop string back, the tokens and log probabilities of the string
    reach the gate before its text."""

    async def main(last: str) -> list[tuple[int, int] | None]:
        through, counts = gate(["goblin"], [], 12), []
        for text in ("word " * 5, "", "", last):
            step = chunk(*([Content(text)] if text else []), reason="stop" if text == last else None)
            step = dataclasses.replace(step, token_ids=[7], logprobs=[TokenLogprob(7, -1.0)])
            shown = await through.through(step)
            counts.append(None if shown is None else (len(shown.token_ids), len(shown.logprobs or [])))
        return counts

    assert asyncio.run(main("hill")) == [(0, 0), (0, 0), (0, 0), (4, 4)]
    assert asyncio.run(main("goblin")) == [(0, 0), (0, 0), (0, 0), None]


# --- answers that clients get -------------------------------------------------------------------------------


def body_of(path: str, text: str, **more: Any) -> dict[str, Any]:
    chat = [{"role": "user", "content": text}]
    said = {
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": text},
        "/api/generate": {"prompt": text, "stream": False},
        "/api/chat": {"messages": chat, "stream": False},
        "/v1/messages": {"messages": chat, "max_tokens": 5},
    }.get(path, {"messages": chat})
    return {"model": "demo", **said, **more}


def reason_of(path: str, answer: Any) -> str:
    if path.startswith("/api"):
        return str(answer["done_reason"])
    if path == "/v1/messages":
        return str(answer["stop_reason"])
    if path == "/v1/responses":
        return str(answer["incomplete_details"]["reason"])
    return str(answer["choices"][0]["finish_reason"])


@pytest.mark.parametrize("path", PATHS)
def test_prompts(server: RunningServer, path: str) -> None:
    expected = "refusal" if path == "/v1/messages" else "content_filter"
    with saying(chunk(Content("Never.")), chunk(reason="stop")) as begun:
        answer = server.post(path, body_of(path, "Is it a Goblin?"))
        assert answer.status == 200
        assert reason_of(path, answer.json) == expected
        assert b"Never" not in answer.body
        assert not begun
        assert b"Never" in server.post(path, body_of(path, "Who is there?")).body
    assert server.running() == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_replies(server: RunningServer, path: str, stream: bool) -> None:
    steps = [
        chunk(Content(LONG)),
        chunk(Content("It is a gob")),
        chunk(Content("lin. ")),
        chunk(Content("More.")),
    ]
    with saying(*steps, chunk(reason="stop")) as begun:
        answer = server.post(path, body_of(path, "Who is there?", stream=stream))
    assert answer.status == 200
    assert begun[0].was_cancelled
    until(lambda: begun[0].was_closed)  # the stream is closed after the end of the answer
    assert b"gob" not in answer.body
    assert b"More" not in answer.body
    assert b"All is well" in answer.body
    if not stream:
        assert reason_of(path, answer.json) == ("refusal" if path == "/v1/messages" else "content_filter")
    else:
        assert (b"refusal" if path == "/v1/messages" else b"content_filter") in answer.body


def test_the_real_clients(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        reply = client.chat.completions.create(model="demo", messages=BAD)
        assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("content_filter", "")
        assert reply.usage.total_tokens == 0
        chunks = list(client.chat.completions.create(model="demo", messages=BAD, stream=True, n=2))
        assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [
            "content_filter"
        ] * 2
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="demo", input=["fine", "a goblin"])
        assert caught.value.code == "content_filter"
        asked: Any = [{"type": "predicate", "instructions": "It is a goblin.", "name": "q"}]
        assert client.decisions.create(model="demo", input="x", questions=asked).answers[0].type == "refusal"
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        message = client.messages.create(model="demo", messages=BAD, max_tokens=5)
        assert (message.stop_reason, message.content) == ("refusal", [])
    client = ollama.Client(host=server.url)
    assert client.chat(model="demo", messages=BAD).done_reason == "content_filter"
    client.close()


def test_every_text_of_a_client_is_checked(server: RunningServer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "goblin"}'}}
    for messages in (
        [{"role": "system", "content": "goblin"}, *GOOD],
        [*BAD, {"role": "assistant", "content": "x"}, *GOOD],
        [*GOOD, {"role": "assistant", "content": "goblin"}, *GOOD],
        [*GOOD, {"role": "assistant", "content": "", "reasoning": "goblin"}, *GOOD],
        [*GOOD, {"role": "assistant", "content": "", "tool_calls": [call]}, *GOOD],
        [{"role": "user", "content": [{"type": "text", "text": "goblin"}]}],
    ):
        answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        assert answer.json["choices"][0]["finish_reason"] == "content_filter", messages


def test_the_filter_finds_text_in_every_place(server: RunningServer) -> None:
    """Words are found in names of properties, in a part that says that it is an image, across parts that
    become one text, and behind escapes of JSON."""

    def status(messages: Any, tools: Any = None) -> Any:
        body = {"messages": messages, "max_tokens": 1, **({"tools": tools} if tools else {})}
        answer = server.post("/v1/chat/completions", body)
        assert answer.status == 200, answer.json
        return answer.json["choices"][0]["finish_reason"]

    def tool(schema: Any) -> list[Any]:
        return [{"type": "function", "function": {"name": "f", "parameters": schema}}]

    def called(arguments: Any) -> list[Any]:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": "1", "content": "yes"}
        return [*GOOD, {"role": "assistant", "content": None, "tool_calls": [call]}, result]

    goblin, plain = {"type": "string", "description": "a goblin"}, tool({"type": "object", "properties": {}})
    for schema in (
        {"type": "object", "properties": {"goblin": {"type": "string"}}},
        {"type": "object", "properties": {"id": goblin}},
        {"type": "object", "properties": {"x": {**goblin, "type": "image_url"}}},
    ):
        assert status(GOOD, tool(schema)) == "content_filter"
    assert status(called('{"x": "gob\\u006cin"}'), plain) == "content_filter"
    assert status(called('{"gob\\u006cin": 1}'), plain) == "content_filter"
    assert status([{"role": "user", "type": "image_url", "content": "a goblin"}]) == "content_filter"
    parts = [{"type": "text", "text": text} for text in ("the gob", " lin ")]
    assert status([{"role": "user", "content": parts}]) == "content_filter"
    assert status(GOOD, tool({"type": "object", "properties": {"x": {"type": "string"}}})) != "content_filter"


@pytest.mark.extra("grammar")
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_stop_string_are_checked(server: RunningServer, stream: bool) -> None:
    body = {"prompt": "x", "structured_outputs": {"choice": ["a goblin and so"]}, "max_tokens": 30}
    body |= {"stop": ["goblin an"], "stream": stream}
    assert b"content_filter" not in server.post("/v1/completions", body).body  # the text ends before the word
    for shown in ({"logprobs": 1}, {"return_token_ids": True}):
        answer = server.post("/v1/completions", {**body, **shown}).body
        assert b"content_filter" in answer
        assert b"blin" not in answer


def test_odd_parts_do_not_break_the_filter(server: RunningServer) -> None:
    for part in ({"type": []}, {"type": {}}, {"type": None}, 5, {"type": "text", "text": {"type": []}}):
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
        assert answer.status == 400


def test_metrics_and_log(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.post("/v1/chat/completions", {"messages": BAD})
    # The log line of the previous test may come late, so this looks for a line of the filter.
    line = until(lambda: [r for r in caplog.records if "filter" in getattr(r, "fields", ())])[0]
    assert line.getMessage() == "request"
    assert line.fields["filter"] == ["prompt:words:block"]  # type: ignore[attr-defined]
    assert "oblin" not in json.dumps(line.fields)  # type: ignore[attr-defined]
    text = server.ask("GET", "/metrics").body.decode()
    labels = 'action="block",engine="0",model_name="demo",place="prompt",rule="words"'
    assert f"gemlet:content_filter_verdicts_total{{{labels}}}" in text
    assert 'finished_reason="content_filter"' in text


def test_a_filter_that_only_reports_changes_no_reply(tmp_path: Path) -> None:
    given = settings(tmp_path, filter_prompts="report", filter_replies="report")
    steps = [chunk(Content("a gob")), chunk(Content("lin")), chunk(reason="stop")]
    with serving(given) as server:
        with saying(*steps):
            answer = server.post("/v1/chat/completions", {"messages": BAD})
        assert answer.json["choices"][0]["message"]["content"] == "a goblin"
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        text = server.ask("GET", "/metrics").body.decode()
        for place in ("prompt", "reply"):
            assert f'action="report",engine="0",model_name="demo",place="{place}",rule="words"' in text


def test_a_filter_that_is_off_does_nothing(tmp_path: Path) -> None:
    given = settings(tmp_path, filter_prompts="off", filter_replies="off")
    with serving(given) as server, saying(chunk(Content("goblin")), chunk(reason="stop")):
        answer = server.post("/v1/chat/completions", {"messages": BAD})
        assert answer.json["choices"][0]["message"]["content"] == "goblin"
        assert "content_filter_verdicts_total{" not in server.ask("GET", "/metrics").body.decode()


def test_an_administrator_can_add_a_filter() -> None:
    from gemlet.server.app import make_app
    from gemlet.server.content_filter import Filter, ReplyCheck, Said
    from gemlet.server.settings import ModelSpec, Settings

    class Check(ReplyCheck):
        async def add(self, text: str, *, is_over: bool) -> str | None:
            return "mine" if "x" in text else None

    class Mine(Filter):
        async def judge(self, said: Said) -> str | None:
            return "mine" if "x" in said.last else None

        def reply(self, said: Said) -> ReplyCheck:
            return Check()

    assert make_app(Settings(), [ModelSpec("demo")], filters=[Mine()]) is not None


def test_the_option_check_reports_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gemlet.cli import main

    (tmp_path / "patterns").write_text("fine\n(?=x)\n")
    for flags, message in (
        (["--filter-patterns", str(tmp_path / "patterns")], "(?=x)"),
        (["--filter-words", str(tmp_path / "none")], "none"),
        (["--filter-model", "shield"], "filter_model"),
        (["--filter-policies", "rude"], "filter_policies"),
    ):
        assert main(["serve", "--check", *flags]) == 1
        (problem,) = json.loads(capsys.readouterr().out)["problems"]
        assert message in problem
