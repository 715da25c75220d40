"""How to generate: :class:`GenerationConfig` and the checks on its values."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import numpy as np

from gemlet.base.front_door import public
from gemlet.base.names import not_known
from gemlet.base.sampling_options import MAX_INT, MAX_SUPPRESSED, OPTIONS
from gemlet.base.text import asked_for, show_argument
from gemlet.errors import InvalidRequestError

__all__ = [
    "GenerationConfig",
    "GenerationOptions",
    "ManyGenerationOptions",
    "check_flag",
    "check_timeout",
    "resolve_config",
]


class _OptionsOfAll(TypedDict, total=False):
    """Those that have the same form for one prompt and for several."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    do_sample: bool | None
    suppress_tokens: Sequence[int] | None


class GenerationOptions(_OptionsOfAll, total=False):
    """The options of :class:`GenerationConfig`, for programs that hand them on:
    ``model.generate(prompt, **options)``.

    >>> options = GenerationOptions(max_tokens=20, stop="\\n")
    >>> GenerationConfig(**options).max_tokens
    20
    """

    seed: int | None


class ManyGenerationOptions(_OptionsOfAll, total=False):
    """Those of a call with several prompts."""

    seed: int | Sequence[int] | None


MOST_STOPS = 16
_MAX_STOP_CHARACTERS = 256


def _invalid(name: str, value: object, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}: got {show_argument(value)}, expected {expected}")


