"""What is in a model's files, without loading its weights: :func:`inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from gemlet.base.sizes import parse_memory
from gemlet.errors import MemoryLimitError
from gemlet.loading.arguments import check_flag, check_max_context
from gemlet.loading.builder import choose_formats, not_packed, settle
from gemlet.loading.inspection import Inspection
from gemlet.loading.memory_plan import check_memory, plan_memory
from gemlet.sources.model_source import ModelSource
from gemlet.sources.opening import open_source
from gemlet.tokenizer.sentencepiece_model import model_type
from gemlet.tokenizer.stored import STORED_FILE
from gemlet.weights.formats import check_weights, formats_of
from gemlet.weights.slots import PER_LAYER_TABLE

__all__ = ["inspect"]


def inspect(
    source: str | os.PathLike[str] | None = None,
    *,
    weights: str = "auto",
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_context: int | None = None,
    max_memory: int | str | None = None,
    embedding_on_disk: bool = False,
    matformer: str | int | Sequence[int] | Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Inspection:
    """Reads all that a model's files say but the weights, and what it would take to load it. Of a model on
    the hub only that is fetched: the small files, and the headers of the large ones.

    The arguments are those of :func:`gemlet.load`, and so are the errors for files that are missing, damaged
    or of an architecture gemlet does not run. A model that is merely too large is described, with
    ``problem`` saying so. How ``weights="auto"`` keeps float16 depends on its values, bf16 or f32, and the
    plan is for the larger.

    >>> print(str(inspect(weights="q4", max_context=512)).splitlines()[0])
    model      demo
    """
    from gemlet import _core

    check_weights(weights)
    check_flag("embedding_on_disk", embedding_on_disk)
    limit = None if max_memory is None else parse_memory(max_memory)
    with open_source(source, revision=revision, token=token, headers_only=True) as opened:
        opened = replace(opened, float16_as="f32")
        if matformer is not None:
            opened = opened.cut(matformer)
        config = opened.config
        context = check_max_context(max_context, config)
        kept_as = opened.kept_as() if weights == "auto" and opened.packed is None else {}
        weights, embedding, own = choose_formats(opened, weights, embedding)
        formats = formats_of(weights, embedding, kv_cache)
        tables = {"embedding": own.get("embed_tokens", formats.embedding)}
        if not config.tie_word_embeddings:
            tables["output"] = own.get("lm_head", formats.embedding)
        table_type = _table_type(opened)
        arguments: dict[str, Any] = {
            "weights": weights,
            "embedding": embedding,
            "kv_cache": kv_cache,
            "max_context": context,
            "embedding_on_disk": embedding_on_disk,
            "own_formats": own,
        }
        settle(opened)
        plan = plan_memory(config, **arguments, table_type=table_type or "bf16")
        parameters, on_disk = _parameters(opened, embedding_on_disk)
        tensors = opened.checkpoint.tensors
        problem = str(not_packed(opened)) if embedding_on_disk and opened.packed is None else None
        room, name = limit, "max_memory"
        if room is None:
            room, name = _core.available_memory() + plan.process, "the memory this process may have"
        try:
            check_memory(room, config, **arguments, name=name)
        except MemoryLimitError as error:
            problem = str(error)
        return Inspection(
            source=opened.name,
            config=config,
            stored=dict(Counter(opened.checkpoint.dtype(name) for name in opened.slots).most_common()),
            file_bytes=sum(tensors[name].nbytes for name in opened.slots),
            parameters=parameters,
            parameters_on_disk=on_disk,
            tokenizer=_tokenizer(opened),
            vocabulary=None if opened.tokenizer is None else opened.tokenizer.vocab_size,
            chat_format=None if opened.chat_format is None else opened.chat_format.name,
            prompts={} if opened.prompts is None else dict(opened.prompts.texts),
            weights=weights,
            formats={"weights": formats.matrices, **tables, "kv_cache": formats.kv_cache},
            own_formats={
                slot: name
                for slot, name in own.items()
                if slot not in ("embed_tokens", "lm_head") and name != formats.matrices
            },
            kept_as=kept_as,
            table_type=table_type,
            max_context=context,
            plan=plan,
            problem=problem,
            passed_over=opened.passed_over,
        )


def _parameters(source: ModelSource, embedding_on_disk: bool) -> tuple[int, int]:
    """All parameters of the text model, and those of the tables that stay on disk."""
    tables = (PER_LAYER_TABLE, "embed_tokens", "lm_head") if embedding_on_disk else (PER_LAYER_TABLE,)
    total = on_disk = 0
    for name, slot in source.slots.items():
        shape, cut = source.checkpoint.tensors[name].shape, source.cuts.get(name)
        count = prod(shape if cut is None else cut.shape(shape))
        total += count
        on_disk += count if slot in tables else 0
    return total, on_disk


def _table_type(source: ModelSource) -> str | None:
    """What the table of per-layer embeddings is stored as."""
    names = [name for name, slot in source.slots.items() if slot == PER_LAYER_TABLE]
    return source.checkpoint.dtype(names[0]) if names else None


def _tokenizer(source: ModelSource) -> dict[str, str] | None:
    """The file that the vocabulary is in, and of what kind it is."""
    vocabulary = source.vocabulary
    if vocabulary is None:
        return None
    file = os.path.basename(vocabulary.source)
    formats = {"tokenizer.model": "SentencePiece", "tokenizer.json": "Hugging Face", STORED_FILE: "packed"}
    return {"file": file, "kind": f"{formats.get(file, 'GGUF')} {model_type(vocabulary.proto)}"}
