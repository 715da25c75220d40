"""Chat formats. A chat format turns a list of messages into the prompt form that a model family was trained
on. It also reads the replies of the model.

gemlet implements the formats of the Gemma models. It compares the chat template of a model file with these
formats (:mod:`.templates`, :mod:`.template_probes`). If no format writes the same text as the template,
gemlet runs the template in a sandbox in a separate process (:mod:`.template_process`).

- :data:`GEMMA`: Gemma 1, 2, 3 and 3n (:mod:`.gemma`);
- :data:`FUNCTION_GEMMA`: FunctionGemma, with tools (:mod:`.functiongemma`);
- :class:`Gemma4Format`: Gemma 4 in its published revisions, with tools and thinking (:mod:`.gemma4`);
- :data:`SHIELD_GEMMA`: ShieldGemma, which judges texts by a guideline (:mod:`.shieldgemma`);
- :data:`SHIELD_GEMMA_2`: ShieldGemma 2, which judges images by a policy (:mod:`.shieldgemma2`);
- :class:`TranslateGemmaFormat`: TranslateGemma (:mod:`.translategemma`);
- :class:`TemplateFormat`: any other template of a model (:mod:`.template_format`).

:class:`TokenReplyParser` reads the tokens of a reply. Its events are :class:`Content`, :class:`Reasoning`,
:class:`ToolCall` and :class:`MalformedToolCall`. :func:`collect` combines them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gemlet.base.handlers import importing

if TYPE_CHECKING:
    from gemlet.chat.base import CallGrammar, ChatFormat, Segments
    from gemlet.chat.choice import chat_format_for
    from gemlet.chat.functiongemma import FUNCTION_GEMMA, FunctionGemmaFormat
    from gemlet.chat.functions import describe_function
    from gemlet.chat.gemma import GEMMA, GemmaFormat
    from gemlet.chat.gemma4 import Gemma4Format, Gemma4Revision
    from gemlet.chat.reply import (
        GEMMA4_MARKERS,
        Content,
        MalformedToolCall,
        Reasoning,
        Reply,
        ReplyEvent,
        ReplyParser,
        ToolCall,
        ToolCallPiece,
        collect,
    )
    from gemlet.chat.reply_readers import TextReplyParser, TokenReplyParser
    from gemlet.chat.shieldgemma import SHIELD_GEMMA, ShieldGemmaFormat
    from gemlet.chat.shieldgemma2 import SHIELD_GEMMA_2, ShieldGemma2Format
    from gemlet.chat.template_format import TemplateFormat
    from gemlet.chat.templates import gemma4_format, read_chat_template
    from gemlet.chat.translategemma import TranslateGemmaFormat

__all__ = [
    "FUNCTION_GEMMA",
    "GEMMA",
    "GEMMA4_MARKERS",
    "SHIELD_GEMMA",
    "SHIELD_GEMMA_2",
    "CallGrammar",
    "ChatFormat",
    "Content",
    "FunctionGemmaFormat",
    "Gemma4Format",
    "Gemma4Revision",
    "GemmaFormat",
    "MalformedToolCall",
    "Reasoning",
    "Reply",
    "ReplyEvent",
    "ReplyParser",
    "Segments",
    "ShieldGemma2Format",
    "ShieldGemmaFormat",
    "TemplateFormat",
    "TextReplyParser",
    "TokenReplyParser",
    "ToolCall",
    "ToolCallPiece",
    "TranslateGemmaFormat",
    "chat_format_for",
    "collect",
    "describe_function",
    "gemma4_format",
    "read_chat_template",
]

# Public name -> the module that defines it. A module is imported at the first use of a name, because a model
# needs only one of the formats.
_LAZY = {
    "CallGrammar": "gemlet.chat.base",
    "ChatFormat": "gemlet.chat.base",
    "Content": "gemlet.chat.reply",
    "FUNCTION_GEMMA": "gemlet.chat.functiongemma",
    "FunctionGemmaFormat": "gemlet.chat.functiongemma",
    "GEMMA": "gemlet.chat.gemma",
    "GEMMA4_MARKERS": "gemlet.chat.reply",
    "Gemma4Format": "gemlet.chat.gemma4",
    "Gemma4Revision": "gemlet.chat.gemma4",
    "GemmaFormat": "gemlet.chat.gemma",
    "MalformedToolCall": "gemlet.chat.reply",
    "Reasoning": "gemlet.chat.reply",
    "Reply": "gemlet.chat.reply",
    "ReplyEvent": "gemlet.chat.reply",
    "ReplyParser": "gemlet.chat.reply",
    "SHIELD_GEMMA": "gemlet.chat.shieldgemma",
    "SHIELD_GEMMA_2": "gemlet.chat.shieldgemma2",
    "Segments": "gemlet.chat.base",
    "ShieldGemma2Format": "gemlet.chat.shieldgemma2",
    "ShieldGemmaFormat": "gemlet.chat.shieldgemma",
    "TemplateFormat": "gemlet.chat.template_format",
    "TextReplyParser": "gemlet.chat.reply_readers",
    "TokenReplyParser": "gemlet.chat.reply_readers",
    "ToolCall": "gemlet.chat.reply",
    "ToolCallPiece": "gemlet.chat.reply",
    "TranslateGemmaFormat": "gemlet.chat.translategemma",
    "chat_format_for": "gemlet.chat.choice",
    "collect": "gemlet.chat.reply",
    "describe_function": "gemlet.chat.functions",
    "gemma4_format": "gemlet.chat.templates",
    "read_chat_template": "gemlet.chat.templates",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing():
        value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
