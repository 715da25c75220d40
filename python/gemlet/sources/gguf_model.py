"""Opens a model in a GGUF file: :func:`open_gguf`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from gemlet.base.records import replace
from gemlet.checkpoint.gguf_files import GGUFCheckpoint
from gemlet.checkpoint.gguf_format import GGUFFile
from gemlet.config.hf_config import parse_config
from gemlet.config.sentence_transformers import Prompts
from gemlet.config.text_config import TextConfig
from gemlet.sources.gguf_keys import not_followed, read_gguf_keys, read_gguf_sampling
from gemlet.sources.mmproj import add_towers
from gemlet.sources.model_files import ModelFiles
from gemlet.sources.token_order import read_token_order
from gemlet.sources.tokenizers import asked_of_texts, chat_format_of, open_tokenizer
from gemlet.tokenizer.gguf_vocabulary import vocabulary_of_gguf
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.weights.cuts import Cut
from gemlet.weights.gguf_names import ROPE_FREQS, TOKEN_ORDER, gguf_name, map_gguf_tensors
from gemlet.weights.slots import PER_LAYER_TABLE


def open_gguf(
    path: str, *, cache: bool, chat_template: str | None = None, mmproj: str | bool | None = None
) -> ModelFiles:
    """Opens the model in the file ``path``, with the towers in the file ``mmproj``. If ``mmproj`` is None,
    the file is looked for beside the model; if it is False, the model has no towers."""
    checkpoint = GGUFCheckpoint(path)
    try:
        gguf = checkpoint.gguf
        shapes = {tensor: info.shape for tensor, info in checkpoint.tensors.items()}
        keys, passed_over = read_gguf_keys(gguf, shapes, checkpoint.read_vector(ROPE_FREQS))
        config = parse_config(keys, where=f"{gguf.path} (metadata)")
        config = replace(config, passed_over=(*config.passed_over, *passed_over))
        cuts: dict[str, Cut] = {}
        towers = None if config.target_size else add_towers(checkpoint, keys, mmproj)
        if towers is not None:
            config = replace(towers.config, passed_over=(*config.passed_over, *towers.left_out))
            cuts |= towers.cuts
            shapes |= _shorter_table(shapes, config, cuts)
        slots = map_gguf_tensors(shapes, config, where=gguf.path)
        for tensor in slots:
            checkpoint.dtype(tensor)
        order = read_token_order(checkpoint, config, TOKEN_ORDER)
        if towers is not None:
            slots |= towers.slots
        vocabulary = tokenizer = chat_format = template = None
        if "tokenizer.ggml.model" in gguf.metadata:
            vocabulary, tokenizer = open_tokenizer(
                lambda: vocabulary_of_gguf(gguf), lambda: {gguf.path: checkpoint.head()}, cache=cache
            )
            if not config.bidirectional:
                template = chat_template or _chat_template(gguf)
                chat_format = chat_format_of(config, tokenizer, template, override=chat_template is not None)
        sampling, others = read_gguf_sampling(gguf, config.vocab_size)
    except BaseException:
        checkpoint.close()
        raise
    end_ids = _gguf_end_ids(config, tokenizer)
    unknown = not_followed(gguf)
    asked = dict(unknown)
    if not config.bidirectional:
        metadata = gguf.metadata
        asked |= asked_of_texts(*(metadata.get(f"tokenizer.ggml.add_{end}_token") for end in ("bos", "eos")))
    texts = {
        "config.json": json.dumps(keys, indent=2),
        "generation_config.json": json.dumps(
            {"eos_token_id": sorted(end_ids), **sampling, **unknown}, indent=2
        ),
    }
    if towers is not None:
        texts |= towers.texts
    if template is not None:
        texts["chat_template.jinja"] = template
    return ModelFiles(
        name=gguf.path,
        config=config,
        end_ids=end_ids,
        sampling=sampling,
        not_followed=asked,
        tokenizer=tokenizer,
        chat_format=chat_format,
        checkpoint=checkpoint,
        slots=slots,
        cuts=cuts,
        vocabulary=vocabulary,
        config_texts=texts,
        prompts=Prompts() if config.bidirectional else None,
        passed_over=(*config.passed_over, *others),
        token_order=order,
    )


def _shorter_table(
    shapes: Mapping[str, tuple[int, ...]], config: TextConfig, cuts: dict[str, Cut]
) -> dict[str, tuple[int, ...]]:
    """Cuts the per-layer table if it also has rows for ids that are not text, and adds the cut to ``cuts``.
    Returns the name and the new shape of the table, or an empty dict if nothing is cut."""
    name, rows = gguf_name(PER_LAYER_TABLE), config.per_layer_vocab_size
    shape = shapes.get(name, ())
    if len(shape) != 2 or not 0 < rows < shape[0]:
        return {}
    cuts[name] = Cut(rows=((0, rows),))
    return {name: (rows, shape[1])}


def _chat_template(gguf: GGUFFile) -> str | None:
    """The model's chat template. gemlet expects a template to write BOS. A template in a GGUF file may leave
    BOS to the tokenizer; then BOS is added to the template here."""
    template = gguf.get("tokenizer.chat_template", str, None)
    if template is None or "bos_token" in template or "<bos>" in template:
        return template
    return "{{ bos_token }}" + template if gguf.get("tokenizer.ggml.add_bos_token", bool, True) else template


# family -> end tokens that the model's generation_config.json lists, but that the keys of GGUF files leave
# out.
_ENDS = {"gemma4": ("<eos>", "<|tool_response>")}


def _gguf_end_ids(config: TextConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    ids = set(config.eos_token_ids)
    if tokenizer is not None:
        found = {tokenizer.token_id(name) for name in _ENDS.get(config.family, ("<eos>",))}
        ids |= {token_id for token_id in found if token_id is not None and token_id < config.vocab_size}
    return frozenset(ids)
