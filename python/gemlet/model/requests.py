"""From what is asked of a model to the stream that answers: :class:`Requests`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemlet import _core
from gemlet.base.text import show
from gemlet.chat.base import ChatFormat, Tools
from gemlet.chat.gemma4 import THINK
from gemlet.chat.tool_choice import chosen_tools
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.generation.answer import Answer, Prepared
from gemlet.generation.options import MOST_STOPS, GenerationConfig, check_flag, resolve_config
from gemlet.generation.result import Generation
from gemlet.generation.sampling import make_sampler, warn_of_not_followed
from gemlet.generation.stream import Context, TextStream, run_to_end
from gemlet.model.batch import generate_all, prompts_of, seeds_of
from gemlet.model.kept_contexts import KeptContexts
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.reading import Reader

__all__ = ["Requests"]


@dataclass(frozen=True)
class Requests:
    """Checks a request, and begins its stream. :class:`gemlet.Model` has the arguments and the errors.

    Attributes:
        end_ids: the tokens that end every generation.
        contexts: where the context of a stream comes from; None: it is a new one.
        not_followed: what the model's files ask for and gemlet does not do; emptied when it has been said.
    """

    reader: Reader
    adapters: LoadedAdapters
    chat_format: ChatFormat | None
    end_ids: frozenset[int]
    not_followed: dict[str, Any]
    contexts: KeptContexts | None

    def continuation(
        self, prompt: object, settings: GenerationConfig, adapter: str | None, allow_control: bool
    ) -> TextStream:
        """A stream that continues ``prompt``, a text or token ids."""
        return self._begin(self._encoded(prompt, allow_control), settings, adapter)

    def reply(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        settings: GenerationConfig,
        adapter: str | None,
        tools: Tools | None,
        tool_choice: str | Mapping[str, Any] | None,
        thinking: bool,
        continue_final_message: bool,
    ) -> TextStream:
        """A stream that replies to the conversation ``messages``; a string is a message of the user."""
        tokenizer, chat_format = self.reader.tokenizer, self.chat_format
        if chat_format is None or tokenizer is None:
            missing = "tokenizer" if tokenizer is None else "chat format"
            raise UnsupportedError(
                f"chat: {self.reader.resident.name} has no {missing}; use generate() or stream()"
            )
        if isinstance(messages, str):
            if not messages:
                raise InvalidRequestError("messages: it is empty, expected at least one character or message")
            messages = [{"role": "user", "content": messages}]
        thinking = check_flag("thinking", thinking)
        declared, forced = chosen_tools(tools, tool_choice)
        if forced:
            raise UnsupportedError(
                f"tool_choice: got {show(tool_choice)}, which needs a grammar for the reply; this gemlet has "
                'none yet. Use "auto", and ask for the call in the prompt'
            )
        ids = chat_format.encode_chat(
            tokenizer,
            messages,
            tools=declared,
            thinking=thinking,
            continue_final_message=check_flag("continue_final_message", continue_final_message),
            most_tokens=self.reader.resident.context_length,
        )
        # A system message may ask for a thought too; the marker comes from the format alone.
        thinks = thinking or tokenizer.token_id(THINK) in ids
        if thinks and not settings.limits_tokens:  # the default would cut most thoughts
            settings = settings.replace(max_tokens=self.reader.resident.context_length)
        return self._begin(ids, settings, adapter, chat_format, declared)

    def generate(
        self,
        prompt: object,
        config: GenerationConfig | None,
        defaults: GenerationConfig,
        options: dict[str, Any],
        adapter: str | None,
        allow_control: bool,
    ) -> Generation | list[Generation]:
        """The continuation of ``prompt``, or of each of several. All are checked before any is computed."""
        prompts = prompts_of(prompt)
        if prompts is None:
            return run_to_end(
                self.continuation(prompt, resolve_config(config, options, defaults), adapter, allow_control)
            )
        prepared = []
        for index, seed in enumerate(seeds_of(options.pop("seed", None), len(prompts))):
            own = resolve_config(config, options if seed is None else {**options, "seed": seed}, defaults)
            ids = self._encoded(prompts[index], allow_control, f"prompt[{index}]")
            prepared.append(self._prepare(ids, own, adapter, name=f"prompt[{index}]"))
        return generate_all(self.reader.resident, prepared, None)

    def _encoded(self, prompt: object, allow_control: bool, name: str = "prompt") -> object:
        allow_control = check_flag("allow_control", allow_control, True)
        return (
            self.reader.encode(prompt, name, allow_control=allow_control)
            if isinstance(prompt, str)
            else prompt
        )

    def _begin(
        self,
        ids: object,
        settings: GenerationConfig,
        adapter: str | None,
        chat_format: ChatFormat | None = None,
        tools: Sequence[Any] = (),
    ) -> TextStream:
        resident = self.reader.resident
        prepared = self._prepare(ids, settings, adapter, chat_format, tools)
        return resident.begin(
            lambda: TextStream(
                sequence=self._context(prepared.adapter, prepared.ids),
                sampler=prepared.sampler,
                prompt_ids=prepared.ids,
                answer=prepared.answer,
                context_length=resident.context_length,
                why_closed=resident.why_closed,
            )
        )

    def _prepare(
        self,
        ids: object,
        settings: GenerationConfig,
        adapter: str | None,
        chat_format: ChatFormat | None = None,
        tools: Sequence[Any] = (),
        name: str = "prompt",
    ) -> Prepared:
        resident, tokenizer = self.reader.resident, self.reader.tokenizer
        tokens = self.reader.checked(ids, name)
        warn_of_not_followed(resident.name, self.not_followed)
        end_ids, decoder, reply_parser = self.end_ids, None, None
        if tokenizer is not None and chat_format is not None:
            end_ids = end_ids | chat_format.end_ids(tokenizer)
            if chat_format.stops:
                stops = (*chat_format.stops, *settings.stop)[:MOST_STOPS]
                settings = settings.replace(stop=stops)
            reply_parser = chat_format.reply_parser(tokenizer, tokens.tolist(), tools=tools, pieces=True)
        elif tokenizer is not None:
            decoder = tokenizer.stream_decoder()
        if settings.stop and tokenizer is None:
            raise InvalidRequestError(
                f"stop: {resident.name} has no tokenizer, so no text to find a string in"
            )
        # Rows of the embedding beyond the vocabulary are padding: never sample what cannot be decoded.
        limit = 0 if tokenizer is None else min(tokenizer.vocab_size, resident.vocab_size)
        config = self.reader.config
        limit = min(limit or resident.vocab_size, config.text_ids or resident.vocab_size)
        sampler, seed = make_sampler(settings, vocab_limit=limit, never=config.placeholder_ids)
        answer = Answer(
            prompt_tokens=len(tokens),
            config=settings,
            seed=seed,
            end_ids=end_ids,
            decoder=decoder,
            reply_parser=reply_parser,
        )
        return Prepared(tokens, answer, sampler, self.adapters.find(adapter))

    def _context(self, adapter: _core.Adapter | None, ids: NDArray[np.int32]) -> Context:
        core = self.reader.resident.core
        return (
            _core.TokenSequence(core, adapter)
            if self.contexts is None
            else self.contexts.begin(core, adapter, ids)
        )
