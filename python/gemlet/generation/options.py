"""The options of generation: :class:`GenerationConfig`, and the types that give every function its
options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict, TypeVar

from gemlet.base.front_door import public
from gemlet.base.keyword_options import shows_options
from gemlet.base.names import not_known
from gemlet.base.records import record
from gemlet.base.sampling_options import OPTIONS
from gemlet.base.text import asked_for, show_argument
from gemlet.errors import InvalidRequestError
from gemlet.generation.option_values import (
    check_flag,
    check_number,
    invalid,
    one_seed,
    strings,
    token_biases,
    token_ids,
    top_count,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "OPTION_NAMES",
    "GenerationConfig",
    "GenerationOptions",
    "ManyGenerationOptions",
    "resolve_config",
]


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _OptionsOfAll(TypedDict, total=False):
    """Options that have the same form for one prompt and for several."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    no_repeat_ngram_size: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_sequence_breakers: str | Sequence[str] | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    suppress_tokens: Sequence[int] | None
    stop: str | Sequence[str] | None
    stop_token_ids: int | Sequence[int] | None
    ignore_eos: bool | None
    do_sample: bool | None
    logprobs: int | None
    prompt_logprobs: int | None


class GenerationOptions(_OptionsOfAll, total=False):
    """The options of :class:`GenerationConfig`, for programs that hand them on:
    ``model.generate(prompt, **options)``.

    >>> options = GenerationOptions(max_tokens=20, stop="\\n")
    >>> GenerationConfig(**options).max_tokens
    20
    """

    seed: int | None


class ManyGenerationOptions(_OptionsOfAll, total=False):
    """Options of a call with several prompts."""

    seed: int | Sequence[int] | None


class _Option(NamedTuple):
    default: Any
    check: Callable[
        [str, object], Any
    ]  # takes a value that is not None; returns it as GenerationConfig has it


# In the order in which they are shown.
_OPTIONS = {
    **{name: _Option(number.default, check_number) for name, number in OPTIONS.items()},
    "dry_sequence_breakers": _Option(("\n", ":", '"', "*"), strings),
    "logit_bias": _Option((), token_biases),
    "suppress_tokens": _Option((), token_ids),
    "seed": _Option(None, one_seed),
    "stop": _Option((), strings),
    "stop_token_ids": _Option((), token_ids),
    "ignore_eos": _Option(False, check_flag),
    "do_sample": _Option(True, check_flag),
    "logprobs": _Option(None, top_count),
    "prompt_logprobs": _Option(None, top_count),
}


OPTION_NAMES = (*_OPTIONS,)


def _shows_defaults(function: _Function) -> _Function:
    defaults = {name: option.default for name, option in _OPTIONS.items()}
    return shows_options(function, GenerationOptions, defaults)


