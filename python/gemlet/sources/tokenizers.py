"""The tokenizer and the chat format of a model that is being opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gemlet.chat.base import ChatFormat
from gemlet.chat.choice import chat_format_for
from gemlet.config.text_config import TextConfig
from gemlet.tokenizer.cache import keep_vocabulary, kept_vocabulary, vocabulary_key
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.tokenizer.vocabulary import Vocabulary


def open_tokenizer(
    read: Callable[[], Vocabulary], contents: Callable[[], Mapping[str, bytes]], *, cache: bool
) -> tuple[Vocabulary, Tokenizer]:
    """What ``read`` makes of the files with these ``contents``, the vocabulary's first."""
    from gemlet import _core

    files = contents() if cache else {}
    key = vocabulary_key(files)
    found = kept_vocabulary(key, next(iter(files))) if files else None
    vocabulary = read() if found is None else found
    tokenizer = Tokenizer(vocabulary)
    if found is None:
        _core.return_free_memory()  # reading a vocabulary takes twice what it leaves
    # What replaced the files meanwhile has another key.
    if files and found is None and vocabulary_key(contents()) == key:
        keep_vocabulary(key, vocabulary)
    return vocabulary, tokenizer


def chat_format_of(config: TextConfig, tokenizer: Tokenizer, template: str | None) -> ChatFormat | None:
    per_layer_inputs = config.per_layer_input_size > 0
    return chat_format_for(config.model_type, tokenizer, template=template, per_layer_inputs=per_layer_inputs)
