"""Tests of sessions. A session is a conversation or a text that continues. It computes only new tokens, and
can be saved for another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gemlet
from support.waiting import until

OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
# More tokens than the sliding window of the demo model.
LONG = "The wind blew over the hills and the old house was dark. " * 24


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(weights="f32", kv_cache="f32", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def fresh() -> Iterator[gemlet.Model]:
    """The same model, without a prefix cache."""
    with gemlet.load(weights="f32", kv_cache="f32", threads=1, prefix_cache=False) as loaded:
        yield loaded


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("opening", ["Who was there?", LONG], ids=["short", "beyond the window"])
def test_a_turn_computes_only_new_tokens(model: gemlet.Model, fresh: gemlet.Model, opening: str) -> None:
    """The result equals the result of a model that computes the whole conversation again."""
    session = model.session()
    before = 0
    for text in (opening, "And then?", "Why?"):
        messages = [*session.messages, user(text)]
        reply = session.chat(text, **OPTIONS)
        expected = fresh.chat(messages, **OPTIONS)
        assert (reply.token_ids, expected.cached_tokens) == (expected.token_ids, 0)
        assert session.messages == [*messages, reply.message]
        if before:
            assert reply.cached_tokens >= before - 1
        before = reply.prompt_tokens
    assert reply.prompt_tokens - reply.cached_tokens < 32


def test_a_streamed_reply_is_added_when_the_stream_ends(model: gemlet.Model) -> None:
    session = model.session([{"role": "system", "content": "Answer."}])
    stream = session.stream_chat("Who is it?", **OPTIONS)
    next(stream)
    with pytest.raises(gemlet.InvalidRequestError, match="still generating the session's last reply"):
        session.chat("And then?")
    with pytest.raises(gemlet.InvalidRequestError, match="still generating the session's last reply"):
        _ = session.messages
    stream.close()
    assert session.messages[1:] == [user("Who is it?"), stream.result.message]


def test_dropping_a_stream_ends_the_turn(model: gemlet.Model) -> None:
    options: dict[str, Any] = OPTIONS | {"max_tokens": 500, "ignore_eos": True}
    session, text = model.session(), model.session()
    for chunk in session.stream_chat("Who is it?", **options):  # noqa: B007
        break
    until(lambda: not model.stats()["running"])
    assert session.chat("And then?", **OPTIONS).completion_tokens > 0
    roles = [message["role"] for message in session.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert session.messages[1]["content"] == chunk.text
    text.stream("The door", **options)  # the stream is dropped before its first token
    assert text.token_ids == []
    for number, _ in enumerate(text.stream("The door", **options)):
        if number == 2:
            break
    before = text.token_ids
    assert model.tokenizer is not None
    assert len(before) == len(model.tokenizer.encode("The door")) + 3
    assert text.generate(" opened", **OPTIONS).prompt_tokens > len(before)


def test_a_turn_without_a_token_adds_no_message(model: gemlet.Model) -> None:
    session = model.session()
    session.stream_chat("Who is it?").close()
    with pytest.raises(gemlet.InvalidRequestError):
        session.chat([{"role": "nobody", "content": "x"}])
    with pytest.raises(gemlet.InvalidRequestError):
        session.chat("x", max_tokens=0)
    assert session.messages == []


def test_several_messages_in_one_turn(model: gemlet.Model) -> None:
    session = model.session()
    session.chat([user("Who is it?"), {"role": "assistant", "content": "I."}, user("Who?")], **OPTIONS)
    assert [message["role"] for message in session.messages] == ["user", "assistant", "user", "assistant"]
    session.messages.clear()  # changes only a copy
    assert len(session.messages) == 4


def test_a_session_continues_its_text(model: gemlet.Model, fresh: gemlet.Model) -> None:
    session = model.session()
    first = session.generate("The door opened", **OPTIONS)
    second = session.generate(" and then", **OPTIONS)
    assert second.cached_tokens >= first.prompt_tokens + first.completion_tokens - 1
    ids = [*model.tokenizer.encode("The door opened"), *first.token_ids]  # type: ignore[union-attr]
    ids += model.tokenizer.encode(" and then", add_bos=False)  # type: ignore[union-attr]
    assert second.token_ids == fresh.generate(ids, **OPTIONS).token_ids
    assert session.token_ids == [*ids, *second.token_ids]
    third = session.generate([7, 8, 9], **OPTIONS)
    assert third.prompt_tokens == second.prompt_tokens + second.completion_tokens + 3


@pytest.mark.parametrize("echo", [False, True])
def test_a_text_continues_after_the_shown_text(model: gemlet.Model, echo: bool) -> None:
    """The stop strings are all parts of a text with one to three characters. Some are inside a token, and
    others span several tokens."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt = "The door opened"
    text = model.generate(prompt, **OPTIONS).text
    stops = {text[i : i + size] for i in range(len(text)) for size in (1, 2, 3)}
    for stop in sorted(stops):
        session = model.session()
        result = session.generate(prompt, stop=[stop], echo=echo, **OPTIONS)
        shown = result.text.removeprefix(prompt) if echo else result.text
        assert stop not in shown
        assert tokenizer.decode(session.token_ids) == prompt + shown


def test_a_text_without_a_stop_string_keeps_its_tokens(model: gemlet.Model) -> None:
    session = model.session()
    result = session.generate("The door opened", stop=["never written"], **OPTIONS)
    assert session.token_ids[-result.completion_tokens :] == result.token_ids


