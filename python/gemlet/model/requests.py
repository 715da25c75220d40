"""Turns the arguments of a call into requests to the model's engine: :class:`Requests`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gemlet import _core
from gemlet.base.progress import reporting
from gemlet.base.records import record, replace
from gemlet.base.sampling_options import MOST_STOPS
from gemlet.chat.base import ChatFormat
from gemlet.chat.gemma4 import THINK
from gemlet.chat.media_places import take_media
from gemlet.chat.reply import AsideKind
from gemlet.chat.reply_readers import TokenReplyParser
from gemlet.chat.tool_choice import chosen_tools
from gemlet.errors import InvalidRequestError, UnsupportedError
from gemlet.generation.answer import Answer, Prepared, ends_of
from gemlet.generation.grammar import compile_grammar
from gemlet.generation.grammar_text import GrammarText, call_text, grammar_text
from gemlet.generation.masked import MaskPlan
from gemlet.generation.option_values import (
    check_cache_salt,
    check_flag,
    check_priority,
    check_thinking_budget,
    check_timeout,
)
from gemlet.generation.options import GenerationConfig, resolve_config
from gemlet.generation.result import Generation
from gemlet.generation.sampling import check_ids, make_sampler, warn_of_not_followed
from gemlet.generation.stream import AHEAD, TextStream, run_to_end
from gemlet.model.batch import FIRST, check_count, check_one, counts_of, prompts_of, seeds_of
from gemlet.model.call_options import generation_options
from gemlet.model.loaded_adapters import LoadedAdapters
from gemlet.model.reading import Reader
from gemlet.model.senses import Inputs, Senses, of_prompts
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Requests"]


@record(frozen=True)
class Requests:
    """Checks and prepares requests, and begins their streams. :class:`gemlet.Model` describes the arguments
    and the errors.

    Attributes:
        end_ids: the tokens that end every generation.
        defaults: the options that a call does not give itself.
        not_followed: the settings in the model's files that gemlet does not follow. gemlet warns of them once
            and then empties the mapping.
    """

    reader: Reader
    adapters: LoadedAdapters
    senses: Senses
    chat_format: ChatFormat | None
    end_ids: frozenset[int]
    defaults: GenerationConfig
    not_followed: dict[str, Any]

    def texts(
        self, prompt: object, config: GenerationConfig | None, options: Mapping[str, Any]
    ) -> list[Prepared]:
        """Prepares the continuations of ``prompt``, which is one prompt or a list of prompts. Each prompt
        gets ``n`` or ``best_of`` continuations, with consecutive seeds. All prompts are checked before the
        first is computed."""
        self.reader.resident.check_writes("generate")
        prompts = prompts_of(prompt)
        allow_control = check_flag("allow_control", options.get("allow_control"), True)
        echo = check_flag("echo", options.get("echo"))
        given, (_, count) = generation_options(options), counts_of(options)
        check_count(1 if prompts is None else len(prompts), count)
        names = ["prompt"] if prompts is None else [f"prompt[{i}]" for i in range(len(prompts))]
        seeds = (
            [given.pop("seed", None)] if prompts is None else seeds_of(given.pop("seed", None), len(prompts))
        )
        number = None if prompts is None else len(prompts)
        audio = of_prompts(options.get("audio"), number, "audio", "sounds")
        images = of_prompts(options.get("images"), number, "images", "images")
        videos = of_prompts(options.get("videos"), number, "videos", "videos")
        prepared: list[Prepared] = []
        given_prompts = [prompt] if prompts is None else prompts
        media = zip(images, videos, audio, strict=True)
        for name, one, seed, given_media in zip(names, given_prompts, seeds, media, strict=True):
            own = resolve_config(config, given if seed is None else {**given, "seed": seed}, self.defaults)
            inputs = self.senses.inputs(*given_media, options)
            ids = one
            if isinstance(one, str):
                whole = self.senses.with_places(one, inputs, self.reader.tokenizer, name) if inputs else one
                ids = self.reader.encode(whole, name, allow_control=allow_control)
            said = self._echo(one) if echo else ""
            prepare = partial(self._prepare, ids, options=options, name=name, echo=said, inputs=inputs)
            prepared += _several(count, own, options, prepare)
        return prepared

    def of(self, prompt: object, options: Mapping[str, Any]) -> Prepared:
        """Prepares the continuation of one ``prompt``. If ``prompt`` is a list of messages, prepares the
        reply to them."""
        if isinstance(prompt, (list, tuple)) and any(isinstance(one, Mapping) for one in prompt[:FIRST]):
            return self.reply(prompt, None, options)
        check_one(prompt, "prompt")
        (prepared,) = self.texts(prompt, None, options)
        return prepared

    def reply(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None,
        options: Mapping[str, Any],
    ) -> Prepared:
        """Prepares the reply to the conversation ``messages``; a string is a message of the user."""
        (prepared,) = self.replies(messages, config, options)
        return prepared

    def replies(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        config: GenerationConfig | None,
        options: Mapping[str, Any],
    ) -> list[Prepared]:
        """Prepares ``n`` or ``best_of`` replies to the conversation ``messages``, with consecutive seeds."""
        self.reader.resident.check_writes("chat")
        settings = resolve_config(config, generation_options(options), self.defaults)
        tokenizer, chat_format = self._chats()
        thinking = check_flag("thinking", options.get("thinking"))
        tools, forced = chosen_tools(options.get("tools"), options.get("tool_choice"))
        form = grammar_text(options)
        if forced and form is not None:
            raise InvalidRequestError(
                f"{form.name}: cannot be combined with a tool_choice that requires a call, because a call "
                "has a form of its own; leave one of the two out"
            )
        form = call_text(chat_format.call_grammar(tools, forced)) if forced else form
        ids, inputs = self.encode(messages, {**options, "tools": tools})
        # A system message may also ask for a thought. Then the chat format has written the marker.
        thinks = thinking or tokenizer.token_id(THINK) in ids
        if thinks and not settings.limits_tokens:  # the default of max_tokens would cut off most thoughts
            settings = settings.replace(max_tokens=self.reader.resident.context_length)
        asides: list[AsideKind] = ["thought"] if thinks else []
        if tools and not forced:
            asides.append("call")
        prepare = partial(
            self._prepare,
            ids,
            options=options,
            chat_format=chat_format,
            tools=tools,
            asides=asides,
            form=form,
            inputs=inputs,
        )
        return _several(counts_of(options)[1], settings, options, prepare)

    def _chats(self) -> tuple[Tokenizer, ChatFormat]:
        tokenizer, chat_format = self.reader.tokenizer, self.chat_format
        if chat_format is None or tokenizer is None:
            missing = "tokenizer" if tokenizer is None else "chat format"
            raise UnsupportedError(
                f"chat: {self.reader.resident.name} has no {missing}; use generate() or stream()"
            )
        return tokenizer, chat_format

    def encode(
        self, messages: str | Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> tuple[list[int], Inputs]:
        """The token ids of the prompt of a conversation, and its images and sounds, which are not encoded
        yet."""
        tokenizer, chat_format = self._chats()
        if isinstance(messages, str):
            if not messages:
                raise InvalidRequestError(
                    "messages: got an empty text, expected at least one character, or a list of messages"
                )
            messages = [{"role": "user", "content": messages}]
        hears = check_flag("load_audio_from_video", options.get("load_audio_from_video"))
        said, parts = take_media(messages, self.senses.kinds, load_audio_from_video=hears)
        inputs, places = self.senses.of_parts(parts, tokenizer, options)
        ids = chat_format.encode_chat(
            tokenizer,
            said,
            tools=options.get("tools"),
            thinking=check_flag("thinking", options.get("thinking")),
            continue_final_message=check_flag(
                "continue_final_message", options.get("continue_final_message")
            ),
            most_tokens=self.reader.resident.context_length,
            places=places,
        )
        return ids, inputs

    def run(self, prepared: Sequence[Prepared]) -> list[Generation]:
        """Runs the requests and returns their results. On a terminal, a progress bar shows how many of
        several requests are done."""
        # Nobody reads this stream, so no request has to wait for a slow reader.
        stream = self.stream(prepared, ahead=max(one.answer.config.max_tokens for one in prepared))
        with reporting(None if len(prepared) > 1 else False, "generating", len(prepared), "texts") as ended:
            return run_to_end(stream, ended)

    def stream(
        self, prepared: Sequence[Prepared], *, ahead: int = AHEAD, readable: bool = False
    ) -> TextStream:
        """Begins a stream of the prepared requests. With ``readable``, an event loop can wait for the
        stream."""
        resident = self.reader.resident
        return resident.begin(
            lambda: TextStream(
                prepared,
                engine=resident.engine,
                context_length=resident.context_length,
                ahead=ahead,
                readable=readable,
                why_closed=resident.why_closed,
            )
        )

    def _echo(self, prompt: object) -> str:
        """The text of a prompt."""
        if isinstance(prompt, str):
            return prompt
        tokenizer = self.reader.tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                f"echo: {self.reader.resident.name} has no tokenizer that could make a text of the prompt; "
                "leave echo out"
            )
        return tokenizer.decode(self.reader.raw(prompt, "prompt").tolist())

    def _prepare(
        self,
        ids: object,
        settings: GenerationConfig,
        options: Mapping[str, Any],
        chat_format: ChatFormat | None = None,
        tools: Sequence[Any] = (),
        name: str = "prompt",
        asides: Sequence[AsideKind] = (),
        echo: str = "",
        form: GrammarText | None = None,
        media: Sequence[tuple[int, _core.Media]] = (),
        inputs: Inputs | None = None,
    ) -> Prepared:
        """Prepares one request. Each pair in ``media`` is the index of a token, and rows that replace this
        token and the tokens after it. The prefix cache recognizes the rows by their digest. The images and
        sounds in ``inputs`` are turned into more such pairs."""
        resident, tokenizer = self.reader.resident, self.reader.tokenizer
        tokens = self.reader.raw(ids, name)
        inputs = inputs or Inputs()
        adapter = self.adapters.find(options.get("adapter"))
        own = self.senses.placed(tokens, inputs, adapter, name)
        media = sorted([*media, *own], key=lambda placed: placed[0])
        check_ids(settings, resident.vocab_size)
        warn_of_not_followed(resident.name, self.not_followed)
        end_ids, decoder = self.end_ids, None
        reply_parser: TokenReplyParser | None = None
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
                f"stop: {resident.name} has no tokenizer, so its results have no text that could contain a "
                "stop string; use stop_token_ids"
            )
        # Rows of the embedding beyond the vocabulary are padding. They have no text and are never sampled.
        limit = 0 if tokenizer is None else min(tokenizer.vocab_size, resident.vocab_size)
        config = self.reader.config
        limit = min(limit or resident.vocab_size, config.text_ids or resident.vocab_size)
        sampler, seed = make_sampler(
            settings,
            vocab_limit=limit,
            never=config.placeholder_ids,
            end_ids=ends_of(settings, end_ids),
            prompt_tokens=len(tokens),
            tokenizer=tokenizer,
        )
        answer = Answer(
            prompt_tokens=len(tokens),
            config=settings,
            seed=seed,
            end_ids=end_ids,
            decoder=decoder,
            reply_parser=reply_parser,
            echo=echo,
            audio_tokens=inputs.audio_tokens,
            image_tokens=inputs.image_tokens,
        )
        timeout, salt = check_timeout(options.get("timeout")), check_cache_salt(options.get("cache_salt"))
        priority = check_priority(options.get("priority"))
        budget = check_thinking_budget(options.get("thinking_budget"))
        plan = self._plan(
            form or grammar_text(options), end_ids, answer.end_ids, asides, reply_parser, budget
        )
        return Prepared(
            tokens,
            answer,
            sampler,
            adapter.core,
            timeout,
            cache_salt=salt,
            priority=priority,
            plan=plan,
            media=media,
        )

    def _plan(
        self,
        text: GrammarText | None,
        end_ids: frozenset[int],
        stop_ids: frozenset[int],
        asides: Sequence[AsideKind],
        parser: TokenReplyParser | None,
        budget: int | None,
    ) -> MaskPlan | None:
        """The plan of masks that makes the answer follow the grammar ``text``. The kinds of parts in
        ``asides`` may come before the answer. All thoughts together may have at most ``budget`` tokens."""
        if text is None and budget is None:
            return None
        resident, tokenizer = self.reader.resident, self.reader.tokenizer
        found = [] if parser is None else parser.asides
        if budget is not None and not any(one.kind == "thought" for one in found):
            raise UnsupportedError(
                f"thinking_budget: {resident.name} does not think before it answers; leave the budget out"
            )
        begins_in = next((one for one in found if parser and one.kind == parser.begins_in), None)
        if text is None:
            return MaskPlan(None, resident.vocab_size, end_ids, stop_ids, found, begins_in, budget)
        if tokenizer is None:
            raise InvalidRequestError(
                f"{text.name}: {resident.name} has no tokenizer, so its results have no text that could "
                f"follow a form; leave {text.name} out"
            )
        grammar = compile_grammar(text, tokenizer)
        possible = [one for one in found if one.kind in asides]
        return MaskPlan(grammar, resident.vocab_size, end_ids, stop_ids, possible, begins_in, budget)


def _several(
    count: int,
    config: GenerationConfig,
    options: Mapping[str, Any],
    prepare: Callable[[GenerationConfig], Prepared],
) -> list[Prepared]:
    """Prepares ``count`` requests for one prompt. The first request computes the prompt, and the others reuse
    its keys and values."""
    if options.get("best_of") is not None and config.logprobs is None:
        config = config.replace(logprobs=0)
    first = prepare(config)
    seeds = [(first.answer.seed + i) % 2**64 for i in range(1, count)]
    return [first, *(replace(prepare(config.replace(seed=seed)), follows=first) for seed in seeds)]
