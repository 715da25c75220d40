"""The result of :func:`gemlet.inspect`, as a value and as text: :class:`Inspection`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gemlet.base.late import dataclasses
from gemlet.base.records import field, record
from gemlet.base.sizes import size_text
from gemlet.base.text import asked_for, listed, show
from gemlet.config.layers import LayerSpec
from gemlet.config.text_config import TextConfig
from gemlet.loading.for_memory import Recommendation
from gemlet.loading.memory_plan import MemoryPlan

__all__ = ["Inspection", "layer_text"]


@record(frozen=True, repr=False)
class Inspection:
    """The result of :func:`gemlet.inspect`; ``print`` shows all of it.

    Attributes:
        source: the file or folder.
        config: the configuration of the model (with ``matformer``, of the smaller model).
        stored: the number of tensors of each type in the files.
        file_bytes: the size of the tensors in the files.
        parameters: the number of parameters of the text model (with ``matformer``, of the smaller model).
        parameters_on_disk: the number of parameters that stay in the file while the model runs.
        tokenizer: the "file" and the "kind" of the tokenizer; None if there is none.
        vocabulary: the number of pieces of the tokenizer; None if there is none.
        chat_format: the name of the chat format; None if there is none.
        prompts: the prompts of an embedding model, by name.
        weights: the format of the argument ``weights``; "auto" is replaced by the format that it chooses.
        formats: the formats in memory of "weights", "embedding", "kv_cache" and, if the output head is a
            separate matrix, "output".
        own_formats: the formats of single matrices that differ from "weights".
        kept_as: for each stored type of matrices, the format in which ``weights="auto"`` keeps it; empty if
            ``weights`` names a format.
        table_type: the stored type of the table of per-layer embeddings; None if there is none.
        max_context: the longest text in tokens for which the plan has room.
        plan: the memory that the model takes.
        problem: the reason why the model does not run on this machine; None if it does.
        recommended: the formats for the memory in ``for_memory``; None without ``for_memory``.
        not_followed: the options in the model's files that gemlet does not follow, by key.
        passed_over: the keys and tensors that gemlet does not know and that change nothing.
        adapter: the adapter in the model's folder, which is merged into the model; None if there is none.

    >>> import gemlet
    >>> found = gemlet.inspect()
    >>> found.config.family, found.weights, found.stored["bf16"] > 10, found.problem
    ('gemma3', 'bf16', True, None)
    >>> found.formats, found.tokenizer
    ({'weights': 'bf16', 'embedding': 'bf16', 'kv_cache': 'bf16'}, \
{'file': 'tokenizer.model', 'kind': 'SentencePiece BPE'})
    """

    source: str
    config: TextConfig
    stored: dict[str, int]
    file_bytes: int
    parameters: int
    parameters_on_disk: int
    tokenizer: dict[str, str] | None
    vocabulary: int | None
    chat_format: str | None
    prompts: dict[str, str]
    weights: str
    formats: dict[str, str]
    own_formats: dict[str, str]
    kept_as: dict[str, str]
    table_type: str | None
    max_context: int
    plan: MemoryPlan
    problem: str | None
    recommended: Recommendation | None = None
    not_followed: dict[str, Any] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    adapter: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts. ``gemlet inspect --json`` prints this.

        >>> import gemlet, json
        >>> found = gemlet.inspect(weights="q4").as_dict()
        >>> found["config"]["hidden_size"], found["weights"], len(json.dumps(found)) > 1000
        (256, 'q4', True)
        """
        memory = dataclasses.asdict(self.plan) | {"total": self.plan.total}
        fields = {name: value for name, value in vars(self).items() if name != "plan"}
        recommended = None if self.recommended is None else dataclasses.asdict(self.recommended)
        own = {"config": dataclasses.asdict(self.config), "memory": memory, "recommended": recommended}
        return fields | own

    def __repr__(self) -> str:
        runs = "runs here" if self.problem is None else f"does not run here: {show(self.problem)}"
        return (
            f"<gemlet.Inspection of {show(self.source)}: {self.config.family}, "
            f"{_count(self.parameters)} parameters, weights {self.weights}, "
            f"{size_text(self.plan.total)} of memory; {runs}>"
        )

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
            f"tensors    {types}; {size_text(self.file_bytes)} in the files",
            f"formats    {self._formats_text()}",
            f"tokenizer  {self._tokenizer_text()}",
            *([f"adapter    {self.adapter}, merged into the model"] if self.adapter is not None else []),
            f"context    {config.max_position_embeddings} tokens",
            *([f"embedding  {self._embedding_text()}"] if config.bidirectional else []),
            *_architecture(config, self.table_type),
            *(f"layer{'s' * (not n.isdigit())} {n}: {text}" for n, text in _layer_kinds(config)),
            f"memory     {self.plan}",
            f"           with weights={self.weights}, max_context={self.max_context}"
            + (f"; {size_text(self.plan.on_disk)} stay on disk" if self.plan.on_disk else ""),
            *([f"advice     for {size_text(best.memory)}: {best}"] if (best := self.recommended) else []),
            *([f"not done   {asked_for(self.not_followed)}"] if self.not_followed else []),
            *([f"passed over {listed(self.passed_over)}"] if self.passed_over else []),
            f"runs here  {'yes' if self.problem is None else f'no: {self.problem}'}",
        ]
        return "\n".join(lines)

    def _formats_text(self) -> str:
        own = Counter(self.own_formats.values()).most_common()
        matrices = ", ".join(f"{count} matri{'x' if count == 1 else 'ces'} {name}" for name, count in own)
        embedding = f"embedding {self.formats['embedding']}"
        if "output" in self.formats:
            embedding += f", output matrix {self.formats['output']}"
        elif not self.config.bidirectional:
            embedding += ", which is the output matrix too"
        return (
            f"weights {self.formats['weights']}{f' (but {matrices})' if own else ''}; {embedding}; "
            f"KV cache {self.formats['kv_cache']}"
        )

    def _tokenizer_text(self) -> str:
        if self.tokenizer is None:
            return "none: it takes and gives token ids"
        text = f"{self.tokenizer['file']}: {self.tokenizer['kind']}, {self.vocabulary} pieces"
        return text if self.config.bidirectional else f"{text}; chat format {self.chat_format or 'none'}"

    def _embedding_text(self) -> str:
        config = self.config
        dense = ", ".join(map(str, config.dense_sizes)) or "none"
        prompts = ", ".join(map(show, self.prompts)) or "none"
        return f"{config.embedding_size} numbers; dense layers {dense}; prompts {prompts}"


