"""The chat format of ShieldGemma 2, a Gemma 3 that says whether an image violates a policy::

    <bos><start_of_turn>user
    <start_of_image><start_of_turn>user
    You are a policy expert trying to help determine whether a generated or real image is in
                     violation of the safety policy below. ...
    <end_of_turn>
    <start_of_turn>model

The conversation is one message of the user: an image, followed by a text with the policy. The policy may be
left out if the format has one (:meth:`ShieldGemma2Format.with_values`). gemlet writes the same bytes as the
published template, including its oddities: two turns begin and one ends, and the lines are indented. The
model answers "Yes" or "No"; the judgement is the probability of each answer.
"""

from __future__ import annotations

from gemlet.base.front_door import public
from gemlet.base.records import record, replace
from gemlet.chat.base import Messages, Segments, Tools
from gemlet.chat.judge import JudgeFormat, check_policy
from gemlet.chat.media_places import stands_for_media
from gemlet.chat.messages import checked_messages, role_of, text_parts
from gemlet.errors import InvalidRequestError

__all__ = ["IMAGE_POLICIES", "SHIELD_GEMMA_2", "ShieldGemma2Format"]

# The policies of the official processor, which the model was trained on.
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
class ShieldGemma2Format(JudgeFormat):
    """The format that :mod:`gemlet.chat.shieldgemma2` describes.

    Attributes:
        guideline: the policy for messages that have none, as :meth:`with_values` sets it; or None.

    >>> SHIELD_GEMMA_2.with_values(policy="violence").guideline[:25]
    'No Violence/Gore content:'
    """

    guideline: str | None = None

    name = "shieldgemma2"
    judged = "images"

    @public
    def with_values(self, *, guideline: str | None = None, policy: str | None = None) -> ShieldGemma2Format:
        """This format with a policy for messages that have only an image. ``guideline`` is the text of the
        policy. ``policy`` is the name of one of the three policies of the official processor: "dangerous",
        "sexual" or "violence".

        Raises:
            InvalidRequestError: both arguments are given, or no policy has this name.

        >>> SHIELD_GEMMA_2.with_values(guideline="No cats.").guideline
        'No cats.'
        """
        if guideline is policy is None:
            return self
        check_policy(guideline, policy, IMAGE_POLICIES)
        return replace(self, guideline=guideline if policy is None else IMAGE_POLICIES[policy])

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        self._check_asked(tools, thinking, add_generation_prompt)
        read = checked_messages(messages)
        if len(read) > 1:
            raise InvalidRequestError(f"messages: got {len(read)} messages, expected one with an image")
        role_of(read[0], "messages[0]", ("user",), self.name)
        parts = text_parts(read[0].get("content"), "messages[0]")
        image, *policy = parts or [""]
        if not stands_for_media(image) or len(policy) > 1 or any(map(stands_for_media, policy)):
            raise InvalidRequestError(
                'messages[0].content: expected {"type": "image", "image": ...}, followed by a text part with '
                "the policy; the policy may be missing if the chat format has one"
            )
        guideline = policy[0] if policy else self.guideline
        if guideline is None:
            raise InvalidRequestError(
                "messages[0].content: got no policy; write the policy after the image, or give it with "
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


SHIELD_GEMMA_2 = ShieldGemma2Format()
