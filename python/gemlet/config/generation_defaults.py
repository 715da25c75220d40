"""Reads a folder's ``generation_config.json``: the tokens that end a text, and the settings of sampling."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from gemlet.base.front_door import public
from gemlet.base.keys import Keys, says_nothing
from gemlet.base.sampling_options import MAX_SUPPRESSED, MOST_STOP_CHARACTERS, MOST_STOPS, OPTIONS
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.config.limits import LIMITS
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError

__all__ = [
    "GGUF_SAMPLING",
    "Sampling",
    "read_end_ids",
    "read_number",
    "read_recommended",
    "read_sampling",
    "read_suppressed",
]


@public
def read_end_ids(folder: str | os.PathLike[str], config: TextConfig) -> frozenset[int]:
    """The ids that end a text: ``eos_token_id`` of the config and of ``generation_config.json``, if present.

    The second file is where published chat models name their end of turn.

    Raises:
        ModelFileError: ``generation_config.json`` cannot be read.
        ConfigError: it names something that is not an id.

    >>> import os, gemlet
    >>> from gemlet.config import read_config
    >>> demo = os.path.join(os.path.dirname(gemlet.__file__), "demo")
    >>> sorted(read_end_ids(demo, read_config(demo)))
    [1, 106]
    """
    keys = _generation_keys(folder)
    more = keys.token_ids("eos_token_id", config.vocab_size) if keys else ()
    return frozenset((*config.eos_token_ids, *more))


# Keys of transformers' GenerationConfig that change the text and that gemlet does not follow -> the value
# that changes nothing; None if only null changes nothing.
GGUF_SAMPLING = "general.sampling."  # the keys of a GGUF file begin with this
_NOT_FOLLOWED: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_decoder_ids": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "max_length": 20,
    "max_new_tokens": None,
    "max_time": None,
    "min_length": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "sequence_bias": None,
    "token_healing": False,
    "top_h": None,
    "watermarking_config": None,
}
_IN_FILES = {name: option.key or name for name, option in OPTIONS.items() if option.in_files}
_FOLLOWED = {"eos_token_id", "do_sample", "suppress_tokens", "stop_strings", *_IN_FILES.values()}
# Keys of every file, and keys about how the reference computes or reports.
_BOOKKEEPING = {
    "_from_model_config",
    "assistant_confidence_threshold",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "length_penalty",  # a key of beam search
    "low_memory",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


class Sampling(NamedTuple):
    """The settings that a model's files recommend for sampling.

    Attributes:
        values: the recommended values, by their names in GenerationConfig.
        not_followed: keys that ask for something that gemlet does not do -> their values.
        passed_over: keys that neither gemlet nor the reference knows, and ids outside the vocabulary.
    """

    values: dict[str, Any]
    not_followed: dict[str, Any]
    passed_over: tuple[str, ...]


@public
def read_sampling(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The sampling values that ``generation_config.json`` recommends, by their names in GenerationConfig.

    Raises:
        ModelFileError: the file cannot be read.
        ConfigError: a value that no sampling could use; the message names the key.

    >>> import os, gemlet
    >>> read_sampling(os.path.join(os.path.dirname(gemlet.__file__), "demo"))["top_k"]
    64
    """
    return read_recommended(folder, LIMITS["vocab_size"]).values


def read_recommended(folder: str | os.PathLike[str], vocab_size: int) -> Sampling:
    """Everything that ``generation_config.json`` recommends; nothing if there is no such file. Raises the
    errors of :func:`read_sampling`."""
    keys = _generation_keys(folder)
    if keys is None:
        return Sampling({}, {}, ())
    values: dict[str, Any] = {}
    if keys.get("do_sample") is not None:
        values["do_sample"] = keys.flag("do_sample")
    for name, key in _IN_FILES.items():
        if keys.get(key) is not None:
            values[name] = read_number(keys, key, name)
    if keys.get("suppress_tokens") is not None:
        values["suppress_tokens"] = read_suppressed(keys, "suppress_tokens", vocab_size)
    if not says_nothing(keys.get("stop_strings")):
        values["stop"] = _read_stops(keys)
    not_followed = {
        key: value
        for key, value in keys.raw.items()
        if (key in _NOT_FOLLOWED and not says_nothing(value) and value != _NOT_FOLLOWED[key])
        or key.startswith(GGUF_SAMPLING)  # a folder that was converted from GGUF has only those that count
    }
    known = _FOLLOWED | _NOT_FOLLOWED.keys() | not_followed.keys() | _BOOKKEEPING
    keys.token_ids("eos_token_id", vocab_size)
    passed_over = (*keys.passed_over, *(key for key in keys.raw if key not in known))
    return Sampling(values, not_followed, passed_over)


def read_number(keys: Keys, key: str, name: str) -> int | float:
    """The value of the sampling option ``name``, which the file calls ``key``."""
    option = OPTIONS[name]
    if option.kind is int:
        return max(
            0, keys.integer(key, int(option.high), int(option.low))
        )  # other engines write -1 for all tokens
    return keys.number(key, option.low, option.high)


def read_suppressed(keys: Keys, key: str, vocab_size: int) -> tuple[int, ...]:
    """The ids of tokens that must never be generated. -1 in the list means no token. Other numbers that are
    not ids of the vocabulary are ignored, because the model cannot write them."""
    ids = keys.get(key)
    if not isinstance(ids, list) or len(ids) > MAX_SUPPRESSED or any(type(i) is not int for i in ids):
        raise keys.wrong(key, f"a list of up to {MAX_SUPPRESSED} token ids")
    inside = {i for i in ids if 0 <= i < vocab_size}
    if others := sorted(set(ids) - inside - {-1}):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        keys.pass_over(f"{key} {', '.join(map(show, others[:3]))}{more}")
    return tuple(sorted(inside))


def _read_stops(keys: Keys) -> tuple[str, ...]:
    stops = keys.get("stop_strings")
    stops = (stops,) if isinstance(stops, str) else stops
    if (
        not isinstance(stops, (list, tuple))
        or len(stops) > MOST_STOPS
        or any(not isinstance(stop, str) or not 1 <= len(stop) <= MOST_STOP_CHARACTERS for stop in stops)
    ):
        raise keys.wrong(
            "stop_strings", f"up to {MOST_STOPS} strings of 1 to {MOST_STOP_CHARACTERS} characters"
        )
    return tuple(stops)


def _generation_keys(folder: str | os.PathLike[str]) -> Keys | None:
    path = os.path.join(os.fspath(folder), "generation_config.json")
    if not os.path.lexists(path):
        return None
    return Keys(read_json_object(path, error=ConfigError), path, "")