def layer_text(layer: LayerSpec, *, bidirectional: bool = False, drafts: bool = False) -> str:
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
        source = "the last such layer of the model" if drafts else f"layer {layer.kv_source}"
        parts.append(f"keys and values of {source}")
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


def _layer_kinds(config: TextConfig) -> Iterator[tuple[str, str]]:
    """("0-4, 6-10", text) for each kind of layer, in the order of the first layer of each kind."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for i, layer in enumerate(config.layers):
        runs = kinds.setdefault(
            layer_text(layer, bidirectional=config.bidirectional, drafts=config.target_size > 0), []
        )
        if runs and runs[-1][1] == i - 1:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    for text, runs in kinds.items():
        yield _runs_text(runs), text


def _runs_text(runs: Sequence[tuple[int, int]]) -> str:
    """Runs of layer numbers as text. Of four or more runs at equal distances, only the first two and the last
    are shown.

    >>> _runs_text([(0, 4), (6, 10), (12, 16), (18, 22), (24, 25)]), _runs_text([(5, 5), (11, 11), (17, 17)])
    ('0-4, 6-10, ..., 18-22, 24-25', '5, 11, 17')
    """
    parts: list[str] = []
    at = 0
    while at < len(runs):
        end = at + 1
        while end < len(runs) and all(
            runs[end][side] - runs[end - 1][side] == runs[at + 1][side] - runs[at][side] for side in (0, 1)
        ):
            end += 1
        names = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[at:end]]
        parts += names if len(names) < 4 else [*names[:2], "...", names[-1]]
        at = end
    return ", ".join(parts)


def _architecture(config: TextConfig, table_type: str | None) -> Iterator[str]:
    """The lines about features that all layers, or all layers of one kind, have in common."""
    rotations: dict[str, list[str]] = {}
    for layer in config.layers:
        text = f"base {layer.rope_theta:,.12g}"
        if layer.rope_scaling_factor != 1:
            text += f", positions / {layer.rope_scaling_factor:g}"
        if layer.rope_partial_factor != 1:
            text += f", {layer.rope_partial_factor:.4g} of each head"
        if layer.rope_frequencies:
            text += ", scaled pair by pair"
        where = "window" if layer.sliding_window else "full attention"
        if where not in rotations.setdefault(text, []):
            rotations[text].append(where)
    if len(rotations) == 1:
        yield f"rope       {next(iter(rotations))}"
    else:
        yield "rope       " + "; ".join(f"{' and '.join(where)}: {text}" for text, where in rotations.items())
    caps = sorted({layer.attention_softcap for layer in config.layers if layer.attention_softcap})
    found = [f"attention scores {cap:g}" for cap in caps]
    found += [f"logits {config.final_softcap:g}"] if config.final_softcap else []
    if found:
        yield f"softcap    {', '.join(found)}"
    if config.target_size:
        yield f"drafts     for a model of hidden size {config.target_size}, whose keys and values it reads"
    if config.centroids:
        yield f"head       {config.centroids_per_token} of {config.centroids} groups of tokens"
    if config.altup_streams > 1:
        yield f"streams    {config.altup_streams} (AltUp), with a LAuReL branch of rank {config.laurel_rank}"
    if config.per_layer_input_size:
        rows = config.per_layer_vocab_size
        table = (
            f"a table of {rows} rows in {table_type}, which stays on disk" if rows else "the embedding alone"
        )
        yield f"per layer  inputs of {config.per_layer_input_size}, from {table}"


def _count(number: int) -> str:
    if number >= 995 * 10**6:
        return f"{number / 10**9:.2f} billion"
    if number < 10**6:
        return f"{number / 10**3:.0f} thousand"
    return f"{number / 10**6:.0f} million" if number >= 10**7 else f"{number / 10**6:.1f} million"
