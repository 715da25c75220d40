"""Defines the request fields that several APIs share, and the OpenAI fields that gemlet refuses or ignores.

The numeric sampling options come from the option table of the library. So every new option of the library is
also an option of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.sampling_options import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_INT,
    MAX_SUPPRESSED,
    MOST_ALTERNATIVES,
    MOST_BREAKERS,
    MOST_SALT_CHARACTERS,
    MOST_STOP_CHARACTERS,
    MOST_STOP_IDS,
    MOST_STOPS,
    OPTIONS,
)
from gemlet.base.text import show
from gemlet.server.problems import Problem
from gemlet.server.schema import (
    Either,
    Flag,
    Ignored,
    Integer,
    Kind,
    ListOf,
    Number,
    Object,
    OneOf,
    Refused,
    Schema,
    Text,
)

__all__ = [
    "EFFORTS",
    "GENERATION",
    "IGNORED",
    "MOST_CHOICES",
    "MOST_TOOLS",
    "NAME",
    "NOT_DONE",
    "OF_TOKENS",
    "REPLY",
    "SALT",
    "STOP",
    "STOPS",
    "STREAM",
    "TOKENS",
    "TOOLS",
    "TOP_LOGPROBS",
    "library_options",
]

MOST_CHOICES = 16  # the most replies in one request, for all its prompts together
MOST_TOOLS = 128
NAME = Text(256, 1)
REPLY = Integer(1, MAX_INT)  # the most tokens of a reply
TOKENS = ListOf(Integer(0, MAX_INT), 1 << 22, 1)
STOPS = ListOf(Text(MOST_STOP_CHARACTERS, 1), MOST_STOPS)
STOP = Either(
    f"a string of 1 to {MOST_STOP_CHARACTERS} characters, or a list of up to {MOST_STOPS}",
    Text(MOST_STOP_CHARACTERS, 1),
    STOPS,
)
SALT = Text(MOST_SALT_CHARACTERS, 1)
TOP_LOGPROBS = Integer(0, MOST_ALTERNATIVES)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_FUNCTION = Object(
    {
        "name": Text(64, 1),
        "description": Text(1 << 16),
        "parameters": Schema(),
        "strict": Ignored(),
    },
    ["name"],
)
TOOLS = ListOf(Object({"type": OneOf("function"), "function": _FUNCTION}, ["function"]), MOST_TOOLS)


class Biases(Kind):
    """``logit_bias``: an object that maps token ids, as strings, to numbers."""

    def check(self, value: Any, where: str) -> dict[int, float]:
        if not isinstance(value, dict) or len(value) > MAX_BIASES:
            raise Problem(
                400, f"{where}: got {show(value)}, expected at most {MAX_BIASES} token ids", param=where
            )
        for token in value:
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise Problem(400, f"{where}: got the name {show(token)}, expected a token id", param=where)
        number = Number(-MAX_BIAS, MAX_BIAS)
        return {int(token): number.check(bias, f"{where}.{token}") for token, bias in value.items()}

    def describe(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": Number(-MAX_BIAS, MAX_BIAS).describe()}


_IDS = Integer(0, MAX_INT)
GENERATION: Mapping[str, Kind] = {
    **{
        name: Integer(int(option.low), int(option.high))
        if option.kind is int
        else Number(option.low, option.high)
        for name, option in OPTIONS.items()
        if name != "max_tokens"
    },
    "do_sample": Flag(),
    "dry_sequence_breakers": ListOf(Text(MOST_STOP_CHARACTERS, 1), MOST_BREAKERS),
    "ignore_eos": Flag(),
    "logit_bias": Biases(),
    "seed": Integer(-(2**63), 2**64 - 1),
    "stop": STOP,
    "stop_token_ids": ListOf(_IDS, MOST_STOP_IDS),
    "suppress_tokens": ListOf(_IDS, MAX_SUPPRESSED),
}

# Fields that vLLM adds to chat and legacy completions. The tables of these two endpoints list these fields
# after NOT_DONE, so they replace the refusals in NOT_DONE.
OF_TOKENS: Mapping[str, Kind] = {
    "return_token_ids": Flag(),
    "prompt_logprobs": TOP_LOGPROBS,
}

STREAM: Mapping[str, Kind] = {
    "stream": Flag(),
    "stream_options": Object({"include_usage": Flag(), "include_obfuscation": Ignored()}),
}

# Fields that the server accepts but ignores. (OpenAI stores a completion if ``store`` is true; gemlet stores
# none.)
IGNORED: Mapping[str, Kind] = dict.fromkeys(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",
        "cache_prompt",
    ),
    Ignored(),
)

_NOT_HERE = "gemlet does not do this over HTTP"
_GRAMMAR = "send structured_outputs or response_format"
NOT_DONE: Mapping[str, Kind] = {
    **dict.fromkeys(OF_TOKENS, Refused("ask for chat completions or completions")),
    "thinking_token_budget": Refused("ask for chat completions"),
    "guided_json": Refused(_GRAMMAR),
    "guided_regex": Refused(_GRAMMAR),
    "guided_choice": Refused(_GRAMMAR),
    "guided_grammar": Refused(_GRAMMAR),
    "grammar": Refused(_GRAMMAR),
    "json_schema": Refused(_GRAMMAR),
    "best_of": Refused(f"{_NOT_HERE}; ask for n", 1),
    "use_beam_search": Refused("gemlet has no beam search", False),
    "priority": Refused(_NOT_HERE, 0),
    "skip_special_tokens": Refused("control tokens are never part of the text", True),
    "chat_template": Refused("a request cannot set the chat template"),
    "modalities": Refused("gemlet generates only text", ["text"]),
    "audio": Refused("gemlet generates only text"),
    "verbosity": Refused("gemlet has no such setting; ask for it in a message", "medium"),
    "web_search_options": Refused("gemlet does not search the web"),
    "moderation": Refused("the administrator sets the content filter"),
    "functions": Refused("this is the older form of tools; send tools"),
    "function_call": Refused("this is the older form of tools; send tool_choice", "none", "auto"),
}


def library_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request that are options of :class:`GenerationConfig`.

    OpenAI's seeds may be negative. A negative seed stands for that seed plus 2**64. The seed -1 means a new
    seed every time, as in the library, in vLLM, llama.cpp and Ollama.
    """
    found = {name: value for name, value in fields.items() if name in GENERATION}
    if found.get("seed", -1) != -1:
        found["seed"] %= 2**64
    return found
