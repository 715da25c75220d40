"""``POST /v1/decisions`` answers questions about an input with probabilities, and writes no token.

A prompt is the input, then a question with its possible answers. The decision is how probable the model finds
the label of each answer. The beginning that all prompts share, which has the input, is read once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet.server.answers import JSONAnswer, while_connected
from gemlet.server.ask import Ask
from gemlet.server.call import Call, call_of
from gemlet.server.fields import IGNORED, NAME, SALT
from gemlet.server.models import Served
from gemlet.server.problems import Problem, problem_of
from gemlet.server.response_items import conversation_of
from gemlet.server.schema import Anything, Either, Flag, Ignored, Kind, ListOf, Object, OneOf, Text, read
from gemlet.server.service import Service, fields_of, salt_of, service_of

__all__ = ["DECISIONS", "decide"]

_MOST_QUESTIONS = 400
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PART = Either(
    "an input_text or an input_json",
    Object({"type": OneOf("input_text"), "text": Text(), "prompt_cache_breakpoint": Ignored()}, ["text"]),
    Object({"type": OneOf("input_json"), "data": Either("JSON", Anything(dict), Anything(list))}, ["data"]),
)
_WORDS = Either("a text or a list of parts", Text(1 << 16, 1), ListOf(_PART, 256, 1))
_SHARED: Mapping[str, Kind] = {"name": Text(256), "instructions": _WORDS}
_TYPES: Mapping[str, Mapping[str, Kind]] = {
    "predicate": _SHARED,
    "choice": {
        **_SHARED,
        "choices": ListOf(
            Object(
                {"value": Either("a text, true or false", Flag(), Text(4096, 1)), "description": Text(4096)},
                ["value"],
            ),
            *(255, 2),
        ),
    },
    "score": {
        **_SHARED,
        "levels": ListOf(Object({"label": Text(4096, 1), "description": Text(4096)}, ["label"]), 10, 2),
    },
}


class _Question(Kind):
    """A question of one of the three types."""

    def check(self, value: Any, where: str) -> dict[str, Any]:
        kind = OneOf(*_TYPES).check(value.get("type") if isinstance(value, dict) else value, f"{where}.type")
        table = {"type": OneOf(kind), **_TYPES[kind]}
        found = read(value, table, list(_TYPES[kind].keys() - {"name"}), where=where)
        values = [(type(one["value"]), one["value"]) for one in found.get("choices", ())]
        if len(set(values)) < len(values):
            raise Problem(400, f"{where}.choices: two have the same value", param=f"{where}.choices")
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "oneOf": [
                Object({"type": OneOf(kind), **table}, ["type", *sorted(table.keys() - {"name"})]).describe()
                for kind, table in _TYPES.items()
            ]
        }


DECISIONS: Mapping[str, Kind] = {
    "model": NAME,
    "input": Either("a text or a list of items", Text(least=1), ListOf(Anything(dict), 1 << 12, 1)),
    "questions": ListOf(_Question(), _MOST_QUESTIONS, 1),
    "cache_salt": SALT,
    "prompt_cache_options": Ignored(),
    **IGNORED,
}


async def decide(request: Request) -> Response:
    service, call, fields = service_of(request), call_of(request), fields_of(request)
    served = service.find(call, fields.get("model"))
    service.metrics.begin(call)
    if await _is_refused(service, call, served, fields):
        answers: list[dict[str, Any]] = [
            {"type": "refusal", "name": question.get("name")} for question in fields["questions"]
        ]
        tokens, call.finish = 0, "content_filter"
    else:
        answers, tokens = await while_connected(request, _answers(service, request, served, fields))
        call.finish = "stop"
    call.prompt_tokens = tokens
    call.settle()
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return JSONAnswer({"model": served.name, "answers": answers, "usage": usage})


async def _is_refused(service: Service, call: Call, served: Served, fields: Mapping[str, Any]) -> bool:
    """Whether the content filter blocks the input or a question."""
    if not service.filter.is_on("prompt"):
        return False
    asked = [{"role": "user", "content": _words(question)} for question in fields["questions"]]
    conversation = _conversation(fields["input"])
    salt = salt_of(call)
    said = [Ask(served, {}, messages=messages, salt=salt).said() for messages in (asked, conversation)]
    return any([await service.filter.blocks(call, one) for one in said])


async def _answers(
    service: Service, request: Request, served: Served, fields: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    call = call_of(request)
    salt = salt_of(call, fields.get("cache_salt"))
    most = None if call.key is None else call.key.limits.max_prompt
    conversation = await service.beside(request, lambda: _conversation(fields["input"]))
    questions = fields["questions"]
    found: list[dict[str, Any]] = []
    prompts: list[list[int]] = []
    with anyio.move_on_after(service.settings.request_seconds):
        # All questions are checked before the first is computed.
        for question in questions:
            encode = partial(_encode, served, conversation, question, most)
            prompts.append(await anyio.to_thread.run_sync(encode, limiter=service.threads))
        for question, prompt in zip(questions, prompts, strict=True):
            choose = partial(_choose, served, prompt, _labels(question), salt)
            chances = await anyio.to_thread.run_sync(choose, limiter=service.threads, abandon_on_cancel=True)
            found.append(_answer(question, chances))
    if len(found) < len(questions):
        raise Problem(
            504, "the answers took longer than the server allows", kind="timeout_error", code="timeout"
        )
    shared = _shared(prompts)
    return found, shared + sum(len(prompt) - shared for prompt in prompts)


def _choose(served: Served, prompt: Sequence[int], labels: Sequence[str], salt: str | None) -> list[float]:
    model = served.model
    try:
        chances = model.choose(prompt, labels, adapter=served.adapter, cache_salt=salt)
    except Exception as error:
        raise problem_of(error, hidden=model.source, shown=served.name) from error
    return [chances[label] for label in labels]


def _encode(
    served: Served, conversation: Sequence[Mapping[str, Any]], question: Mapping[str, Any], most: int | None
) -> list[int]:
    model = served.model
    if model.chat_format is None or model.tokenizer is None:
        raise Problem(400, f"{served.name} has no chat format", code="unsupported")
    messages = [dict(message) for message in conversation]
    if messages[-1]["role"] == "user":
        messages[-1]["content"] += f"\n\n{_words(question)}"
    else:
        messages.append({"role": "user", "content": _words(question)})
    try:
        ids = model.chat_format.encode_chat(model.tokenizer, messages, most_tokens=model.context_length)
    except Exception as error:
        raise problem_of(error, hidden=model.source, shown=served.name) from error
    if most is not None and len(ids) > most:
        raise Problem(
            400,
            f"the prompt has {len(ids)} tokens; this key may send {most}",
            code="context_length_exceeded",
        )
    return ids


def _shared(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts have in common at their beginning."""
    first, last = min(prompts), max(prompts)
    length = min(len(first), len(last))
    return next((i for i in range(length) if first[i] != last[i]), length)


