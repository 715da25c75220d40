"""Builds the fields of an answer that have log probabilities. ``logprobs`` is for the generated tokens, in
the OpenAI formats of chat completions and legacy completions. ``prompt_logprobs`` is for the tokens of the
prompt, in the format of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread

from gemlet.generation.result import TokenLogprob
from gemlet.server.ask import Choice, Running
from gemlet.server.models import Served
from gemlet.server.problems import Problem

__all__ = ["check_length", "of_chat", "of_completion", "of_prompt", "of_text", "top_of_prompt"]

_MOST = 1 << 15  # the most prompt log probabilities in one answer


def _written(served: Served, token_id: int) -> tuple[str, list[int] | None]:
    """Returns the text and the bytes of a token. The text of a control token is its name. If the model has no
    tokenizer, the text is like "token_id:7" and the bytes are None."""
    tokenizer = served.model.tokenizer
    if tokenizer is None:
        return f"token_id:{token_id}", None
    data = tokenizer.stream_decoder(skip_control=False).bytes_of(token_id)
    return data.decode("utf-8", "replace"), list(data)


def of_chat(served: Served, found: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Returns the field ``logprobs`` for a choice of a chat completion."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, data = _written(served, token_id)
        return {"token": text, "logprob": logprob, "bytes": data}

    content = [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*pair) for pair in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def of_completion(served: Served, found: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Returns the field ``logprobs`` for a choice of a legacy completion. ``offset`` is the number of
    characters before the first token."""
    tokens = [_written(served, one.token_id)[0] for one in found]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [{_written(served, i)[0]: logprob for i, logprob in one.top} for one in found],
        "text_offset": offsets,
    }


async def of_text(choice: Choice, threads: anyio.CapacityLimiter) -> dict[str, Any]:
    """Returns the field ``logprobs`` for a finished choice of a legacy completion. If the request has
    ``echo``, the tokens of the prompt come first."""
    served = choice.ask.served
    if not choice.ask.options.get("echo"):
        return await anyio.to_thread.run_sync(of_completion, served, choice.logprobs, limiter=threads)
    before, length = await anyio.to_thread.run_sync(_of_echo, choice, limiter=threads)
    after = of_completion(served, choice.logprobs, length)
    return {name: before[name] + after[name] for name in after}


def _of_echo(choice: Choice) -> tuple[dict[str, list[Any]], int]:
    """Returns the field ``logprobs`` for the prompt, and the number of characters of the prompt. The first
    token has no log probability. Control tokens count as 0 characters."""
    served, tokenizer = choice.ask.served, choice.ask.served.model.tokenizer
    assert tokenizer is not None  # a model without a tokenizer accepts no text prompt, so it has no echo
    decoder, length = tokenizer.stream_decoder(), 0
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, one in zip(choice.prompt_ids, choice.result.prompt_logprobs or (), strict=False):
        top = None if one is None else {_written(served, i)[0]: logprob for i, logprob in one.top}
        found["tokens"].append(_written(served, token_id)[0])
        found["token_logprobs"].append(None if one is None else one.logprob)
        found["top_logprobs"].append(top)
        found["text_offset"].append(length)
        length += len(decoder.push(token_id))
    return found, length


def top_of_prompt(fields: Mapping[str, Any]) -> dict[str, int]:
    """Returns the option ``prompt_logprobs`` for the library if the request has this field. Raises
    :class:`Problem` if the request asks for a stream."""
    if "prompt_logprobs" not in fields:
        return {}
    if fields.get("stream"):
        raise Problem(
            400,
            "prompt_logprobs: got stream: true, expected stream: false; leave out one of the two",
            param="prompt_logprobs",
        )
    return {"prompt_logprobs": fields["prompt_logprobs"]}


def check_length(running: Running) -> None:
    """Raises :class:`Problem` if the answer would have too many prompt log probabilities."""
    wanted = [choice for choice in running.choices if "prompt_logprobs" in choice.ask.options]
    count = sum(len(choice.prompt_ids) * (1 + choice.ask.options["prompt_logprobs"]) for choice in wanted)
    if count > _MOST:
        raise Problem(
            400,
            f"prompt_logprobs: got {count} log probabilities in one answer, expected at most {_MOST}; send a "
            "shorter prompt or a smaller prompt_logprobs",
            param="prompt_logprobs",
        )


async def of_prompt(choice: Choice, threads: anyio.CapacityLimiter) -> list[dict[str, Any] | None] | None:
    """Returns the field ``prompt_logprobs``, or None if the request does not ask for it. The field has one
    map for each token of the prompt. The map has an entry for this token and for each of the most likely
    tokens at the same position. If the token of the prompt is not among the most likely tokens, its rank is
    null."""
    if "prompt_logprobs" not in choice.ask.options:
        return None
    return await anyio.to_thread.run_sync(_of_prompt, choice, limiter=threads)


def _of_prompt(choice: Choice) -> list[dict[str, Any] | None]:
    texts: dict[int, str] = {}

    def entry(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        if token_id not in texts:
            texts[token_id] = _written(choice.ask.served, token_id)[0]
        return {"logprob": logprob, "rank": rank, "decoded_token": texts[token_id]}

    found: list[dict[str, Any] | None] = []
    for one in choice.result.prompt_logprobs or ():
        if one is None:
            found.append(None)
            continue
        likely = {str(i): entry(i, logprob, rank) for rank, (i, logprob) in enumerate(one.top, 1)}
        own = str(one.token_id)
        found.append({own: likely.get(own) or entry(one.token_id, one.logprob, None), **likely})
    return found
