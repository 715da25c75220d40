"""Describes a model's files without loading its weights: :func:`inspect`."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from math import prod

from gemlet.base.front_door import public
from gemlet.base.records import replace
from gemlet.base.sizes import parse_memory
from gemlet.errors import InvalidRequestError, MemoryLimitError
from gemlet.loading.builder import not_packed
from gemlet.loading.drafter import open_drafter
from gemlet.loading.for_memory import recommend
from gemlet.loading.inspection import Inspection
from gemlet.loading.memory_plan import check_memory, plan_memory, room_for
from gemlet.loading.options import LoadOptions, Matformer
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.opening import open_model_files, writes_nothing
from gemlet.tokenizer.sentencepiece_model import model_type
from gemlet.tokenizer.stored import STORED_FILE
from gemlet.weights.slots import PER_LAYER_TABLE

__all__ = ["inspect"]


@public
def inspect(
    source: str | os.PathLike[str] | None = None,
    *,
    weights: str = "auto",
    embedding: str | None = None,
    kv_cache: str | None = None,
    max_context: int | None = None,
    max_memory: int | str | None = None,
    embedding_on_disk: bool = False,
    vision: bool = True,
    audio: bool = True,
    mmproj: str | os.PathLike[str] | bool | None = None,
    prefix_cache: bool | str | os.PathLike[str] = True,
    prefix_cache_size: int | str | None = None,
    drafter: str | os.PathLike[str] | None = None,
    matformer: Matformer = None,
    for_memory: int | str | None = None,
    device: str = "cpu",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Inspection:
    """Describes a model without loading it: reads everything in its files except the weights, and computes
    the memory that loading would take. Of a model on the hub, only the small files and the headers of the
    large files are fetched.

    ``for_memory`` is the memory of a machine, such as "1GB". Then the result also recommends formats for that
    machine, with their loss of quality. Raises :class:`MemoryLimitError` if no format is small enough.

    The other arguments are those of :func:`gemlet.load`, and so are the errors for files that are missing,
    damaged or of an architecture that gemlet does not run. A model that is too large for this machine is no
    error: it is described, and ``problem`` has the reason. The format that ``weights="auto"`` chooses for
    bfloat16 and float16 depends on the values, which are not read. So the plan assumes the larger format,
    bf16 or f32.

    >>> print(str(inspect(weights="q4", max_context=512)).splitlines()[0])
    model      demo
    """
    from gemlet import _core

    room = None if for_memory is None else parse_memory(for_memory, "for_memory")
    if room is not None and weights not in (None, "auto"):
        raise InvalidRequestError("for_memory chooses the format of the weights; give one of the two")
    options = LoadOptions(
        weights=weights,
        max_context=max_context,
        embedding=embedding,
        kv_cache=kv_cache,
        max_memory=max_memory,
        embedding_on_disk=embedding_on_disk,
        vision=vision,
        audio=audio,
        mmproj=mmproj,
        prefix_cache=prefix_cache,
        prefix_cache_size=prefix_cache_size,
        drafter=drafter,
        matformer=matformer,
        device=device,
    )
    with open_model_files(
        source,
        revision=revision,
        token=token,
        mmproj=options.towers_file,
        headers_only=True,
        as_drafter=None,
    ) as files:
        files = replace(files, unread=True).with_towers(vision=options.vision, audio=options.audio)
        if matformer is not None:
            files = files.cut(matformer)
        config = files.config
        options = options.with_context(config.max_position_embeddings)
        kept_as = files.formats_by_type() if options.weights == "auto" and files.packed is None else {}
        with open_drafter(options, files, token=token, headers_only=True) or nullcontext() as opened:
            beside = opened
        options = options.with_formats(files)
        formats, own = options.formats, options.own_formats
        tables = {"embedding": own.get("embed_tokens", formats.embedding)}
        if not config.tie_word_embeddings:
            tables["output"] = own.get("lm_head", formats.embedding)
        table_type = _table_type(files)
        plan = plan_memory(config, options, table_type=table_type or "bf16", drafter=beside)
        parameters, on_disk = _parameters(files, options.embedding_on_disk)
        tensors = files.checkpoint.tensors
        recommended = None
        if room is not None:
            recommended = recommend(room, config, replace(options, max_context=max_context))
        problem = str(not_packed(files)) if options.embedding_on_disk and files.packed is None else None
        room, name = room_for(options) or (
            _core.available_memory() + plan.process,
            "the memory this process may have",
        )
        try:
            check_memory(room, config, options, name=name, drafter=beside)
        except MemoryLimitError as error:
            problem = str(error)
        if config.target_size:
            problem = writes_nothing(files)
        return Inspection(
            source=files.name,
            config=config,
            stored=dict(Counter(files.checkpoint.dtype(name) for name in files.slots).most_common()),
            file_bytes=sum(tensors[name].nbytes for name in files.slots),
            parameters=parameters,
            parameters_on_disk=on_disk,
            tokenizer=_tokenizer(files),
            vocabulary=None if files.tokenizer is None else files.tokenizer.vocab_size,
            chat_format=None if files.chat_format is None else files.chat_format.name,
            prompts={} if files.prompts is None else dict(files.prompts.texts),
            weights=options.weights,
            formats={"weights": formats.matrices, **tables, "kv_cache": formats.kv_cache},
            own_formats={
                slot: name
                for slot, name in own.items()
                if slot not in ("embed_tokens", "lm_head") and name != formats.matrices
            },
            kept_as=kept_as,
            table_type=table_type,
            max_context=options.max_context or config.max_position_embeddings,
            plan=plan,
            problem=problem,
            recommended=recommended,
            not_followed=dict(files.not_followed),
            passed_over=files.passed_over,
            adapter=None if files.adapter is None else files.adapter.source,
        )


def _parameters(files: ModelFiles, embedding_on_disk: bool) -> tuple[int, int]:
    """The number of parameters of the text model, and of the tables that stay on disk."""
    tables = (PER_LAYER_TABLE, "embed_tokens", "lm_head") if embedding_on_disk else (PER_LAYER_TABLE,)
    total = on_disk = 0
    for name, slot in files.slots.items():
        shape, cut = files.checkpoint.tensors[name].shape, files.cuts.get(name)
        count = prod(shape if cut is None else cut.shape(shape))
        total += count
        on_disk += count if slot in tables else 0
    return total, on_disk


def _table_type(files: ModelFiles) -> str | None:
    """The type in which the table of per-layer embeddings is stored."""
    names = [name for name, slot in files.slots.items() if slot == PER_LAYER_TABLE]
    return files.checkpoint.dtype(names[0]) if names else None


def _tokenizer(files: ModelFiles) -> dict[str, str] | None:
    """The file with the vocabulary, and the kind of the vocabulary."""
    vocabulary = files.vocabulary
    if vocabulary is None:
        return None
    file = os.path.basename(vocabulary.source)
    formats = {"tokenizer.model": "SentencePiece", "tokenizer.json": "Hugging Face", STORED_FILE: "packed"}
    return {"file": file, "kind": f"{formats.get(file, 'GGUF')} {model_type(vocabulary.proto)}"}