# --- questions in words, and back ---------------------------------------------------------------------------


def _conversation(given: Any) -> list[dict[str, Any]]:
    """The input as messages. JSON in a message is written as text."""
    if isinstance(given, list):
        given = [_item(item) for item in given]
    return conversation_of(given, media=False)


def _item(item: Mapping[str, Any]) -> Mapping[str, Any]:
    content = item.get("content")
    if not isinstance(content, list):
        return item
    parts = [_PART.check(p, "input") if _is_json(p) else p for p in content]
    return {
        **item,
        "content": [{"type": "input_text", "text": _text(p)} if _is_json(p) else p for p in parts],
    }


def _is_json(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "input_json"


def _text(part: Mapping[str, Any]) -> str:
    return part["text"] if "text" in part else json.dumps(part["data"], ensure_ascii=False)


def _words(question: Mapping[str, Any]) -> str:
    """The text of the question for the model."""
    asked = question["instructions"]
    asked = asked if isinstance(asked, str) else "\n".join(map(_text, asked))
    if question["type"] == "predicate":
        return f"{asked}\n\nIs this true of the above? Answer with Yes or No alone."
    options = question["choices"] if question["type"] == "choice" else question["levels"]
    lines = []
    for label, option in zip(_labels(question), options, strict=True):
        value = option.get("value", option.get("label"))
        value = json.dumps(value) if isinstance(value, bool) else value
        lines.append(
            f"{label}) {value}" + (f": {option['description']}" if option.get("description") else "")
        )
    listed = "\n".join(lines)
    return f"{asked}\n\n{listed}\n\nAnswer with the label of one of these alone."


def _labels(question: Mapping[str, Any]) -> list[str]:
    """The labels of the answers. None of them is the beginning of another one.

    >>> _labels({"type": "score", "levels": [{"label": "low"}, {"label": "high"}]})
    ['A', 'B']
    """
    if question["type"] == "predicate":
        return ["Yes", "No"]
    count = len(question.get("choices") or question["levels"])
    return list(_LETTERS[:count]) if count <= len(_LETTERS) else [f"{i:03d}" for i in range(1, count + 1)]


def _answer(question: Mapping[str, Any], chances: Sequence[float]) -> dict[str, Any]:
    """The answer in OpenAI's form. Its confidence is the probability of the likeliest answer."""
    head = {"type": question["type"], "name": question.get("name")}
    if question["type"] == "predicate":
        return {**head, "probability": chances[0]}
    best = max(chances)
    if question["type"] == "choice":
        values = [option["value"] for option in question["choices"]]
        pairs = [{"value": v, "probability": p} for v, p in zip(values, chances, strict=True)]
        return {**head, "choice": values[chances.index(best)], "confidence": best, "probabilities": pairs}
    levels = [
        {"value": i, "label": level["label"], "probability": p}
        for i, (level, p) in enumerate(zip(question["levels"], chances, strict=True))
    ]
    score = math.fsum(i * p for i, p in enumerate(chances))
    return {**head, "score": score, "confidence": best, "probabilities": levels}
