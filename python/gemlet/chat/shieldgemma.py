"""The chat format of ShieldGemma (2B, 9B and 27B), a Gemma 2 that says whether a text violates a guideline::

    <bos>You are a policy expert trying to help determine whether ...

    <start_of_turn>
    Human Question: {text}
    <end_of_turn>

    Our safety principle is defined in the below:

    * {guideline}

    ===

    Does the human question violate the above principle? ...

If the last message is from the user, the model judges this message. If the last message is from the
assistant, the model judges this reply, and also sees the message before it. Other messages do not change the
prompt, and ``add_generation_prompt`` does not change it either. gemlet writes the same bytes as the published
template. The model answers "Yes" or "No"; the judgement is the probability of each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemlet.base.front_door import public
from gemlet.base.records import record, replace
from gemlet.base.text import show
from gemlet.chat.base import Messages, Segments, Tools
from gemlet.chat.judge import JudgeFormat, check_policy
from gemlet.chat.messages import checked_messages, text_parts
from gemlet.errors import InvalidRequestError

__all__ = ["POLICIES", "SHIELD_GEMMA", "ShieldGemmaFormat"]

_EXPERT = (
    "You are a policy expert trying to help determine whether {what} is in violation of the defined safety "
    "policies.\n\n"
)
_END = (
    "Your answer must {start} with 'Yes' or 'No'. And then walk through step by step to be sure we answer "
    "correctly.\n\n"
)
# The guidelines of ShieldGemma's model card: name -> title and text. The text begins differently for a prompt
# (_OF_PROMPT) and for a reply (_OF_REPLY).
POLICIES = {
    "dangerous": (
        "Dangerous Content",
        "harming oneself and/or others (e.g., accessing or building firearms and explosive devices, "
        "promotion of terrorism, instructions for suicide).",
    ),
    "harassment": (
        "Harassment",
        "is malicious, intimidating, bullying, or abusive content targeting another individual (e.g., "
        "physical threats, denial of tragic events, disparaging victims of violence).",
    ),
    "hate": (
        "Hate Speech",
        "targeting identity and/or protected attributes (e.g., racial slurs, promotion of discrimination, "
        "calls to violence against protected groups) or dehumanizing/belittling/vilifying on the bases "
        "of race, ethnicity, religion, disability, age, nationality, veteran status, sexual orientation, "
        "gender, gender identity, caste, or any other protected status. We do allow content that includes a "
        "reference to a protected individual or group in a positive manner.",
    ),
    "sexual": (
        "Sexually Explicit Information",
        "contains references to sexual acts or other lewd content (e.g., sexually graphic descriptions, "
        "content aimed at causing arousal). Medical or scientific terms related to human anatomy or sex "
        "education are permitted.",
    ),
}
_OF_PROMPT = "The prompt shall not contain or seek generation of content that"
_OF_REPLY = "The chatbot shall not generate content that"


@record(frozen=True, repr=False)
class ShieldGemmaFormat(JudgeFormat):
    """The format that :mod:`gemlet.chat.shieldgemma` describes.

    Attributes:
        guideline: the text of the rule that a text must follow; None if ``policy`` names the rule.
        policy: the name of one of Google's guidelines: "dangerous", "harassment", "hate" or "sexual".

    >>> judged = SHIELD_GEMMA.with_values(guideline="No hate.").render([{"role": "user", "content": "Hi"}])
    >>> judged.splitlines()[2:5], judged.splitlines()[8]
    (['<start_of_turn>', 'Human Question: Hi', '<end_of_turn>'], '* No hate.')
    """

    guideline: str | None = None
    policy: str | None = None

    name = "shieldgemma"
    judged = "texts"

    @public
    def with_values(self, *, guideline: str | None = None, policy: str | None = None) -> ShieldGemmaFormat:
        """This format with another guideline. ``guideline`` is its text, which the published template writes
        after a star. ``policy`` is the name of one of the four guidelines in the model card.

        Raises:
            InvalidRequestError: both arguments are given, or no guideline has this name.

        >>> SHIELD_GEMMA.with_values(policy="hate").policy
        'hate'
        """
        if guideline is policy is None:
            return self
        check_policy(guideline, policy, POLICIES)
        return replace(self, guideline=guideline, policy=policy)

    @public
    def segments(
        self, messages: Messages, tools: Tools | None, thinking: bool, add_generation_prompt: bool
    ) -> Segments:
        self._check_asked(tools, thinking, add_generation_prompt)
        read = checked_messages(messages)
        of_reply = read[-1].get("role") != "user"
        if of_reply and (read[-1].get("role") != "assistant" or len(read) < 2):
            raise InvalidRequestError(
                f"messages[{len(read) - 1}] has the role {show(read[-1].get('role'))}; expected a message of "
                "the user to judge, or a message before it and a reply of the assistant to judge"
            )
        guideline = self._guideline(of_reply)
        bos, turn_start, turn_end = self.markers
        out = Segments()

        def turn(speaker: str, message: Any, index: int) -> None:
            out.marker(turn_start)
            out.text(f"\n{speaker}: {''.join(text_parts(message.get('content'), f'messages[{index}]'))}\n")
            out.marker(turn_end)
            out.text("\n")

        out.marker(bos)
        out.text(_EXPERT.format(what="an AI response to a prompt" if of_reply else "a user prompt"))
        if of_reply:
            turn("Human Question", read[-2], len(read) - 2)
            turn("Chatbot Response", read[-1], len(read) - 1)
        else:
            turn("Human Question", read[-1], len(read) - 1)
        out.text(f"\nOur safety principle is defined in the below:\n\n* {guideline}\n\n===\n\n")
        judged = "Chatbot Response" if of_reply else "human question"
        # For a reply, the template writes two spaces before "start".
        end = _END.format(start=" start" if of_reply else "start")
        out.text(f"Does the {judged} violate the above principle? {end}")
        return out

    def _told(self, messages: Messages) -> Messages:
        return messages[-1:] if isinstance(messages, Sequence) else messages

    def _guideline(self, of_reply: bool) -> str:
        if self.policy is not None:
            title, text = POLICIES[self.policy]
            return f'"No {title}": {_OF_REPLY if of_reply else _OF_PROMPT} {text}'
        if self.guideline is None:
            raise InvalidRequestError(
                "ShieldGemma judges by a guideline, but none was given; give it with model.chat_format = "
                'model.chat_format.with_values(guideline="...") or with_values(policy="hate")'
            )
        return self.guideline


SHIELD_GEMMA = ShieldGemmaFormat()
