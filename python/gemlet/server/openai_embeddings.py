"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from gemlet.model.model import Model
from gemlet.server.answers import JSONAnswer, while_connected
from gemlet.server.call import call_of
from gemlet.server.fields import IGNORED, NAME, TOKENS
from gemlet.server.models import Served
from gemlet.server.problems import Problem, problem_of
from gemlet.server.schema import Choice, Either, Integer, Kind, ListOf, Text
from gemlet.server.service import fields_of, service_of

__all__ = ["EMBEDDINGS", "embed", "embeddings"]

MOST_TEXTS = 2048
INPUT = Either(
    f"a text, up to {MOST_TEXTS} texts, token ids, or up to {MOST_TEXTS} lists of them",
    Text(least=1),
    TOKENS,
    ListOf(Text(least=1), MOST_TEXTS, 1),
    ListOf(TOKENS, MOST_TEXTS, 1),
)
EMBEDDINGS: Mapping[str, Kind] = {
    "model": NAME,
    "input": INPUT,
    "dimensions": Integer(1, 1 << 16),
    "encoding_format": Choice("float", "base64"),
    "prompt_name": Text(100, 1),
    **IGNORED,
}


async def embeddings(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields.get("model"))
    given = fields["input"]
    texts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    await service.check_texts(call, served, texts)
    call.at_end.append(service.metrics.count)
    work = anyio.to_thread.run_sync(
        embed,
        served,
        texts,
        fields.get("prompt_name"),
        fields.get("dimensions"),
        None if call.key is None else call.key.limits.max_prompt,
        limiter=service.threads,
        abandon_on_cancel=True,
    )
    vectors, call.prompt_tokens = await while_connected(request, work)
    call.finish = "stop"
    call.settle()
    as_text = fields.get("encoding_format", "float") == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(vector) if as_text else vector.tolist()}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
    return JSONAnswer({"object": "list", "data": data, "model": served.name, "usage": usage})


def embed(
    served: Served,
    texts: Sequence[Any],
    prompt: str | None,
    dimensions: int | None,
    most: int | None,
    truncate: bool = False,
) -> tuple[Any, int]:
    """The vectors of ``texts``, and how many tokens these have; in a thread. Raises :class:`Problem`."""
    model = served.model
    try:
        counts = [_count(model, text) for text in texts]
        if most is not None and max(counts, default=0) > most:
            raise Problem(
                400,
                f"a text has {max(counts)} tokens; this key may send {most}",
                code="context_length_exceeded",
            )
        vectors = model.embed(texts, prompt, dimensions, adapter=served.adapter, truncate=truncate)
    except Exception as error:
        raise problem_of(error, hidden=model.source, shown=served.name) from error
    return vectors, sum(counts)


def _count(model: Model, text: str | list[int]) -> int:
    """The tokens of a text to embed. Without a tokenizer there are none, and the model refuses the text."""
    if isinstance(text, list):
        return len(text)
    if model.tokenizer is None:
        return 0
    return len(model.tokenizer.first_ids(text.strip(), model.context_length)) + 1


def _base64(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
