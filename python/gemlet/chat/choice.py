"""The chat format of a model, by its family, its vocabulary and its template."""

from __future__ import annotations

from gemlet.chat.base import ChatFormat
from gemlet.chat.functiongemma import FUNCTION_GEMMA
from gemlet.chat.gemma import GEMMA
from gemlet.chat.templates import gemma4_format
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["chat_format_for"]

# model_type of config.json (or general.architecture of GGUF).
_GEMMA_TYPES = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text")
_GEMMA4_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


def chat_format_for(
    model_type: str,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    per_layer_inputs: bool = False,
) -> ChatFormat | None:
    """The chat format of a model.

    Args:
        model_type: that of config.json, or ``general.architecture`` of GGUF.
        tokenizer: the model's.
        template: the text of the model's chat template (:func:`read_chat_template`), None where it has none.
            Of Gemma 4 several revisions exist; see :func:`gemma4_format` for how one is recognised. That of
            FunctionGemma speaks of function calls.
        per_layer_inputs: the model has per-layer inputs (E2B, E4B); decides for Gemma 4 without a template.

    Returns:
        None where the family is unknown, the vocabulary lacks the markers, or the template is a foreign one.

    >>> import gemlet
    >>> from gemlet.chat import chat_format_for
    >>> chat_format_for("gemma3_text", gemlet.load().tokenizer).name
    'gemma'
    """
    found: ChatFormat | None = None
    if model_type in _GEMMA_TYPES:
        found = GEMMA
        # A Gemma 3 by its config; only its vocabulary has names for the tokens of calls.
        calls = "<start_function_call>"
        if tokenizer.token_id(calls) is not None and (template is None or calls in template):
            found = FUNCTION_GEMMA
    elif model_type in _GEMMA4_TYPES:
        found = gemma4_format(template, per_layer_inputs=per_layer_inputs)
    if found is None or any(tokenizer.token_id(marker) is None for marker in found.markers):
        return None
    return found
