"""The chat format of TranslateGemma, a Gemma 3 that translates::

    <bos><start_of_turn>user
    You are a professional {source} ({code}) to {target} ({code}) translator. ...:


    {text}<end_of_turn>
    <start_of_turn>model

A message of the user is one part with its languages: ``{"type": "text", "source_lang_code": "de",
"target_lang_code": "en", "text": "Guten Tag"}``. The part may also be an image that shows text,
``{"type": "image", ..., "image": "sign.jpg"}``; the prompt then has other words before the image. The names
of the languages come from the model's chat template, which gemlet reads but does not run. gemlet writes the
same bytes as the template, including its oddities: earlier replies begin with an empty line and eight spaces.

Unlike in the template, a message may be a plain text, if the format has the languages
(:meth:`TranslateGemmaFormat.with_values`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.patterns import late_pattern
from gemlet.base.records import field, record, replace
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat, Messages, Segments, Tools
from gemlet.chat.gemma import GEMMA
from gemlet.chat.media_places import stands_for_media
from gemlet.chat.messages import check_flags, checked_messages, checked_tools, refuse_other_than_text, role_of
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["TranslateGemmaFormat", "split_template"]

_LANGUAGES = late_pattern(r"\s*\{%-? set languages = \{\n(.*?)\n\}\s*-?%\}", re.DOTALL)
_LANGUAGE = late_pattern(r'\s*"([^"\\{}]{1,40})": "([^"\\{}]{1,80})",?')
_CODES = ("source_lang_code", "target_lang_code")
_ASK = (
    "You are a professional {source} ({source_code}) to {target} ({target_code}) translator. Your goal is to "
    "accurately convey the meaning and nuances of the original {source} text while adhering to {target} "
    "grammar, vocabulary, and cultural sensitivities.\n"
)
_OF_TEXT = (
    "Produce only the {target} translation, without any additional explanations or commentary. Please "
    "translate the following {source} text into {target}:\n\n\n"
)
_OF_IMAGE = (
    "Please translate the {source} text in the provided image into {target}. Produce only the {target} "
    "translation, without any additional explanations, alternatives or commentary. Focus only on the text, "
    "do not output where the text is located, surrounding objects or any other explanation about the "
    "picture. Ignore symbols, pictogram, and arrows!\n\n\n"
)
_BEFORE_HISTORY = "\n        "  # the template writes this before an earlier reply


def split_template(template: str) -> tuple[dict[str, str], str]:
    """Splits a template of TranslateGemma into a mapping from the codes to the names of languages, and the
    rest of the template. The mapping is empty if the template does not begin with languages.

    >>> split_template('{%- set languages = {\\n    "de": "German",\\n}\\n-%}\\n{{ bos_token }}')
    ({'de': 'German'}, '{{ bos_token }}')
    """
    head = _LANGUAGES.match(template)
    lines = [_LANGUAGE.fullmatch(line) for line in head[1].split("\n")] if head else []
    languages = {line[1]: line[2] for line in lines if line}
    if head is None or len(lines) > sum(map(bool, lines)):
        return {}, template
    return languages, template[head.end() :].strip()


@record(frozen=True, repr=False)
class TranslateGemmaFormat(ChatFormat):
    """The format that :mod:`gemlet.chat.translategemma` describes. It has no tools and no thinking.

    Attributes:
        languages: a mapping from the codes to the names of the languages.
        values: the languages for messages that name no language, as :meth:`with_values` sets them.

    >>> formatted = TranslateGemmaFormat({"de": "German", "en": "English"})
    >>> chosen = formatted.with_values(source_lang_code="de", target_lang_code="en")
    >>> chosen.render([{"role": "user", "content": "Guten Tag"}]).splitlines()[1][:51]
    'You are a professional German (de) to English (en) '
    """

    languages: Mapping[str, str]
    values: Mapping[str, str] = field(default_factory=dict)

    name = "translategemma"
    markers = GEMMA.markers
    ends = GEMMA.ends

    @public
    def with_values(
        self, *, source_lang_code: str | None = None, target_lang_code: str | None = None
    ) -> TranslateGemmaFormat:
        """This format with languages for messages that name no language. These messages may be plain texts.

        >>> TranslateGemmaFormat({"de": "German"}).with_values(source_lang_code="de").values
        {'source_lang_code': 'de'}
        """
        given = dict(zip(_CODES, (source_lang_code, target_lang_code), strict=True))
        checked = {name: code for name, code in given.items() if code is not None}
        for name, code in checked.items():
            self._language(code, name)
        return replace(self, values={**self.values, **checked})

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        check_flags(thinking=thinking, add_generation_prompt=add_generation_prompt)
        for asked, what in ((checked_tools(tools), "tools"), (thinking, "thinking")):
            if asked:
                raise UnsupportedError(f"{what}: the chat format {self.name} has none; it translates only")
        bos, turn_start, turn_end = self.markers
        out = Segments()
        out.marker(bos)
        for index, message in enumerate(checked_messages(messages)):
            where = f"messages[{index}]"
            role = role_of(message, where, ("user", "assistant"), self.name)
            if (role == "user") != (index % 2 == 0):
                raise InvalidRequestError(
                    f"{where} has the role {role}; expected that user and assistant take turns"
                )
            out.marker(turn_start)
            if role == "user":
                out.text("user\n" + self._question(message.get("content"), f"{where}.content"))
            else:
                out.text("model\n" + _BEFORE_HISTORY + _answer(message.get("content"), f"{where}.content"))
            out.marker(turn_end)
            out.text("\n")
        if add_generation_prompt:
            out.marker(turn_start)
            out.text("model\n")
        return out

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        return GEMMA.reply_parser(tokenizer, prompt_ids)

    def _question(self, content: Any, where: str) -> str:
        part = {"type": "text", "text": content} if isinstance(content, str) else content
        if isinstance(part, Sequence) and len(part) == 1:
            (part,) = part
        if not isinstance(part, Mapping):
            raise InvalidRequestError(
                f"{where} is {show(content)}; expected a list of one part, "
                '{"type": "text", "source_lang_code": ..., "target_lang_code": ..., "text": ...}'
            )
        if (kind := refuse_other_than_text(part, where)) != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"{where}: got a part of type {show(kind)}; expected the type text with a string as text"
            )
        codes = [part.get(name, self.values.get(name)) for name in _CODES]
        source, target = map(self._language, codes, (f"{where}.{name}" for name in _CODES))
        source_code, target_code = (str(code).replace("_", "-") for code in codes)
        asked = _ASK + (_OF_IMAGE if stands_for_media(part["text"]) else _OF_TEXT)
        names = {"source": source, "source_code": source_code, "target": target, "target_code": target_code}
        return asked.format(**names) + str(part["text"]).strip()

    def _language(self, code: Any, where: str) -> str:
        if code is None:
            raise InvalidRequestError(
                f"{where} is missing; give the language in the message, or for all messages with "
                'model.chat_format.with_values(source_lang_code="de", target_lang_code="en")'
            )
        name = self.languages.get(code.replace("_", "-")) if isinstance(code, str) else None
        if name is None:
            import difflib

            near = difflib.get_close_matches(str(code)[:40], self.languages, 3)
            meant = (
                f"; did you mean {' or '.join(near)}?" if near else "; expected a code such as de or pt-BR"
            )
            raise InvalidRequestError(
                f"{where} is {show(code)}, which the model's template does not know{meant}"
            )
        return name


def _answer(content: Any, where: str) -> str:
    if not isinstance(content, str):
        raise InvalidRequestError(f"{where} is {show(content)}; expected a string")
    return content.strip()
