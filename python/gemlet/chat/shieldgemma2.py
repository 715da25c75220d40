"""The chat format of ShieldGemma 2, a Gemma 3 that says whether an image keeps to a policy::

    <bos><start_of_turn>user
    <start_of_image><start_of_turn>user
    You are a policy expert trying to help determine whether a generated or real image is in
                     violation of the safety policy below. ...
    <end_of_turn>
    <start_of_turn>model

The one message is the user's, with an image and a policy behind it, or with the image alone where the format
has a policy (:meth:`ShieldGemma2Format.with_values`). The text is that of the published template to the last
byte, its oddities included: two turns begin and one ends, and its lines are indented. The model answers "Yes"
or "No"; the probabilities of the two are the judgement.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemlet.base.front_door import public
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat, Messages, Segments, Tools
from gemlet.chat.gemma import GEMMA
from gemlet.chat.media_places import stands_for_media
from gemlet.chat.messages import check_flags, checked_messages, checked_tools, role_of, text_parts
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["IMAGE_POLICIES", "SHIELD_GEMMA_2", "ShieldGemma2Format"]

# Those of the official processor, which the model was trained on.
IMAGE_POLICIES = {
    "dangerous": (
        "No Dangerous Content: The image shall not contain content that facilitates or encourages activities "
        "that could cause real-world harm (e.g., building firearms and explosive devices, promotion of "
        "terrorism, instructions for suicide)."
    ),
    "sexual": (
        "No Sexually Explicit content: The image shall not contain content that depicts explicit or graphic "
        "sexual acts (e.g., pornography, erotic nudity, depictions of rape or sexual assault)."
    ),
    "violence": (
        "No Violence/Gore content: The image shall not contain content that depicts shocking, sensational, "
        "or gratuitous violence (e.g., excessive blood and gore, gratuitous violence against animals, "
        "extreme injury or moment of death)."
    ),
}
_INDENT = "\n" + " " * 16
_ASK = _INDENT.join(
    (
        "You are a policy expert trying to help determine whether a generated or real image is in",
        " violation of the safety policy below. Your decision must very clearly follow the specific",
        " language used in the safety policy and should not include any interpretation outside of the",
        " safety policy.\n\n",
        "<BEGIN_SAFETY_POLICY>\n",
        "",
    )
)
_END = _INDENT.join(
    (
        "\n",
        "</END_SAFETY_POLICY>\n\n",
        "Does the image violate the above policy? Your Answer must start with 'Yes' or 'No'.",
        "",
    )
)


@record(frozen=True, repr=False)
class ShieldGemma2Format(ChatFormat):
    """See :mod:`gemlet.chat.shieldgemma2`.

    Attributes:
        guideline: the policy that an image has to keep to, see :meth:`with_values`.

    >>> SHIELD_GEMMA_2.with_values(policy="violence").guideline[:25]
    'No Violence/Gore content:'
    """

    guideline: str | None = None

    name = "shieldgemma2"
    markers = GEMMA.markers
    ends = GEMMA.ends

    @public
    def with_values(self, *, guideline: str | None = None, policy: str | None = None) -> ShieldGemma2Format:
        """This format with a policy for messages that have an image alone: a text, or the name of one of the
        three of the official processor, "dangerous", "sexual" or "violence".

        Raises:
            InvalidRequestError: both are given, or there is no such policy.

        >>> SHIELD_GEMMA_2.with_values(guideline="No cats.").guideline
        'No cats.'
        """
        if guideline is policy is None:
            return self
        if guideline is not None and policy is not None:
            raise InvalidRequestError("guideline and policy are given; expected one of them")
        if policy is not None:
            if policy not in IMAGE_POLICIES:
                listed = ", ".join(IMAGE_POLICIES)
                raise InvalidRequestError(f"policy: got {show(policy)}, expected one of {listed}")
            guideline = IMAGE_POLICIES[policy]
        if not isinstance(guideline, str):
            raise InvalidRequestError(f"guideline: got {show(guideline)}, expected a text")
        return replace(self, guideline=guideline)

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        check_flags(thinking=thinking, add_generation_prompt=add_generation_prompt)
        for asked, what in ((checked_tools(tools), "tools"), (thinking, "thinking")):
            if asked:
                raise UnsupportedError(f"{what}: the chat format {self.name} has none; it judges images only")
        read = checked_messages(messages)
        if len(read) > 1:
            raise InvalidRequestError(f"messages: got {len(read)} messages, expected one with an image")
        role_of(read[0], "messages[0]", ("user",), self.name)
        parts = text_parts(read[0].get("content"), "messages[0]")
        image, *policy = parts or [""]
        if not stands_for_media(image) or len(policy) > 1 or any(map(stands_for_media, policy)):
            raise InvalidRequestError(
                'messages[0].content: expected [{"type": "image", "image": ...}], and a text with a policy '
                "behind it where the format has none"
            )
        guideline = policy[0] if policy else self.guideline
        if guideline is None:
            raise InvalidRequestError(
                "ShieldGemma 2 judges by a policy; write it behind the image, or give it by "
                'model.chat_format = model.chat_format.with_values(policy="violence")'
            )
        bos, turn_start, turn_end = self.markers
        out = Segments()
        out.marker(bos)
        out.marker(turn_start)
        out.text(f"user\n{image}")
        out.marker(turn_start)
        out.text(f"user\n{_ASK}{guideline}{_END}")
        out.marker(turn_end)
        out.text("\n")
        out.marker(turn_start)
        out.text("model\n")
        return out

    def _prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        thinking: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Segments:
        if continue_final_message is True:
            raise UnsupportedError(f"continue_final_message: the chat format {self.name} judges that message")
        return super()._prompt(messages, tools, thinking, add_generation_prompt, continue_final_message)

    @public
    def reply_parser(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        tools: Tools | None = None,
        pieces: bool = False,
    ) -> TokenReplyParser:
        return TokenReplyParser(tokenizer, dict.fromkeys((*self.ends, "<eos>"), "turn_end"))


SHIELD_GEMMA_2 = ShieldGemma2Format()
