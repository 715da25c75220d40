"""The tokenizer and the chat format of a model that is being opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from gemlet.base.files import own_path
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat
from gemlet.chat.choice import chat_format_for
from gemlet.chat.template_format import TemplateFormat
from gemlet.chat.templates import read_template_file
from gemlet.config.text_config import TextConfig
from gemlet.errors import InvalidRequestError, UnsupportedError
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


def chat_format_of(
    config: TextConfig, tokenizer: Tokenizer, template: str | None, *, override: bool = False
) -> ChatFormat | None:
    """The chat format that ``template`` is. With ``override`` the caller has asked for it, and hears at once
    why it cannot be run."""
    per_layer_inputs = config.per_layer_input_size > 0
    found = chat_format_for(
        config.model_type, tokenizer, template=template, per_layer_inputs=per_layer_inputs
    )
    if override and isinstance(found, TemplateFormat) and found.problem is not None:
        raise UnsupportedError(f"chat_template: {found.problem}")
    return found


def read_override(chat_template: str | os.PathLike[str] | None) -> str | None:
    """The text of a template that a caller gave: text with a tag of Jinja in it, or the path of a file.

    Raises:
        ModelFileError: no such file, or one that cannot be read.
        InvalidRequestError: it is neither.

    >>> read_override("{{ messages }}")
    '{{ messages }}'
    """
    if chat_template is None:
        return None
    if isinstance(chat_template, str) and ("{{" in chat_template or "{%" in chat_template):
        return chat_template
    path = os.fspath(chat_template) if isinstance(chat_template, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidRequestError(
            f"chat_template is {show(chat_template)}; expected the text of a Jinja template, or a path"
        )
    return read_template_file(own_path(path))
