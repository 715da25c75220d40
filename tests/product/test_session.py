"""A conversation computes only what is new in a turn, and gives what a fresh computation gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import gemlet
from gemlet.model.session import Session

OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
# More tokens than the sliding window of the demo model.
LONG = "The wind blew over the hills and the old house was dark. " * 24


@pytest.fixture(scope="module")
def model() -> Iterator[gemlet.Model]:
    with gemlet.load(weights="f32", kv_cache="f32", threads=1) as loaded:
        yield loaded


@pytest.fixture
def session(model: gemlet.Model) -> Iterator[Session]:
    with Session(model) as opened:
        yield opened
    assert model.memory()["kv_cache"] == 0


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def turn(session: Session, model: gemlet.Model, messages: list[dict[str, Any]]) -> gemlet.Generation:
    """A reply in the session, after checking that it is the reply of a fresh computation."""
    reply = session.chat(messages, **OPTIONS)
    fresh = model.chat(messages, **OPTIONS)
    assert reply.token_ids == fresh.token_ids
    assert fresh.cached_tokens == 0
    return reply


@pytest.mark.parametrize("opening", ["Who is there?", LONG], ids=["short", "beyond the window"])
def test_a_turn_computes_only_what_is_new(model: gemlet.Model, session: Session, opening: str) -> None:
    messages = [user(opening)]
    first = turn(session, model, messages)
    assert first.cached_tokens == 0
    for _ in range(3):
        before = first.prompt_tokens + first.completion_tokens
        messages += [first.message, user("And then?")]
        second = turn(session, model, messages)
        # A last token at which the reply was cut has gone through no pass yet.
        assert second.cached_tokens in (first.prompt_tokens, before - (first.finish_reason == "length"))
        assert second.prompt_tokens - second.cached_tokens < 32
        first = second


def test_the_logits_are_those_of_a_fresh_computation(model: gemlet.Model, session: Session) -> None:
    first = session.chat([user(LONG)], **OPTIONS)
    messages = [user(LONG), first.message, user("And then?")]
    for seed in range(3):  # at temperature 2 a small difference would show in the text
        options = {"max_tokens": 20, "temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": seed}
        assert session.chat(messages, **options).token_ids == model.chat(messages, **options).token_ids


def test_another_text_of_the_reply(model: gemlet.Model, session: Session) -> None:
    first = turn(session, model, [user("Who is there?")])
    edited = [user("Who is there?"), {"role": "assistant", "content": "Nobody."}, user("And then?")]
    assert turn(session, model, edited).cached_tokens == first.prompt_tokens


def test_a_turn_that_is_taken_back(model: gemlet.Model, session: Session) -> None:
    messages = [user("Who is there?")]
    messages += [turn(session, model, messages).message]
    first = turn(session, model, [*messages, user("And then?")])
    second = turn(session, model, [*messages, user("Why?")])
    assert second.cached_tokens == first.cached_tokens > 4


def test_another_conversation(model: gemlet.Model, session: Session) -> None:
    turn(session, model, [user("Who is there?")])
    assert turn(session, model, [user("Good evening, what is it?")]).cached_tokens == 0


def test_a_turn_that_was_cut_short_is_not_lost(model: gemlet.Model, session: Session) -> None:
    messages = [user(LONG * 2)]
    stream = session.stream_chat(messages, **OPTIONS)
    next(stream)
    stream.close()
    assert turn(session, model, messages).cached_tokens == 0  # one token has to be left
    assert turn(session, model, [*messages, stream.result.message, user("And then?")]).cached_tokens > 512


def test_streams_of_one_session_at_the_same_time(model: gemlet.Model, session: Session) -> None:
    messages = [user("Who is there?")]
    streams = [session.stream_chat(messages, **OPTIONS) for _ in range(2)]
    for pair in zip(*streams, strict=True):
        assert pair[0] == pair[1]
    assert turn(session, model, [*messages, streams[0].result.message, user("Why?")]).cached_tokens > 4


def test_closing_gives_the_memory_back(model: gemlet.Model) -> None:
    with Session(model) as session:
        stream = session.stream_chat([user("Who is there?")], **OPTIONS)
        next(stream)
        assert model.memory()["kv_cache"] > 0
    stream.close()  # after the session
    assert model.memory()["kv_cache"] == 0


def test_the_model_closes_the_session() -> None:
    model = gemlet.load(threads=1)
    session = Session(model)
    session.chat([user("Who is there?")], **OPTIONS)
    model.close()
    with pytest.raises(gemlet.ModelClosedError):
        session.chat([user("Who is there?")])
    with pytest.raises(gemlet.ModelClosedError):
        Session(model)
    session.close()