@record(frozen=True, repr=False)
class GenerationConfig:
    """The options of a generation, which are checked once and then cannot change.

    The defaults are the ones Google publishes for Gemma 3 (``temperature`` 1, ``top_k`` 64, ``top_p`` 0.95).
    A token is drawn from the logits after, in this order, ``logit_bias``, ``repetition_penalty``,
    ``frequency_penalty``, ``presence_penalty``, DRY, ``no_repeat_ngram_size``, ``min_tokens`` and
    ``suppress_tokens``, then ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``typical_p``, as in
    transformers. All of this depends only on the tokens of the text.

    Args:
        max_tokens: most tokens to generate, at least 1. Generation also ends when the context is full. None:
            256, or, in a chat in which the model thinks first, as many as fit in the context.
        min_tokens: generate no end token, and find no stop string, before this many tokens. A text with a
            given form ends earlier if the form is complete.
        temperature: 0 to 100; 0 always takes the most likely token (greedy).
        top_p: 0 to 1: keep the most likely tokens whose probabilities sum to this; 1 keeps all, 0 is greedy
            (Holtzman et al. 2020).
        top_k: keep the k most likely tokens; 0 (or -1) keeps all.
        min_p: 0 to below 1: drop tokens less likely than this fraction of the most likely one; 0 keeps all
            (Nguyen et al. 2024).
        typical_p: above 0 to 1: keep the tokens whose surprise is nearest to the expected one and whose
            probabilities sum to this; 1 keeps all (Meister et al. 2022).
        repetition_penalty: 0.01 to 100; above 1 discourages tokens of the prompt and of the text so far: it
            divides their positive logits and multiplies the negative ones (Keskar et al. 2019, as in
            transformers).
        frequency_penalty: -2 to 2; is subtracted from a token's logit for each time that it was generated.
            The prompt does not count (OpenAI, vLLM).
        presence_penalty: -2 to 2; is subtracted from the logit of each token that was generated. The prompt
            does not count.
        no_repeat_ngram_size: no run of this many tokens appears twice, in prompt and text together (as
            in transformers); 0 allows all.
        dry_multiplier: 0 to 100; above 0 a token that would continue a repetition of prompt or text loses
            ``dry_multiplier * dry_base ** (length - dry_allowed_length)``, where the tokens before it repeat
            ``length`` earlier ones, at least ``dry_allowed_length`` (DRY, as in llama.cpp). 0.8 is usual.
        dry_base: 1 to 100, see ``dry_multiplier``.
        dry_allowed_length: at least 1, see ``dry_multiplier``.
        dry_sequence_breakers: up to 16 strings. A token that contains one ends a repetition, and so do tokens
            that together spell one.
        logit_bias: ``{token id: number}``, -100 to 100, added to the logits; the ids may be strings, as in
            JSON. Kept as a tuple of pairs.
        suppress_tokens: ids of tokens that are never generated.
        seed: 0 to 2**64 - 1; the same seed gives the same output on any number of threads; None takes a new
            one every time (:attr:`Generation.seed` tells which).
        stop: a string or up to 16 strings that end the text; they may span tokens and are not part of it.
        stop_token_ids: a token id, or up to 1024, that end the text, besides the model's end tokens. Like
            those, they are not part of the text.
        ignore_eos: do not end at the model's end tokens.
        do_sample: False is greedy whatever the temperature.
        logprobs: 0 to 20: give the log probability of every token that is generated, and of this many of the
            most likely ones (:attr:`Generation.logprobs`): as the model computes them, before any other
            option is applied.
        prompt_logprobs: 0 to 20: the same for the tokens of the prompt (:attr:`Generation.prompt_logprobs`).

    None for an option takes its default.

    Raises:
        InvalidRequestError: naming the argument, what was got and what was expected.

    >>> from gemlet import GenerationConfig
    >>> config = GenerationConfig(max_tokens=20, stop="\\n")
    >>> config.replace(temperature=0).greedy
    True
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram_size: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_sequence_breakers: tuple[str, ...]
    logit_bias: tuple[tuple[int, float], ...]
    suppress_tokens: tuple[int, ...]
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    do_sample: bool
    logprobs: int | None
    prompt_logprobs: int | None
    _limits_tokens: ClassVar[bool]  # an attribute of each instance that is not an option

    @_shows_defaults
    @public
    def __init__(self, **options: Unpack[GenerationOptions]) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        for name, (default, check) in _OPTIONS.items():
            object.__setattr__(self, name, check(name, given[name]) if name in given else default)
        object.__setattr__(self, "_limits_tokens", "max_tokens" in given)
        if self.min_tokens > self.max_tokens:
            if self.limits_tokens:
                raise invalid("min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}")
            object.__setattr__(self, "max_tokens", self.min_tokens)

    def __repr__(self) -> str:
        usual = GenerationConfig()
        own = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) != getattr(usual, name)}
        return f"GenerationConfig({asked_for(own)})"

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken (``do_sample`` False, temperature 0 or top_p 0)."""
        # Below 1e-4, dividing by the temperature only spreads logits that already differ in float32.
        return not self.do_sample or self.temperature < 1e-4 or self.top_p == 0

    @property
    def limits_tokens(self) -> bool:
        """Whether ``max_tokens`` was given; else it is the default."""
        return self._limits_tokens

    @public
    def replace(self, **overrides: Any) -> GenerationConfig:
        """A copy with some values changed.

        Raises:
            InvalidRequestError: a name that is not an option, or a value out of range.

        >>> from gemlet import GenerationConfig
        >>> careful = GenerationConfig(temperature=0.7, top_k=20)
        >>> careful.replace(top_k=1).temperature
        0.7
        """
        for name in overrides:
            if name not in _OPTIONS:
                raise InvalidRequestError(
                    f"{show_argument(name)} is not a generation option{not_known(name, _OPTIONS)}"
                )
        values = {
            name: getattr(self, name) for name in _OPTIONS if name != "max_tokens" or self.limits_tokens
        }
        return GenerationConfig(**values | overrides)


def resolve_config(
    config: GenerationConfig | None, overrides: Mapping[str, Any], defaults: GenerationConfig
) -> GenerationConfig:
    """``config`` (None: ``defaults``) with the ``overrides`` of a call."""
    if config is None:
        config = defaults
        most = overrides.get("max_tokens")
        if type(most) is int and 0 < most < config.min_tokens:  # the caller counts for more than the files
            overrides = {"min_tokens": most, **overrides}
    elif not isinstance(config, GenerationConfig):
        raise invalid("config", config, "a GenerationConfig or None (options go in as keywords)")
    return config.replace(**overrides) if overrides else config