def test_sessions_do_not_mix_chat_and_text(model: gemlet.Model) -> None:
    talk, text = model.session(), model.session()
    talk.chat("Who?", **OPTIONS)
    text.generate("Who", **OPTIONS)
    with pytest.raises(gemlet.InvalidRequestError, match="is a conversation"):
        talk.generate("Who")
    with pytest.raises(gemlet.InvalidRequestError, match="is a text"):
        text.chat("Who?")
    with pytest.raises(gemlet.InvalidRequestError, match="to session"):
        talk.chat("Who?", adapter="mine")
    with pytest.raises(gemlet.InvalidRequestError, match="whole replies"):
        talk.chat("Who?", continue_final_message=True)
    with pytest.raises(gemlet.InvalidRequestError, match="adapter"):
        model.session(adapter="missing")
    with pytest.raises(gemlet.InvalidRequestError):
        model.session("Who?")  # type: ignore[arg-type]


@pytest.mark.parametrize("opening", ["Who is it?", LONG], ids=["short", "beyond the window"])
def test_saved_and_loaded_in_another_process(
    model: gemlet.Model, fresh: gemlet.Model, tmp_path: Path, opening: str
) -> None:
    session = model.session()
    first = session.chat(opening, **OPTIONS)
    path = tmp_path / "talk"
    session.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with gemlet.load(weights="f32", kv_cache="f32", threads=1) as other:
        again = other.load_session(path)
        assert again.messages == session.messages
        assert again.token_ids == session.token_ids
        reply = again.chat("And then?", **OPTIONS)
        assert reply.cached_tokens >= first.prompt_tokens - 1
    expected = fresh.chat([*session.messages, user("And then?")], **OPTIONS)
    assert reply.token_ids == expected.token_ids
    with gemlet.load(weights="q8", threads=1) as other:  # the keys and values of this model differ
        again = other.load_session(path)
        assert again.messages == session.messages
        assert again.chat("And then?", **OPTIONS).cached_tokens == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk"]


def test_a_saved_text_can_be_continued(model: gemlet.Model, tmp_path: Path) -> None:
    session = model.session()
    session.generate("The door opened", **OPTIONS)
    session.save(tmp_path / "text")
    again = model.load_session(tmp_path / "text")
    options = {**OPTIONS, "max_tokens": 5}
    assert again.generate(" and", **options).token_ids == session.generate(" and", **options).token_ids


def test_an_empty_session_is_saved(model: gemlet.Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty")
    assert model.load_session(tmp_path / "empty").messages == []


def test_a_saved_session_keeps_its_adapter(tmp_path: Path) -> None:
    folder = "tests/golden/adapters/gemma3-plain"
    with gemlet.load("tests/golden/gemma3-270m") as model:
        model.load_adapter(folder, name="mine")
        session = model.session(adapter="mine")
        session.generate([2, 7, 11] * 30, **OPTIONS)
        session.save(tmp_path / "text")
    with gemlet.load("tests/golden/gemma3-270m") as model:
        with pytest.raises(gemlet.InvalidRequestError, match="mine"):
            model.load_session(tmp_path / "text")
        model.load_adapter(folder, name="mine")
        again = model.load_session(tmp_path / "text")
        assert again.generate([9], **OPTIONS).cached_tokens > 90
        assert again.token_ids[: len(session.token_ids)] == session.token_ids


def test_another_model_loads_only_the_messages_of_a_session(model: gemlet.Model, tmp_path: Path) -> None:
    """A chat is saved as messages, so a model with another vocabulary or a shorter context can load it. A
    text is saved only as tokens, which need the same vocabulary."""
    talk, text = model.session(), model.session()
    talk.chat(LONG, **OPTIONS)
    text.generate("The door opened", **OPTIONS)
    talk.save(tmp_path / "talk")
    text.save(tmp_path / "text")
    with gemlet.load(weights="q8", threads=1, max_context=64) as other:
        assert other.load_session(tmp_path / "talk").messages == talk.messages
        assert other.load_session(tmp_path / "text").token_ids == text.token_ids
    with gemlet.load("tests/golden/gemma3-270m", threads=1) as other:
        assert other.load_session(tmp_path / "talk").messages == talk.messages
        with pytest.raises(gemlet.ModelFileError, match="vocabulary of 4096 tokens"):
            other.load_session(tmp_path / "text")


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"", "not a session"),
        (lambda data: b"hello\n" + data, "not a session"),
        (lambda data: data.replace(b"session 1 ", b"session 2 ", 1), "version 2"),
        (lambda data: data[:100], "cut short"),
        (lambda data: data.replace(b"conversation", b"conversatioX", 1), "kind"),
        (lambda data: data[:-7], "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: data + b"more", "damaged"),
        (lambda data: data.replace(b'"role": "user"', b'"role": [[[[]]]', 1), "talk"),
    ],
)
def test_damaged_files_are_refused(model: gemlet.Model, tmp_path: Path, change: Change, match: str) -> None:
    session = model.session()
    session.chat(LONG, **OPTIONS)
    path = tmp_path / "talk"
    session.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(gemlet.ModelFileError, match=match) as raised:
        model.load_session(path)
    assert str(path) in str(raised.value)


def test_paths_without_a_session(model: gemlet.Model, tmp_path: Path) -> None:
    with pytest.raises(gemlet.ModelFileError, match="No such file"):
        model.load_session(tmp_path / "missing")
    with pytest.raises(gemlet.ModelFileError):
        model.load_session(tmp_path)
    with pytest.raises(gemlet.ModelFileError, match="cannot be written: No such file"):
        model.session().save(tmp_path / "missing" / "talk")


def test_a_closed_model(tmp_path: Path) -> None:
    model = gemlet.load(threads=1)
    session = model.session()
    session.chat("Who?", **OPTIONS)
    model.close()
    with pytest.raises(gemlet.ModelClosedError):
        session.chat("Who?")
    with pytest.raises(gemlet.ModelClosedError):
        model.session()
    with pytest.raises(gemlet.ModelClosedError):
        session.save(tmp_path / "talk")
    assert len(session.messages) == 2
