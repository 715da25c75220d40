"""What is in a model's files, without loading its weights: :func:`inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from gemlet._json import show
from gemlet.errors import MemoryLimitError
from gemlet.memory import MemoryPlan, check_memory, parse_memory, plan_memory, size_text

if TYPE_CHECKING:
    from gemlet.config import LayerSpec, TextConfig
    from gemlet.source import ModelSource

__all__ = ["Inspection", "inspect", "layer_text"]


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found.

    ``stored`` counts the tensors by the type they are stored in; ``parameters`` those of the text model, cut
    if it is, ``parameters_on_disk`` the part of them that stays in the file while it runs. ``kept_as`` has
    for each type of a stored matrix the format that ``weights="auto"`` keeps it in, and is empty for other
    weights. ``prompts`` are those of an embedding model. ``problem`` is None if the model runs here, else why
    not.

    >>> found = inspect()
    >>> found.config.family, found.weights, found.stored["bf16"] > 10, found.problem
    ('gemma3', 'bf16', True, None)
    """

    source: str
    config: TextConfig
    stored: dict[str, int]
    file_bytes: int
    parameters: int
    parameters_on_disk: int
    vocabulary: int | None
    chat_format: str | None
    prompts: dict[str, str]
    weights: str
    kept_as: dict[str, str]
    max_context: int
    plan: MemoryPlan
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts: what ``gemlet inspect --json`` prints.

        >>> import json
        >>> found = inspect(weights="q4").as_dict()
        >>> found["config"]["hidden_size"], found["weights"], len(json.dumps(found)) > 1000
        (256, 'q4', True)
        """
        memory = asdict(self.plan) | {"total": self.plan.total}
        fields = {name: value for name, value in vars(self).items() if name != "plan"}
        return fields | {"config": asdict(self.config), "memory": memory}

    def __str__(self) -> str:
        config = self.config
        on_disk = (
            f", {_count(self.parameters_on_disk)} of them stay on disk" if self.parameters_on_disk else ""
        )
        kept = {dtype: f" as {name}" for dtype, name in self.kept_as.items() if name != dtype}
        types = ", ".join(f"{count} {dtype}{kept.get(dtype, '')}" for dtype, count in self.stored.items())
        lines = [
            f"model      {self.source}",
            f"family     {config.family} ({config.model_type}), {config.num_layers} layers, hidden size "
            f"{config.hidden_size}, {_count(self.parameters)} parameters{on_disk}",
            f"tensors    {types}; {size_text(self.file_bytes)}",
            f"tokenizer  {self._tokenizer_text()}",
            f"context    {config.max_position_embeddings} tokens",
            *([f"embedding  {self._embedding_text()}"] if config.bidirectional else []),
            *(f"layer {numbers:<8} {text}" for numbers, text in _layer_groups(config)),
            f"memory     {self.plan}",
            f"           with weights={self.weights}, max_context={self.max_context}"
            + (f"; {size_text(self.plan.on_disk)} stay on disk" if self.plan.on_disk else ""),
            f"runs here  {'yes' if self.problem is None else f'no: {self.problem}'}",
        ]
        return "\n".join(lines)

    def _tokenizer_text(self) -> str:
        if self.vocabulary is None:
            return "none: it takes and gives token ids"
        if self.config.bidirectional:
            return f"{self.vocabulary} pieces"
        return f"{self.vocabulary} pieces, chat format {self.chat_format or 'none'}"

    def _embedding_text(self) -> str:
        config = self.config
        dense = ", ".join(map(str, config.dense_sizes)) or "none"
        prompts = ", ".join(map(show, self.prompts)) or "none"
        return f"{config.embedding_size} numbers; dense layers {dense}; prompts {prompts}"


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
) -> Inspection:
    """Reads all that a model's files say but the weights, and what it would take to load it.

    The arguments are those of :func:`gemlet.load`, and so are the errors for files that are missing, damaged
    or of an architecture gemlet does not run. A model that is merely too large is described, with
    ``problem`` saying so.

    >>> print(str(inspect(weights="q4", max_context=512)).splitlines()[0])
    model      demo
    """
    from gemlet import _core
    from gemlet.load import check_embedding_on_disk, check_max_context, check_weights, choose_formats
    from gemlet.source import open_source

    check_weights(weights)
    check_embedding_on_disk(embedding_on_disk)
    limit = None if max_memory is None else parse_memory(max_memory)
    with open_source(source) as opened:
        if matformer is not None:
            opened = opened.cut(matformer)
        config = opened.config
        context = check_max_context(max_context, config)
        kept_as = opened.kept_as() if weights == "auto" and opened.packed is None else {}
        weights, embedding, own = choose_formats(opened, weights, embedding)
        plan = plan_memory(
            config,
            weights=weights,
            embedding=embedding,
            kv_cache=kv_cache,
            max_context=context,
            embedding_on_disk=embedding_on_disk,
            own_formats=own,
        )
        parameters, on_disk = _parameters(opened, embedding_on_disk)
        tensors = opened.checkpoint.tensors
        problem = None
        room, name = limit, "max_memory"
        if room is None:
            room, name = _core.available_memory() + plan.process, "the memory this process may have"
        try:
            check_memory(
                room,
                config,
                weights=weights,
                embedding=embedding,
                kv_cache=kv_cache,
                max_context=context,
                embedding_on_disk=embedding_on_disk,
                own_formats=own,
                name=name,
            )
        except MemoryLimitError as error:
            problem = str(error)
        return Inspection(
            source=opened.name,
            config=config,
            stored=dict(Counter(opened.checkpoint.dtype(name) for name in opened.slots).most_common()),
            file_bytes=sum(tensors[name].nbytes for name in opened.slots),
            parameters=parameters,
            parameters_on_disk=on_disk,
            vocabulary=None if opened.tokenizer is None else opened.tokenizer.vocab_size,
            chat_format=None if opened.chat_format is None else opened.chat_format.name,
            prompts={} if opened.prompts is None else dict(opened.prompts.texts),
            weights=weights,
            kept_as=kept_as,
            max_context=context,
            plan=plan,
            problem=problem,
        )


def layer_text(layer: LayerSpec, *, bidirectional: bool = False) -> str:
    """One layer in words.

    >>> from gemlet.config import shape_config
    >>> layer_text(shape_config("gemma3-1b").layers[5])
    'full attention, 4 heads of 256, 1 for keys and values; MLP 6912'
    """
    window = f"window {layer.sliding_window}" if layer.sliding_window else "full attention"
    if bidirectional:
        window = f"{layer.sliding_window - 1} tokens to either side" if layer.sliding_window else "all tokens"
    parts = [f"{window}, {layer.num_heads} heads of {layer.head_dim}"]
    if layer.kv_source >= 0:
        parts.append(f"keys and values of layer {layer.kv_source}")
    else:
        shared = ", values are the keys" if layer.key_is_value else ""
        parts.append(f"{layer.num_kv_heads} for keys and values{shared}")
    mlp = f"MLP {layer.intermediate_size}"
    if layer.activation_sparsity is not None:
        mlp += f", sparse above {layer.activation_sparsity:.2f} deviations"
    if layer.num_experts:
        mlp += (
            f"; {layer.experts_per_token} of {layer.num_experts} experts of {layer.expert_intermediate_size}"
        )
    return ", ".join(parts) + "; " + mlp


def _layer_groups(config: TextConfig) -> Iterator[tuple[str, str]]:
    """("0-4", text) for runs of equal layers."""
    first = 0
    for i in range(1, config.num_layers + 1):
        if i == config.num_layers or config.layers[i] != config.layers[first]:
            numbers = f"{first}" if i == first + 1 else f"{first}-{i - 1}"
            yield numbers, layer_text(config.layers[first], bidirectional=config.bidirectional)
            first = i


def _parameters(source: ModelSource, embedding_on_disk: bool) -> tuple[int, int]:
    """All parameters of the text model, and those of the tables that stay on disk."""
    from gemlet.tensors import PER_LAYER_TABLE

    tables = (PER_LAYER_TABLE, "embed_tokens", "lm_head") if embedding_on_disk else (PER_LAYER_TABLE,)
    total = on_disk = 0
    for name, slot in source.slots.items():
        shape, cut = source.checkpoint.tensors[name].shape, source.cuts.get(name)
        count = prod(shape if cut is None else cut.shape(shape))
        total += count
        on_disk += count if slot in tables else 0
    return total, on_disk


def _count(number: int) -> str:
    if number >= 10**9:
        return f"{number / 10**9:.2f} billion"
    return f"{number / 10**6:.0f} million" if number >= 10**7 else f"{number / 10**6:.1f} million"