def _integer(name: str, value: object, low: int, high: int, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise _invalid(name, value, expected)
    return int(value)


def _real(name: str, value: object, low: float, high: float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _invalid(name, value, expected)
    try:
        number = float(value)
    except (OverflowError, ValueError):
        raise _invalid(name, value, expected) from None
    if not low <= number <= high:  # also false for NaN
        raise _invalid(name, value, expected)
    return number


def _number(name: str, value: object) -> int | float:
    """A number of the table, its default for None."""
    option = OPTIONS[name]
    if value is None:
        return option.default
    if option.kind is float:
        return _real(name, value, option.low, option.high, option.meaning)
    if isinstance(value, float) and value.is_integer():  # 64.0, as JSON may have it
        value = int(value)
    return max(0, _integer(name, value, int(option.low), int(option.high), option.meaning))  # top_k -1: all


def _seed(value: object) -> int | None:
    """A seed; None, for a new one every time, where it is None or -1, as other tools write it."""
    if value is None:
        return None
    seed = _integer("seed", value, -1, 2**64 - 1, "None (or -1) for a new one, or an integer up to 2**64 - 1")
    return None if seed == -1 else seed


def _token_ids(value: object) -> tuple[int, ...]:
    expected = f"up to {MAX_SUPPRESSED} token ids"
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) > MAX_SUPPRESSED:
        raise _invalid("suppress_tokens", value, expected)
    return tuple(_integer("suppress_tokens", item, 0, MAX_INT, expected) for item in value)


def check_flag(name: str, value: object, default: bool = False) -> bool:
    """``value`` as a bool, ``default`` for None; raises :class:`InvalidRequestError`."""
    if value is None:
        return default
    if not isinstance(value, (bool, np.bool_)):
        raise _invalid(name, value, "True or False")
    return bool(value)


def check_timeout(value: object) -> float | None:
    """Seconds, None for no limit; raises :class:`InvalidRequestError`."""
    if value is None:
        return None
    return _real("timeout", value, 0.0, math.inf, "seconds, at least 0, or None")


def _stops(value: object) -> tuple[str, ...]:
    expected = (
        f"a string or up to {MOST_STOPS} strings, each of 1 to {_MAX_STOP_CHARACTERS} characters "
        "(an empty one would stop everywhere)"
    )
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or len(value) > MOST_STOPS:
        raise _invalid("stop", value, expected)
    for stop in value:
        if not isinstance(stop, str) or not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            raise _invalid("stop", stop, expected)
    return tuple(value)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class GenerationConfig:
    """How to generate: validated once, then immutable.

    The defaults are the ones Google publishes for Gemma 3 (``temperature`` 1, ``top_k`` 64, ``top_p`` 0.95).
    A token is drawn from the logits after, in this order, ``repetition_penalty`` (Keskar et al. 2019, "CTRL",
    section 4.1: positive logits of tokens already seen are divided by it, negative ones multiplied),
    ``temperature``, ``top_k``, ``top_p`` (Holtzman et al. 2020) and ``min_p`` (Nguyen et al. 2024).

    Args:
        max_tokens: most tokens to generate, at least 1. Generation also ends where the context is full. None:
            256, but all that the context has room for in a chat in which the model thinks first.
        temperature: 0 to 100; 0 always takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 (or -1) keeps all.
        top_p: 0 to 1: keep the most likely tokens whose probabilities sum to this; 1 keeps all, 0 is greedy.
        min_p: 0 to below 1: drop tokens less likely than this fraction of the most likely one; 0 keeps all.
        repetition_penalty: 0.01 to 100; above 1 discourages tokens of the prompt and of the text so far.
        seed: 0 to 2**64 - 1; the same seed gives the same output on any number of threads; None takes a new
            one every time (:attr:`Generation.seed` tells which).
        stop: a string or up to 16 strings that end the text; they may span tokens and are not part of it.
        ignore_eos: do not end at the model's end tokens.
        do_sample: False is greedy whatever the temperature.
        suppress_tokens: ids of tokens that are never generated.

    None for an option takes its default.

    Raises:
        InvalidRequestError: naming the argument, what was got and what was expected.

    >>> from gemlet import GenerationConfig
    >>> config = GenerationConfig(max_tokens=20, stop="\\n")
    >>> config.replace(temperature=0).greedy
    True
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    do_sample: bool
    suppress_tokens: tuple[int, ...]
    _limits_tokens: ClassVar[bool]  # of each instance, but no option

    @public
    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        temperature: float | None = 1.0,
        top_k: int | None = 64,
        top_p: float | None = 0.95,
        min_p: float | None = 0.0,
        repetition_penalty: float | None = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool | None = False,
        do_sample: bool | None = True,
        suppress_tokens: Sequence[int] | None = (),
    ) -> None:
        given = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        values: dict[str, Any] = {name: _number(name, value) for name, value in given.items()}
        values |= {
            "seed": _seed(seed),
            "stop": _stops(() if stop is None else stop),
            "ignore_eos": check_flag("ignore_eos", ignore_eos),
            "do_sample": check_flag("do_sample", do_sample, True),
            "suppress_tokens": _token_ids(() if suppress_tokens is None else suppress_tokens),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_limits_tokens", max_tokens is not None)

    def __repr__(self) -> str:
        usual = GenerationConfig()
        own = {name: getattr(self, name) for name in _NAMES if getattr(self, name) != getattr(usual, name)}
        return f"GenerationConfig({asked_for(own)})"

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken (``do_sample`` False, temperature 0 or top_p 0)."""
        # Below 1e-4 the division by the temperature only spreads logits that float32 already tells apart.
        return not self.do_sample or self.temperature < 1e-4 or self.top_p == 0

    @property
    def limits_tokens(self) -> bool:
        """Whether ``max_tokens`` was given; else it is the default."""
        return self._limits_tokens

    @public
    def replace(self, **overrides: Any) -> GenerationConfig:
        """A copy with some values changed.

        Raises:
            InvalidRequestError: a name that is no option, or a value out of range.

        >>> from gemlet import GenerationConfig
        >>> careful = GenerationConfig(temperature=0.7, top_k=20)
        >>> careful.replace(top_k=1).temperature
        0.7
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in names:
                raise InvalidRequestError(
                    f"{show_argument(name)} is not a generation option{not_known(name, names)}"
                )
        values = {name: getattr(self, name) for name in names if name != "max_tokens" or self.limits_tokens}
        return GenerationConfig(**values | overrides)


def resolve_config(
    config: GenerationConfig | None, overrides: Mapping[str, Any], defaults: GenerationConfig
) -> GenerationConfig:
    """``config`` (None: ``defaults``) with the ``overrides`` of a call."""
    if config is None:
        config = defaults
    elif not isinstance(config, GenerationConfig):
        raise _invalid("config", config, "a GenerationConfig or None (options go in as keywords)")
    return config.replace(**overrides) if overrides else config


_NAMES = tuple(field.name for field in dataclasses.fields(GenerationConfig))
