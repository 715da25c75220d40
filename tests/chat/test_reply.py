"""Reading replies: any split gives the same events, the end of the prompt decides how a reply begins, and no
marker appears in a text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat import (
    GEMMA,
    GEMMA4_MARKERS,
    Content,
    Gemma4Format,
    MalformedToolCall,
    Reasoning,
    ReplyEvent,
    ReplyParser,
    TextReplyParser,
    TokenReplyParser,
    ToolCall,
    collect,
)
from gemlet.chat.templates import CANONICAL, INTERLEAVED, TOOL_MESSAGES
from gemlet.errors import InvalidRequestError
from gemlet.tokenizer import Tokenizer
from support.replies import CALL, OSLO, QUOTE, gemma4_tokenizer, joined, read, read_ids
from support.tokenizer_files import trained_model

# --- whole replies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "events"),
    [
        ("", []),
        ("Hello.", [Content("Hello.")]),
        ("Hello.<turn|>\n", [Content("Hello.")]),
        ("<|channel>thought\nHm.\n<channel|>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        ("<|channel>thought\na\n\nb\n\n<channel|>c", [Reasoning("a\n\nb\n"), Content("c")]),
        ("<|channel>thought\n<channel|>Yes.", [Content("Yes.")]),
        ("<|channel>thought<channel|>Yes.", [Content("Yes.")]),
        ("<|channel><channel|>Yes.", [Content("Yes.")]),
        ("<|channel>Well, thoughts\n<channel|>Yes.", [Reasoning("Well, thoughts"), Content("Yes.")]),
        ("<|channel>thou<channel|>Yes.", [Reasoning("thou"), Content("Yes.")]),
        ("<|channel>thought\nno end\n", [Reasoning("no end\n")]),
        ("Yes.<channel|> No.", [Content("Yes. No.")]),
        ("a<|channel>thought\nb\n<channel|>c", [Content("a"), Reasoning("b"), Content("c")]),
        (
            "<|channel>thought\na\n<channel|><|channel>thought\nb\n<channel|>c",
            [Reasoning("a\n\nb"), Content("c")],
        ),
        (
            "<|channel>thought\na<|channel>b<|channel>thought\n\n<channel|>c",
            [Reasoning("a\n\nb"), Content("c")],
        ),
        ("<|channel>thought\n<channel|><|channel>thought\nb\n<channel|>c", [Reasoning("b"), Content("c")]),
        (
            "<|channel>thought\na\n<channel|>b" + CALL + "<|channel>thought\nc\n",
            [Reasoning("a"), Content("b"), OSLO, Reasoning("\n\nc\n")],
        ),
        (CALL, [OSLO]),
        (CALL + "<|tool_response>", [OSLO]),
        (CALL + CALL, [OSLO, OSLO]),
        ("Look:" + CALL + "Done.", [Content("Look:"), OSLO, Content("Done.")]),
        ("<|channel>thought\nHm.\n<channel|>" + CALL, [Reasoning("Hm."), OSLO]),
        ("<|channel>thought\nHm.\n" + CALL + "Yes.", [Reasoning("Hm."), OSLO, Content("Yes.")]),
        (CALL.removesuffix("<tool_call|>"), [OSLO]),
        (CALL.removesuffix("<tool_call|>") + "<|tool_response>", [OSLO]),
        (CALL.removesuffix("<tool_call|>") + CALL, [OSLO, OSLO]),
        # If the model invents another speaker's turn, or a result, this text is not part of the reply.
        ("Yes.<turn|>\n<|turn>user\nAnd?<turn|>\n<|turn>model\nNo.", [Content("Yes.")]),
        ("Yes.<|turn>user\nAnd?<turn|>\n", [Content("Yes.")]),
        ("<|turn>model\nYes.", [Content("Yes.")]),
        (CALL + "<|tool_response>response:weather{value:4}<tool_response|>4.", [OSLO, Content("4.")]),
        # A turn without a role is the reply's text.
        ("<|turn>Hello", [Content("Hello")]),
        ("<|turn>Hello\nyou", [Content("Hello\nyou")]),
        ("<|turn>Users are", [Content("Users are")]),
        ("Yes.<|turn>model", [Content("Yes.")]),
        ("Yes.<|turn>us", [Content("Yes.")]),
        ("Yes.<|turn>us<turn|>", [Content("Yes.us")]),
        ("<|turn>mod<|channel>thought\na<channel|>b", [Content("mod"), Reasoning("a"), Content("b")]),
        ("<|turn>use<channel|>r\nb", []),
        ("<|turn>\nYes.", [Content("Yes.")]),
        ("<|turn>" + " " * 60 + "Yes.", [Content(" " * 60 + "Yes.")]),
        ("<bos>a<pad>b<|think|>c<|tool>d<tool|>e<tool_call|>f<tool_response|>g", [Content("abcdefg")]),
        ("a<eos>b", [Content("a")]),
        ("a <|tool_call b <|x> <", [Content("a <|tool_call b <|x> <")]),
    ],
)
def test_replies(reply: str, events: list[ReplyEvent]) -> None:
    assert read(reply) == events
    assert read_ids(gemma4_tokenizer().encode(reply, add_bos=False)) == events


def test_collect_joins_the_events_of_a_reply() -> None:
    events = read("<|channel>thought\nHm.\n<channel|>Look: " + CALL + "<|tool_call>x<tool_call|>done")
    reply = collect(events)
    assert (reply.reasoning, reply.tool_calls) == ("Hm.", [OSLO])
    assert reply.content == "Look: <|tool_call>x<tool_call|>done"
    assert [bad.raw for bad in reply.malformed] == ["x"]


def test_ids_tell_markers_from_text_that_spells_them() -> None:
    tokenizer = gemma4_tokenizer()
    spelled = "<|channel>thought\n" + CALL + "<turn|>"
    ids = tokenizer.encode(spelled, add_bos=False, allow_control=False)
    assert read_ids(ids) == [Content(spelled)]
    inside = tokenizer.encode("<|channel>thought\n", add_bos=False) + ids
    assert read_ids(inside) == [Reasoning(spelled)]


def test_half_a_character_before_a_marker() -> None:
    tokenizer = gemma4_tokenizer()
    first = tokenizer.piece_to_id("<0xF0>")
    marker = tokenizer.token_id("<|tool_call>")
    assert first is not None
    assert marker is not None
    events = read_ids([first, marker, *tokenizer.encode("call:f{}", add_bos=False)])
    assert events == [Content("\ufffd"), ToolCall("f", {})]
    assert read_ids([first]) == [Content("\ufffd")]


def test_values_that_are_not_ids() -> None:
    parser = TokenReplyParser(gemma4_tokenizer(), GEMMA4_MARKERS)
    with pytest.raises(InvalidRequestError, match="out of range"):
        parser.push([300_000])


# --- where the prompt ends ----------------------------------------------------------------------------------


def user(content: str = "Weather?") -> dict[str, Any]:
    return {"role": "user", "content": content}


LOOP = [
    user(),
    {
        "role": "assistant",
        "content": None,
        "reasoning": "Hm.",
        "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "4 degrees"},
]
TALKATIVE = [LOOP[0], LOOP[1] | {"content": "Let me look."}, LOOP[2]]
NEW_TURN = "<|turn>model\n"


@pytest.mark.parametrize("revision", [INTERLEAVED, TOOL_MESSAGES, CANONICAL], ids=lambda r: str(r.name))
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("messages", [[user()], LOOP, LOOP[:2], TALKATIVE])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_reply_begins_where_the_prompt_ends(
    revision: Any, thinking: bool, messages: list[Any], add_generation_prompt: bool
) -> None:
    tokenizer = gemma4_tokenizer()
    chat_format = Gemma4Format(revision, True)
    options: Any = {"thinking": thinking, "add_generation_prompt": add_generation_prompt}
    text = chat_format.render(messages, **options)
    ids = chat_format.encode_chat(tokenizer, messages, **options)
    reply = "It is 4.\n<channel|>\n" + CALL
    first: ReplyEvent = Content("It is 4.\n\n")
    expected: list[ReplyEvent] = [first, OSLO]
    if text.endswith("<|channel>thought\n"):  # this reply begins inside a thought
        assert revision is CANONICAL
        expected = [Reasoning("It is 4."), Content("\n"), OSLO]
    elif text.endswith("<tool_call|><|tool_response>"):  # the host writes the result
        reply = "response:weather{value:4}<tool_response|>" + reply
    assert read(reply, text) == expected
    parser = chat_format.reply_parser(tokenizer, ids)
    assert joined(parser.push(tokenizer.encode(reply, add_bos=False)) + parser.finish()) == joined(
        read(reply, text, thought_end=revision.thought_end)
    )


@pytest.mark.parametrize(
    ("prompt", "reply", "events"),
    [
        (NEW_TURN + "<|channel>thought\n", "Hm.\n<channel|>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        (NEW_TURN + "<|channel>thought\nHm,\n", "but\n<channel|>Yes.", [Reasoning("but"), Content("Yes.")]),
        (NEW_TURN + "<|channel>", "thought\nHm.\n<channel|>Yes.", [Reasoning("Hm."), Content("Yes.")]),
        (NEW_TURN + "<|channel>thought\n<channel|>", "Yes.", [Content("Yes.")]),
        (NEW_TURN + "<|tool_call>call:weather{", "days:2}<tool_call|>", [ToolCall("weather", {"days": 2})]),
        (
            NEW_TURN + f"<|tool_call>call:f{{a:{QUOTE}b",
            f"c{QUOTE}}}<tool_call|>",
            [ToolCall("f", {"a": "bc"})],
        ),
        (NEW_TURN + "Well, ", "yes.", [Content("yes.")]),
        ("<|turn>model", "\nYes.", [Content("Yes.")]),
        ("<|turn>", "model\nYes.", [Content("Yes.")]),
        ("<|turn>mod", "el\nYes.", [Content("Yes.")]),
        ("<|turn>mod", "est\nYes.", [Content("est\nYes.")]),
        ("<|turn>user", "\nYes.", [Content("Yes.")]),
        ("<|turn>mod", "el", []),
        ("<|turn>user\nHi<turn|>\n", "<|turn>model\nYes.", [Content("Yes.")]),
        ("<|turn>user\nHi<turn|>\n", "\n Yes.", [Content("Yes.")]),
        ("<|turn>model\nHi<turn|>\n", "Yes.", [Content("Yes.")]),
        ("<|turn>model\nHi<turn|>\n", CALL + "Yes.", [OSLO, Content("Yes.")]),
        ("Once upon", " a time", [Content(" a time")]),
        # Only the last turn counts.
        (NEW_TURN + "<|channel>thought\nleft open<turn|>\n" + NEW_TURN, "Yes.", [Content("Yes.")]),
    ],
)
def test_any_end_of_a_prompt(prompt: str, reply: str, events: list[ReplyEvent]) -> None:
    assert read(reply, prompt) == events
    reply_ids, prompt_ids = (gemma4_tokenizer().encode(text, add_bos=False) for text in (reply, prompt))
    assert read_ids(reply_ids, prompt_ids) == events


@pytest.mark.parametrize("revision", [INTERLEAVED, TOOL_MESSAGES, CANONICAL], ids=lambda r: str(r.name))
def test_a_reply_in_the_history_is_written_as_the_model_wrote_it(revision: Any) -> None:
    """Otherwise the model would see a changed history, and its cache could not be reused."""
    chat_format = Gemma4Format(revision, True)
    tokenizer = gemma4_tokenizer()
    prompt = chat_format.encode_chat(tokenizer, [user()], thinking=True)
    reply = tokenizer.encode("<|channel>thought\nHm.\n\n<channel|>" + CALL, add_bos=False)
    parser = chat_format.reply_parser(tokenizer, prompt)
    found = collect(parser.push(reply) + parser.finish())
    (called,) = found.tool_calls
    message = {
        "role": "assistant",
        "content": found.content,
        "reasoning_content": found.reasoning,
        "tool_calls": [{"id": "1", "function": {"name": called.name, "arguments": called.arguments}}],
    }
    history = chat_format.encode_chat(tokenizer, [user(), message, LOOP[2]], thinking=True)
    assert history[: len(prompt) + len(reply)] == prompt + reply


def test_earlier_families_have_only_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained_model())
    tokenizer = Tokenizer.from_file(path)
    prompt = GEMMA.encode_chat(tokenizer, [user()])
    parser = GEMMA.reply_parser(tokenizer, prompt)
    reply = "the rain fell <|tool_call>call:f{}<tool_call|>"
    ids = tokenizer.encode(reply + "<end_of_turn>\n<start_of_turn>user\nand?", add_bos=False)
    assert joined(parser.push(ids) + parser.finish()) == [Content(reply)]


# --- any split ----------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *GEMMA4_MARKERS,
        "thought\n",
        "model\n",
        "user\n",
        "call:f{",
        "call:g{a:1,b:[",
        "}",
        "]",
        "x:",
        "12",
        ",",
        "\n",
        "null",
        " ",
        "héllo 世界 😀",
        "<|tool",
        "<",
        "|>",
    ]
)
sound = st.sampled_from([CALL, "<|channel>thought\nHm.\n\n<channel|>", "Yes. ", "<|turn>model\n"])
streams = st.lists(pieces | sound, max_size=14).map("".join)
prompts = st.sampled_from(["", NEW_TURN, NEW_TURN + "<|channel>thought\n"]) | streams


@settings(deadline=None, max_examples=300)
@given(reply=streams, prompt=prompts, seed=st.integers(0, 2**32))
def test_any_split_of_the_text_gives_the_same_events(reply: str, prompt: str, seed: int) -> None:
    expected = read(reply, prompt)
    rng = random.Random(seed)
    parser = TextReplyParser(GEMMA4_MARKERS, prompt)
    events: list[ReplyEvent] = []
    rest = reply
    most = rng.choice([1, 3, 12])
    while rest:
        size = rng.randint(1, most)
        events += parser.push(rest[:size])
        rest = rest[size:]
    assert joined(events + parser.finish()) == expected


@settings(deadline=None, max_examples=300)
@given(reply=streams, prompt=prompts, seed=st.integers(0, 2**32))
def test_any_split_of_the_ids_gives_the_same_events(reply: str, prompt: str, seed: int) -> None:
    tokenizer = gemma4_tokenizer()
    ids, prompt_ids = (tokenizer.encode(text, add_bos=False) for text in (reply, prompt))
    rng = random.Random(seed)
    expected = read_ids(ids, prompt_ids)
    assert read_ids(ids, prompt_ids, iter(lambda: rng.randint(1, 5), 0)) == expected
    assert read(reply, prompt) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([*GEMMA4_MARKERS, "<|image|>"]) | st.text(max_size=8), max_size=20))
def test_nothing_crashes_and_no_text_appears_from_nowhere(parts: list[str]) -> None:
    parser = ReplyParser(GEMMA4_MARKERS)
    parser.begin()
    events: list[ReplyEvent] = []
    for part in parts:
        is_marker = part in GEMMA4_MARKERS or part == "<|image|>"
        events += parser.marker(part) if is_marker else parser.text(part)
    ordinary = "".join(part for part in parts if part not in GEMMA4_MARKERS)
    after_call = False
    for event in events + parser.finish():
        if isinstance(event, Reasoning):
            assert event.text.removeprefix("\n\n") in ordinary
        elif isinstance(event, Content):  # a call that cannot be read stays text
            assert event.text in ("".join(parts) if after_call else ordinary)
        after_call = isinstance(event, MalformedToolCall)
