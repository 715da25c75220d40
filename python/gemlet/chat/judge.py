"""The base class of the chat formats of ShieldGemma and ShieldGemma 2. These models judge and do not chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemlet.base.front_door import public
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat, Messages, Segments, Tools
from gemlet.chat.gemma import GEMMA
from gemlet.chat.messages import check_flags, checked_tools
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["JudgeFormat", "check_policy"]


class JudgeFormat(ChatFormat):
    """A chat format that ends with the question whether something violates a policy.

    Attributes:
        judged: "texts" or "images", which the model judges. The word is for error messages.
    """

    judged: str
    markers = GEMMA.markers
    ends = GEMMA.ends

    def _check_asked(self, tools: Tools | None, thinking: bool, add_generation_prompt: bool) -> None:
        check_flags(thinking=thinking, add_generation_prompt=add_generation_prompt)
        for asked, what in ((checked_tools(tools), "tools"), (thinking, "thinking")):
            if asked:
                raise UnsupportedError(
                    f"{what}: the chat format {self.name} has none; it judges {self.judged} only"
                )

    def _prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        thinking: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Segments:
        if continue_final_message is True:
            raise UnsupportedError(
                f"continue_final_message: the chat format {self.name} judges the last message and cannot "
                "continue it"
            )
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


def check_policy(guideline: str | None, policy: str | None, policies: Iterable[str]) -> None:
    """Refuses a guideline together with a policy, a policy not in ``policies``, and a guideline that is not
    text."""
    if guideline is not None and policy is not None:
        raise InvalidRequestError("got both guideline and policy; expected only one of them")
    if policy is not None and policy not in policies:
        raise InvalidRequestError(f"policy: got {show(policy)}, expected one of {', '.join(policies)}")
    if guideline is not None and not isinstance(guideline, str):
        raise InvalidRequestError(f"guideline: got {show(guideline)}, expected a text")
