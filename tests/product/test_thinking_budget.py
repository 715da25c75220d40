"""Tests of ``thinking_budget``: thoughts end exactly at the budget, in whole replies and in streams, and the
answer follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gemlet
from gemlet.chat import GEMMA4_MARKERS, Reasoning
from gemlet.generation.masked import MaskPlan, Masks
from support.replies import CALL, OSLO, gemma4_tokenizer
from support.scripted import ScriptedModel, ScriptedRequest, ids_of

START, END = (gemma4_tokenizer().token_id(name) for name in ("<|channel>", "<channel|>"))
OPENED = ids_of("<|channel>thought\n")
DIGITS = ids_of("123456")  # each digit is a token
THOUGHT = [*OPENED, *DIGITS, END]
CHAT: Any = {"thinking": True, "max_tokens": 60}
TOOLS: Any = [{"type": "function", "function": {"name": "weather"}}]


class ForcedRequest(ScriptedRequest):
    """A scripted request that obeys masks. If the mask forbids the next token of the script, the request
    gives a token that the mask allows, and skips the rest of the script's thought."""

    mask: Any = None
    was_forced = False

    def set_mask(self, position: int, mask: Any, behind: Any = ()) -> None:
        assert position == len(self.given)
        self.mask = mask

    def next_token(self) -> int:
        token_id = super().next_token()
        if self.mask is None or self.mask[token_id // 32] >> (token_id % 32) & 1:
            return token_id
        assert not self.was_forced
        self.was_forced = True
        while token_id != END:
            token_id = super().next_token()
        allowed = np.flatnonzero(np.unpackbits(self.mask.view(np.uint8), bitorder="little"))
        return END if allowed.tolist() == [END] else super().next_token()


def scripted(*parts: Any) -> ScriptedModel:
    script = [i for part in parts for i in (ids_of(part) if isinstance(part, str) else part)]
    model = ScriptedModel([*script, *ids_of("<turn|>")])
    model.engine.kind = ForcedRequest
    return model


def test_a_scripted_thought_ends_at_the_budget() -> None:
    assert len(DIGITS) == 6
    for budget in range(8):
        reply = scripted(THOUGHT, "Seven.").chat("Count.", thinking_budget=budget, **CHAT)
        assert (reply.reasoning, reply.text) == ("123456"[:budget], "Seven.")
        expected = [*OPENED, *DIGITS[:budget], END] if budget else []
        assert reply.token_ids == expected + ids_of("Seven.")


def test_a_streamed_thought_ends_at_the_budget() -> None:
    with scripted(THOUGHT, "Seven.").stream_chat("Count.", thinking_budget=2, **CHAT) as stream:
        events = [event for chunk in stream for event in chunk.events]
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "12"
    assert stream.result.text == "Seven."


def test_the_budget_counts_all_thoughts_of_a_reply() -> None:
    first = [*OPENED, *DIGITS[:3], END]
    model = scripted(first, "Then: ", THOUGHT, "Seven.")
    assert model.chat("Count.", thinking_budget=5, **CHAT).reasoning == "123\n\n12"
    model = scripted(first, "Then: ", THOUGHT, "Seven.")  # no budget is left for a second thought
    reply = model.chat("Count.", thinking_budget=3, **CHAT)
    assert (reply.reasoning, reply.text) == ("123", "Then: Seven.")


def test_a_call_ends_a_thought() -> None:
    """The budget forces no token into the tool call."""
    model = scripted(OPENED, DIGITS[:2], CALL)
    reply = model.chat("Weather?", tools=TOOLS, thinking_budget=4, **CHAT)
    assert (reply.reasoning, reply.tool_calls) == ("12", [OSLO])


def test_wrong_budgets() -> None:
    for wrong in (-1, 1.5, "5", True, 2**31):
        with pytest.raises(gemlet.InvalidRequestError, match="thinking_budget: got"):
            scripted("Yes.").chat("Count.", thinking_budget=wrong, **CHAT)
    with (
        gemlet.load() as model,
        pytest.raises(gemlet.UnsupportedError, match=r"thinking_budget: .* does not think"),
    ):
        model.chat("Count.", thinking_budget=5)


def test_draft_tokens_obey_the_budget() -> None:
    """A draft token beyond the budget is refused, and the tokens after the end of the thought are free."""
    tokenizer = gemma4_tokenizer()
    asides = gemlet.chat.TokenReplyParser(tokenizer, GEMMA4_MARKERS).asides
    masks = Masks(MaskPlan(None, tokenizer.vocab_size, frozenset(), frozenset(), asides, None, 2))
    assert masks.next() is None
    found = list(masks.ahead([*THOUGHT[: len(OPENED) + 2], END, *DIGITS]))
    assert [mask is None for mask in found] == [True] * (len(OPENED) + 1) + [False] * 8
    assert len(list(masks.ahead(THOUGHT))) == len(OPENED) + 2
    masks.push(THOUGHT[: len(OPENED) + 1])
    assert masks.next() is None
    masks.push(DIGITS[1:2])
    mask = masks.next()
    assert mask is not None
    assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() == [END]
