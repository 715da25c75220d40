"""Opens the tokenizer and the chat format of a model."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from gemlet.base.files import MAX_VOCABULARY_BYTES, checked_path, is_there, read_file
from gemlet.base.strict_json import read_json_object
from gemlet.chat.base import ChatFormat
from gemlet.chat.choice import chat_format_for
from gemlet.chat.templates import read_template_file
from gemlet.config.text_config import TextConfig
from gemlet.errors import TokenizerError, UnsupportedError
from gemlet.tokenizer.cache import keep_vocabulary, kept_vocabulary, vocabulary_key
from gemlet.tokenizer.tokenizer import Tokenizer
from gemlet.tokenizer.vocabulary import Vocabulary


def open_tokenizer(
    read: Callable[[], Vocabulary], contents: Callable[[], Mapping[str, bytes]], *, cache: bool
) -> tuple[Vocabulary, Tokenizer]:
    """Returns the vocabulary that ``read`` returns, and a tokenizer for it. ``contents`` returns a map (path
    -> content) of the files that ``read`` reads; the file with the vocabulary comes first. With ``cache``,
    the parsed vocabulary is taken from the cache, or put there."""
    from gemlet import _core

    files = contents() if cache else {}
    key = vocabulary_key(files)
    found = kept_vocabulary(key, next(iter(files))) if files else None
    vocabulary = read() if found is None else found
    tokenizer = Tokenizer(vocabulary)
    if not vocabulary.checked:
        _core.return_free_memory()  # parsing a vocabulary needs twice the memory of the result
    # The vocabulary is put into the cache only if the files have not changed since ``contents`` was called
    # first.
    if files and found is None and vocabulary_key(contents()) == key:
        keep_vocabulary(key, vocabulary)
    return vocabulary, tokenizer


ASKED_OF_TEXTS = ("add_bos_token", "add_eos_token")  # the keys that asked_of_texts() may return


def asked_of_texts(add_bos: object, add_eos: object) -> dict[str, bool]:
    """Which of the options ``add_bos_token`` and ``add_eos_token`` in a model's files gemlet does not follow.
    gemlet always puts BOS at the beginning of a text, and never puts EOS at the end of a prompt.

    >>> asked_of_texts(False, None), asked_of_texts(True, False)
    ({'add_bos_token': False}, {})
    """
    asked = {"add_bos_token": False} if add_bos is False else {}
    return asked | ({"add_eos_token": True} if add_eos is True else {})


def asked_by_folder(folder: str, eos: str | None = None) -> dict[str, bool]:
    """:func:`asked_of_texts` for the tokenizer's files in ``folder``. The options are in
    ``tokenizer_config.json``. The post-processor in ``tokenizer.json`` also counts as ``add_eos_token`` if it
    puts ``eos`` after each text."""
    path = os.path.join(folder, "tokenizer_config.json")
    config = read_json_object(path, error=TokenizerError) if is_there(path) else {}
    asked = asked_of_texts(config.get("add_bos_token"), config.get("add_eos_token"))
    if eos is not None and _last_piece(os.path.join(folder, "tokenizer.json")) == eos:
        asked["add_eos_token"] = True
    return asked


# A piece of the vocabulary may also be called "post_processor", but then a number follows and no brace.
_POST_PROCESSOR = re.compile(rb'"post_processor"\s*:\s*(?=\{)')
_LONGEST_STEPS = 1 << 16  # bytes of the post-processor


def _last_piece(path: str) -> str | None:
    """The special token that the post-processor of a ``tokenizer.json`` puts after every text. The file has
    tens of megabytes, and only this part of it is parsed."""
    data = read_file(path, MAX_VOCABULARY_BYTES) if is_there(path) else b""
    if (found := _POST_PROCESSOR.search(data)) is None:
        return None
    text = data[found.end() : found.end() + _LONGEST_STEPS].decode("utf-8", "ignore")
    with contextlib.suppress(ValueError, RecursionError):
        return _after(json.JSONDecoder().raw_decode(text)[0])
    return None


def _after(step: dict[str, Any]) -> str | None:
    steps = step.get("processors") if step.get("type") == "Sequence" else [step]
    for one in steps if isinstance(steps, list) else []:
        single = one.get("single") if isinstance(one, dict) else None
        last = single[-1] if isinstance(single, list) and single else None
        special = last.get("SpecialToken") if isinstance(last, dict) else None
        if isinstance(special, dict) and isinstance(special.get("id"), str):
            return str(special["id"])
    return None


def chat_format_of(
    config: TextConfig, tokenizer: Tokenizer, template: str | None, *, override: bool = False
) -> ChatFormat | None:
    """The chat format of ``template``. ``override`` says that the caller chose the template. Then a template
    that cannot be run raises :class:`UnsupportedError` here, and not at the first chat."""
    per_layer_inputs = config.per_layer_input_size > 0
    found = chat_format_for(
        config.model_type, tokenizer, template=template, per_layer_inputs=per_layer_inputs
    )
    if override:
        from gemlet.chat.template_format import TemplateFormat

        if isinstance(found, TemplateFormat) and found.problem is not None:
            raise UnsupportedError(f"chat_template: {found.problem}")
    return found


def read_override(chat_template: str | os.PathLike[str] | None) -> str | None:
    """The text of the template that a caller passes as ``chat_template``: a text with a Jinja tag, or the
    path of a file.

    Raises:
        ModelFileError: there is no such file, or it cannot be read.
        InvalidRequestError: ``chat_template`` is neither a text with a tag nor a path.

    >>> read_override("{{ messages }}")
    '{{ messages }}'
    """
    if chat_template is None:
        return None
    if isinstance(chat_template, str) and ("{{" in chat_template or "{%" in chat_template):
        return chat_template
    return read_template_file(
        checked_path("chat_template", chat_template, "the text of a Jinja template, or a path")
    )
