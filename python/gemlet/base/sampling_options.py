"""The table of the numeric options for generation: :data:`OPTIONS`.

:class:`gemlet.GenerationConfig` and the command line are made from this table. The readers of
``generation_config.json`` and of the sampling keys of GGUF files use it too. Other options (seed, stop
strings, suppressed tokens) are in :mod:`gemlet.generation.options`.
"""

from __future__ import annotations

from typing import Any

from gemlet.base.records import record

__all__ = [
    "MAX_BIAS",
    "MAX_BIASES",
    "MAX_INT",
    "MAX_SUPPRESSED",
    "MOST_ALTERNATIVES",
    "MOST_BREAKERS",
    "MOST_SALT_CHARACTERS",
    "MOST_STOPS",
    "MOST_STOP_CHARACTERS",
    "MOST_STOP_IDS",
    "OPTIONS",
    "NumberOption",
]

MAX_INT = 2**31 - 1
MAX_SUPPRESSED = 1 << 16  # token ids in ``suppress_tokens``
MAX_BIASES = 1024  # tokens in ``logit_bias``
MAX_BIAS = 100  # the largest change of a logit, up or down
MOST_BREAKERS = 16  # strings in ``dry_sequence_breakers``; DRY counts no repetition across such a string
MOST_SALT_CHARACTERS = 256
MOST_STOPS = 16  # stop strings
MOST_STOP_CHARACTERS = 256  # characters of one stop string
MOST_STOP_IDS = 1024  # token ids in ``stop_token_ids``
MOST_ALTERNATIVES = 20  # alternative tokens that ``logprobs`` reports beside the chosen token


@record(frozen=True)
class NumberOption:
    """One numeric option.

    Attributes:
        default: the value that Google publishes for Gemma 3, or a value without effect.
        low, high: the range, both ends included.
        meaning: the range in words, for messages.
        metavar: the name of the value in the help of the command line.
        help: the help text of the command line.
        gguf: the option's name in GGUF's keys ``general.sampling.*``; None if GGUF does not have the option.
        in_files: whether a model's files may recommend a value.
        key: the option's name in ``generation_config.json``; None if it is the same as gemlet's name.
    """

    default: int | float
    low: int | float
    high: int | float
    meaning: str
    metavar: str
    help: str
    gguf: str | None = None
    in_files: bool = True
    key: str | None = None

    @property
    def kind(self) -> type[Any]:
        """The type of the values: ``int`` or ``float``."""
        return type(self.default)


OPTIONS = {
    "max_tokens": NumberOption(
        256, 1, MAX_INT, f"an integer from 1 to {MAX_INT}", "N", "most tokens to write", in_files=False
    ),
    "min_tokens": NumberOption(
        0,
        0,
        MAX_INT,
        f"an integer from 0 to {MAX_INT}",
        "N",
        "do not end before N tokens (default 0)",
        key="min_new_tokens",
    ),
    "temperature": NumberOption(
        1.0, 0.0, 100.0, "a number from 0 (greedy) to 100", "T", "0 is greedy (default: the model's)", "temp"
    ),
    "top_p": NumberOption(
        0.95,
        0.0,
        1.0,
        "a number from 0 (greedy) to 1 (keep all)",
        "P",
        "nucleus; 1 keeps all (default: the model's)",
        "top_p",
    ),
    "top_k": NumberOption(
        64,
        -1,
        MAX_INT,
        f"an integer from 0 (keep all; -1 too) to {MAX_INT}",
        "K",
        "keep the K likeliest; 0 keeps all (default: the model's)",
        "top_k",
    ),
    "min_p": NumberOption(
        0.0,
        0.0,
        1 - 2**-53,  # the largest double below 1
        "a number from 0 (keep all) to below 1",
        "P",
        "drop tokens rarer than P times the likeliest",
        "min_p",
    ),
    "typical_p": NumberOption(
        1.0,
        2**-53,
        1.0,
        "a number above 0 to 1 (keep all)",
        "P",
        "keep tokens that are as surprising as usual; 1 keeps all",
    ),
    "repetition_penalty": NumberOption(
        1.0,
        0.01,
        100.0,
        "a number from 0.01 to 100 (1 is none)",
        "R",
        "above 1 repeats less (default 1)",
        "penalty_repeat",
    ),
    "frequency_penalty": NumberOption(
        0.0,
        -2.0,
        2.0,
        "a number from -2 to 2 (0 is none)",
        "F",
        "above 0 makes a token rarer, the more often it was written",
    ),
    "presence_penalty": NumberOption(
        0.0,
        -2.0,
        2.0,
        "a number from -2 to 2 (0 is none)",
        "F",
        "above 0 makes a token rarer once it was written",
    ),
    "no_repeat_ngram_size": NumberOption(
        0,
        0,
        MAX_INT,
        f"an integer from 0 (repeat freely) to {MAX_INT}",
        "N",
        "never write the same N tokens in a row twice",
    ),
    "dry_multiplier": NumberOption(
        0.0,
        0.0,
        100.0,
        "a number from 0 (off) to 100",
        "M",
        "above 0 shortens repetitions (DRY); 0.8 is usual",
        in_files=False,
    ),
    "dry_base": NumberOption(
        1.75,
        1.0,
        100.0,
        "a number from 1 to 100",
        "B",
        "how fast DRY's penalty grows (default 1.75)",
        in_files=False,
    ),
    "dry_allowed_length": NumberOption(
        2,
        1,
        MAX_INT,
        f"an integer from 1 to {MAX_INT}",
        "N",
        "repetitions that DRY lets pass (default 2)",
        in_files=False,
    ),
}
