"""Recognises a chat template by running it on some conversations, the probes: :func:`format_of_template`.

If the template writes the same text as one of gemlet's own formats for all probes, gemlet uses that format.
Any other template is run for every conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemlet.base.patterns import late_pattern
from gemlet.base.records import replace
from gemlet.chat.base import ChatFormat
from gemlet.chat.gemma import GEMMA, GemmaFormat
from gemlet.chat.template_format import Template, TemplateFormat
from gemlet.chat.template_process import OVERRIDE, Rendered, run_template
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["format_of_template"]

_Message = dict[str, Any]
_Probe = dict[str, Any]


def _user(content: Any) -> _Message:
    return {"role": "user", "content": content}


def _assistant(content: Any, **more: Any) -> _Message:
    return {"role": "assistant", "content": content, **more}


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


_FIRST, _ANSWER, _SECOND = "gemlet asks one", "gemlet answers one", "gemlet asks two"
_TALK = [_user(_FIRST), _assistant(_ANSWER), _user(_SECOND)]
_TALK_IN_PARTS = [{**message, "content": _parts(message["content"])} for message in _TALK]
_LONG = [
    _user(" one \n"),
    _assistant("\ttwo\n\n"),
    _user("three\n\n  four "),
    _assistant("five"),
    _user("six"),
]
_SYSTEM = {"role": "system", "content": " Be brief.\n"}
_PART_AS_PYTHON = "'type': 'text'"
_TOOL = "gemlet_weather"
_PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The place.", "enum": ["Oslo", "Rome"]},
        "days": {"type": "array", "items": {"type": "integer"}, "nullable": True},
        "more": {"type": "object", "properties": {"unit": {"type": "string"}}, "required": ["unit"]},
    },
    "required": ["city"],
}
_TOOLS = [
    {"type": "function", "function": {"name": _TOOL, "description": "Tells.", "parameters": _PARAMETERS}}
]
_CALL = {
    "id": "call_0",
    "type": "function",
    "function": {"name": _TOOL, "arguments": {"city": "Oslo", "days": [1, 2], "more": {"unit": None}}},
}
_RESULT = {"role": "tool", "tool_call_id": "call_0", "name": _TOOL, "content": "It rains."}
_ANSWERED = [_user("Rain?"), _assistant("", tool_calls=[_CALL]), _RESULT]
_THOUGHT = [_user("Rain?"), _assistant("Yes.", reasoning_content="It is Oslo."), _user("Still?")]

# The results of the first two probes show in which form the template reads the content of a message, and what
# ends a turn.
_PROBES: tuple[_Probe, ...] = (
    {"messages": _TALK},
    {"messages": _TALK_IN_PARTS},
    {"messages": [_user("Hi")]},
    {"messages": [_user("Hi")], "add_generation_prompt": False},
    {"messages": [_user("")]},
    {"messages": _LONG},
    {"messages": _LONG[:4], "add_generation_prompt": False},
    {"messages": [_user(_parts(" a ", "b\n"))]},
    {"messages": [_SYSTEM, _user(" Hi ")]},
    {"messages": [_SYSTEM, *_TALK]},
    {"messages": [{**_SYSTEM, "content": _parts("Be brief.")}, _user("Hi")]},
    {"messages": [_user("one"), _user("two")]},
    {"messages": [_user("Hi")], "tools": _TOOLS},
    {"messages": [_SYSTEM, _user("Hi")], "tools": _TOOLS, "thinking": True},
    {"messages": [_user("Hi")], "thinking": True},
    {"messages": _ANSWERED, "tools": _TOOLS},
    {"messages": [*_ANSWERED, _assistant("It does."), _user("Still?")], "tools": _TOOLS},
    {"messages": [*_ANSWERED[:2]], "tools": _TOOLS},
    {"messages": _THOUGHT, "thinking": True},
    {"messages": [_user("Rain?"), _assistant("", reasoning_content="Hm.", tool_calls=[_CALL]), _RESULT]},
)
# The indices of the probes that the template must not refuse. The template may refuse the other probes.
_NEEDED = (0, 2, 3, 5, 6)
_MEDIA_TOKENS = {
    "image_token": ("<image_soft_token>", "<|image|>"),
    "boi_token": ("<start_of_image>", "<|image>"),
    "eoi_token": ("<end_of_image>", "<image|>"),
    "audio_token": ("<audio_soft_token>", "<|audio|>"),
    "boa_token": ("<start_of_audio>", "<|audio>"),
    "eoa_token": ("<end_of_audio>", "<audio|>"),
}
# Tokens that end a turn in every template that has them.
_END_MARKS = ("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>")
# Texts that end a turn and are not tokens of the vocabulary, such as <|im_end|>, or ### Instruction: on a
# line.
_MARK = late_pattern(r"\s*(?:<[^<>\s]{2,30}>|[^<{}\"'\s].{2,40})")
# A piece of text -> the name of the family of templates that have this piece.
_LABELS = (
    ("<|im_start|>", "ChatML"),
    ("### Instruction", "Alpaca"),
    ("source_lang_code", "TranslateGemma"),
    ("safety principle", "ShieldGemma"),
    ("[INST]", "Llama 2"),
    ("<|start_header_id|>", "Llama 3"),
)


class _WithoutTools(GemmaFormat):
    prompts_tools = False


_GEMMA_WITHOUT_TOOLS = _WithoutTools()


def format_of_template(template: str, tokenizer: Tokenizer, known: ChatFormat | None) -> ChatFormat:
    """Finds the format of ``template``.

    Args:
        template: the text of the model's chat template.
        tokenizer: the tokenizer of the model.
        known: the format of gemlet that the template may describe; None if there is no such format.

    Returns:
        ``known`` itself, or a :class:`TemplateFormat`. If the template cannot be run, each use of the
        :class:`TemplateFormat` raises an error.

    >>> import gemlet
    >>> from gemlet.chat import GEMMA
    >>> tokenizer = gemlet.load().tokenizer
    >>> text = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}"
    >>> found = format_of_template(text, tokenizer, GEMMA)
    >>> found.name, found.ends
    ('ChatML template', ('<end_of_turn>',))
    """
    read = Template(template, _special_tokens(tokenizer))
    label = next((f"{label} template" for piece, label in _LABELS if piece in template), "template")
    found = TemplateFormat(read, tokenizer, label)
    try:
        rendered = run_template(template, [read.variables(**probe) for probe in _PROBES])
    except (UnsupportedError, InvalidRequestError) as problem:
        return _not_run(found, str(problem))
    if "messages" not in rendered.names:
        return _not_run(found, f"the model's chat template does not read the messages; {OVERRIDE}")
    if known is not None and _is_same(known, rendered):
        return known
    in_text, in_parts = rendered.texts[:2]
    read = replace(read, names=rendered.names, content=_content(in_text, in_parts))
    end, is_token = _end(in_text if _has_all(in_text) else in_parts, tokenizer)
    names = tokenizer.named_tokens
    marks = [mark for mark in _END_MARKS if mark in names and mark in template]
    ends = tuple(dict.fromkeys([*([end] if is_token else []), *marks]))
    base = known if known is not None and _has_turns_of(known, rendered.texts[0]) else None
    return replace(
        found,
        template=read,
        base=base,
        ends=ends if base is None else (*base.ends, *(name for name in ends if name not in base.ends)),
        stops=(end,) if end and not is_token and not ends else (),
    )


def _not_run(found: TemplateFormat, why: str) -> TemplateFormat:
    return replace(found, name=f"{found.name}, which cannot be run", problem=UnsupportedError(why))


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens. The keys are the names that transformers gives to the tokens."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    found = {f"{name}_token": tokenizer.id_to_piece(i) for name, i in ids.items() if i is not None}
    for name, tokens in _MEDIA_TOKENS.items():
        if there := [token for token in tokens if tokenizer.token_id(token) is not None]:
            found[name] = there[0]
    return found


def _is_same(known: ChatFormat, rendered: Rendered) -> bool:
    for index, (probe, text) in enumerate(zip(_PROBES, rendered.texts, strict=True)):
        if isinstance(text, GemletError):
            if index in _NEEDED:
                return False
            continue
        if _PART_AS_PYTHON in text or f"{known.markers[1]}tool\n" in text:
            # A mistake of the template: it prints a list instead of the text, or writes a turn of a tool.
            continue
        expected = _expected(known, probe)
        # It is no difference if only the format refuses the probe, unless the template writes the tool.
        if (expected is None and _TOOL in text) or expected not in (None, text):
            return False
    return True


def _expected(known: ChatFormat, probe: Mapping[str, Any]) -> str | None:
    """The text that the format writes for the probe. Tools or thinking are left out if the format does not
    have them. None if the format refuses the probe."""
    known = _GEMMA_WITHOUT_TOOLS if known is GEMMA else known
    for left_out in ((), ("tools",), ("thinking",), ("tools", "thinking")):
        try:
            return known.render(**{name: value for name, value in probe.items() if name not in left_out})
        except UnsupportedError:
            continue
        except InvalidRequestError:
            break
    return None


def _has_all(text: str | GemletError) -> bool:
    return isinstance(text, str) and all(said in text for said in (_FIRST, _ANSWER, _SECOND))


def _content(in_text: str | GemletError, in_parts: str | GemletError) -> str:
    takes_parts = (
        _has_all(in_parts) and _PART_AS_PYTHON not in str(in_parts) and '"type"' not in str(in_parts)
    )
    if _has_all(in_text):
        return "any" if takes_parts else "text"
    return "parts" if takes_parts else "any"


def _end(text: str | GemletError, tokenizer: Tokenizer) -> tuple[str, bool]:
    """The text or token that ends an answer in ``text``, and whether it is a token. The text is "" if nothing
    ends an answer."""
    if not _has_all(text):
        return "", False
    behind = str(text).partition(_ANSWER)[2].partition(_SECOND)[0]
    names = tokenizer.named_tokens
    for part in tokenizer.split(behind):
        if isinstance(part, int):
            name = tokenizer.id_to_piece(part)
            if name in names and not name.isspace():
                return name, True
        elif part.strip():
            mark = _MARK.match(part)
            return (mark[0].lstrip() if "<" in mark[0] else mark[0].rstrip(), False) if mark else ("", False)
    return "", False


def _has_turns_of(known: ChatFormat, talk: str | GemletError) -> bool:
    """Whether the template marks turns like ``known``. Then ``known`` can read the calls and thoughts in a
    reply."""
    return known is not GEMMA and f"{known.markers[1]}model\n" in str(talk)
