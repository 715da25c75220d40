"""Chooses the chat format of a model by its family, its vocabulary and its template."""

from __future__ import annotations

from gemlet.base.front_door import public
from gemlet.base.late import log
from gemlet.chat.base import ChatFormat
from gemlet.chat.functiongemma import FUNCTION_GEMMA
from gemlet.chat.gemma import GEMMA
from gemlet.chat.gemma4 import Gemma4Format
from gemlet.chat.shieldgemma2 import SHIELD_GEMMA_2
from gemlet.chat.templates import gemma4_format, is_published_template, special_format
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["chat_format_for"]


# Values of ``model_type`` in config.json, or of ``general.architecture`` in GGUF.
_GEMMA_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "shieldgemma2")
_CALLS = "<start_function_call>"
_GEMMA4_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


@public
def chat_format_for(
    model_type: str,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    per_layer_inputs: bool = False,
) -> ChatFormat | None:
    """The chat format of a model.

    Args:
        model_type: the ``model_type`` of config.json, or ``general.architecture`` of GGUF.
        tokenizer: the tokenizer of the model.
        template: the text of the model's chat template (:func:`read_chat_template`), or None. For a published
            template of Gemma, and for a template that writes the same text, the result is a format that
            gemlet implements. For any other template, the result is a format that runs the template in a
            sandbox. This needs jinja2.
        per_layer_inputs: whether the model has per-layer inputs (E2B, E4B). For a Gemma 4 without a template,
            this decides whether prompts end in an empty thought.

    Returns:
        The chat format. None if the family is unknown, or if there is no template and the vocabulary lacks a
        marker. If the template cannot be run, each use of the format raises :class:`UnsupportedError`.

    >>> import gemlet
    >>> from gemlet.chat import chat_format_for
    >>> tokenizer = gemlet.load().tokenizer
    >>> chat_format_for("gemma3_text", tokenizer).name
    'gemma'
    >>> ours = chat_format_for("gemma3_text", tokenizer, template="{{ messages[0].content }}")
    >>> ours.name, ours.render([{"role": "user", "content": "Hi"}])
    ('template', 'Hi')
    """
    if not isinstance(model_type, str):
        raise TypeError(f"model_type has to be a str, got {type(model_type).__name__}")
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer has to be a Tokenizer, got {type(tokenizer).__name__}")
    if template is not None and not isinstance(template, str):
        raise TypeError(f"template has to be a str or None, got {type(template).__name__}")
    if template is not None:  # Jinja reads every line break as a line feed
        template = template.replace("\r\n", "\n").replace("\r", "\n")
    template = template if template and template.strip() else None
    known: ChatFormat | None = None
    if model_type in _GEMMA_TYPES:
        known = SHIELD_GEMMA_2 if model_type == "shieldgemma2" else GEMMA
        # FunctionGemma has the config of a Gemma 3, but only its vocabulary has named tokens for calls.
        if tokenizer.token_id(_CALLS) is not None and (template is None or _CALLS in template):
            known = FUNCTION_GEMMA
        is_published = template is None or is_published_template(template)
        if template is not None and (special := special_format(template)) is not None:
            known, is_published = special, True
    elif model_type in _GEMMA4_TYPES:
        found = gemma4_format(template, per_layer_inputs=per_layer_inputs)
        known, is_published = found, found is not None and found.is_exact
    else:
        return None
    if known is not None and any(tokenizer.token_id(marker) is None for marker in known.markers):
        known = None
    if template is None or (known is not None and is_published):
        return known
    from gemlet.chat.template_probes import format_of_template
    from gemlet.chat.template_process import EXTRA, can_run_templates

    if isinstance(known, Gemma4Format) and not can_run_templates():
        log.warning(
            "the chat template is a revision of Gemma 4's template that gemlet does not know; gemlet writes "
            "prompts as in the revision %r, and details may differ from the template. gemlet runs the "
            "template itself if jinja2 is installed: %s",
            known.revision.name,
            EXTRA,
        )
        return known
    return format_of_template(template, tokenizer, known)
