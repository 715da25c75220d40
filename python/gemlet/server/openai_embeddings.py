"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from gemlet.base.arrays import NDArray, np
from gemlet.server.answers import while_connected
from gemlet.server.call import Call, call_of
from gemlet.server.fields import IGNORED, NAME, TOKENS
from gemlet.server.models import Served
from gemlet.server.problems import Problem, problem_of
from gemlet.server.schema import Anything, Either, Integer, Kind, ListOf, OneOf, Text
from gemlet.server.sent_media import check_sent_inputs
from gemlet.server.service import Service, fields_of, service_of

__all__ = ["EMBEDDINGS", "INPUT", "embed", "embeddings", "texts_of"]

MOST_TEXTS = 2048
_LONG = 20_000  # characters or tokens; longer texts are read in a thread
INPUT = Either(
    f"a text, up to {MOST_TEXTS} texts, token ids, or up to {MOST_TEXTS} lists of them",
    Text(least=1),
    TOKENS,
    ListOf(Text(least=1), MOST_TEXTS, 1),
    ListOf(TOKENS, MOST_TEXTS, 1),
)
_PARTS = ListOf(Anything(dict), 1024, 1)  # check_sent_inputs() and the library check the parts
_WITH_PARTS = Either(
    f"{INPUT.expected}; or a list of content parts (text, image_url, video_url, input_audio), or up to "
    f"{MOST_TEXTS} texts and such lists",
    *INPUT.kinds,
    _PARTS,
    ListOf(Either("a text or a list of content parts", Text(least=1), _PARTS), MOST_TEXTS, 1),
)
EMBEDDINGS: Mapping[str, Kind] = {
    "model": NAME,
    "input": _WITH_PARTS,
    "dimensions": Integer(1, 1 << 16),
    "encoding_format": OneOf("float", "base64"),
    "prompt_name": Text(100, 1),
    **IGNORED,
}


async def embeddings(request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    fields = fields_of(request)
    served = service.find(call, fields.get("model"))
    texts = texts_of(fields["input"])
    embedded = embed(
        *(service, call, served, texts, fields.get("prompt_name"), fields.get("dimensions")),
        is_list=texts is fields["input"],
    )
    vectors = await while_connected(request, embedded)
    as_text = fields.get("encoding_format", "float") == "base64"
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}

    def make() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(vector) if as_text else vector.tolist()}
            for i, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": served.name, "usage": usage}

    return await service.answer(make, is_large=is_large(vectors))


def is_large(vectors: NDArray[np.float32]) -> bool:
    """Whether it takes more than a moment to write these."""
    return vectors.size > 1 << 13


def texts_of(given: Any) -> list[Any]:
    """The texts in a field of the kind :data:`INPUT`, as a list. The field may have one text without a list.

    >>> texts_of("a"), texts_of([2, 5]), texts_of([[2, 5]]), texts_of([{"type": "text", "text": "a"}])
    (['a'], [[2, 5]], [[2, 5]], [[{'type': 'text', 'text': 'a'}]])
    """
    is_one = not isinstance(given, list) or isinstance(given[0], int | dict)
    return [given] if is_one else given


async def embed(
    service: Service,
    call: Call,
    served: Served,
    texts: Sequence[Any],
    prompt: str | None,
    dimensions: int | None,
    *,
    is_list: bool = True,
    truncate: bool = False,
    field: str = "input",
) -> NDArray[np.float32]:
    """The vectors of ``texts``. A text may also be a list of token ids or of content parts. Counts the tokens
    in the call, and settles it. Raises :class:`Problem`.

    Args:
        field: the field of the request that has the texts.
        is_list: whether the field had a list of texts, and not one text.
    """
    with_parts = any(isinstance(text, list) and isinstance(text[0], dict) for text in texts)
    if with_parts:
        await anyio.to_thread.run_sync(check_sent_inputs, texts, limiter=service.threads)
    await service.check_texts(call, served, texts)
    service.metrics.begin(call)
    model, most = served.model, None if call.key is None else call.key.limits.max_prompt
    read = partial(model.embedding_ids, texts, prompt, truncate=truncate)
    try:
        with anyio.fail_after(service.settings.request_seconds):
            is_long = with_parts or sum(map(len, texts)) > _LONG
            ids = await anyio.to_thread.run_sync(read, limiter=service.threads) if is_long else read()
            longest = max(map(len, ids))
            if most is not None and longest > most:
                raise Problem(
                    400,
                    f"a text has {longest} tokens; this key may send {most}",
                    code="context_length_exceeded",
                )
            # The token ids of an image say only how long it is, so the parts themselves are needed.
            whole: Any = texts if with_parts else ids
            name = prompt if with_parts else None
            vectors = await model.aembed(whole, name, dimensions, adapter=served.adapter, truncate=truncate)
    except TimeoutError:
        raise Problem(
            504, "the vectors took longer than the server allows", kind="timeout_error", code="timeout"
        ) from None
    except Exception as error:
        # check_sent_inputs() writes an index even if there is only one text of parts, and so do these errors.
        texts_field = "texts[]" if is_list or with_parts else "texts"
        names = {texts_field: field, "prompt": "prompt_name"}
        raise problem_of(error, hidden=model.source, shown=served.name, names=names) from error
    call.prompt_tokens, call.finish = sum(map(len, ids)), "stop"
    call.settle()
    return vectors


def _base64(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
