"""How probable the model found its tokens, in the two forms that OpenAI has for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gemlet.generation.result import TokenLogprob
from gemlet.server.models import Served

__all__ = ["of_chat", "of_completion"]


def _written(served: Served, token_id: int) -> tuple[str, list[int] | None]:
    """A token's text, control tokens by name, and its bytes. Without a tokenizer it is "token_id:7"."""
    tokenizer = served.model.tokenizer
    if tokenizer is None:
        return f"token_id:{token_id}", None
    data = tokenizer.stream_decoder(skip_control=False).bytes_of(token_id)
    return data.decode("utf-8", "replace"), list(data)


def of_chat(served: Served, found: Iterable[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of a choice of chat completions."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, data = _written(served, token_id)
        return {"token": text, "logprob": logprob, "bytes": data}

    content = [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*pair) for pair in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def of_completion(served: Served, found: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """``logprobs`` of a choice of the older completions. ``offset``: characters of the tokens before."""
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
