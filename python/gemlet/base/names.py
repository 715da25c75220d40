"""Suggestions for misspelled names: :func:`did_you_mean`, :func:`not_known`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["did_you_mean", "not_known"]

# The name of an argument in other tools -> its name in gemlet.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "rep_pen": "repetition_penalty",
    "penalty_repeat": "repetition_penalty",
    "temp": "temperature",
    "random_seed": "seed",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "stop_words": "stop",
    "stop_ids": "stop_token_ids",
    "top_logprobs": "logprobs",
    "num_return_sequences": "n",
    "return_full_text": "echo",
    "min_new_tokens": "min_tokens",
    "typical": "typical_p",
    "repeat_ngram_size": "no_repeat_ngram_size",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "sequence_bias": "logit_bias",
    "bad_words_ids": "suppress_tokens",
    "generation_config": "config",
    "sampling_params": "config",
    "text": "prompt",
    "inputs": "prompt",
    "prompts": "prompt",
    "conversation": "messages",
    "enable_thinking": "thinking",
    "functions": "tools",
    "response_format": "json_schema",
    "format": "json_schema",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "lora": "adapter",
    "lora_request": "adapter",
    "adapter_name": "name",
    "lora_path": "merge_adapter",
    "n_ctx": "max_context",
    "num_ctx": "max_context",
    "ctx_size": "max_context",
    "context_length": "max_context",
    "max_model_len": "max_context",
    "max_seq_len": "max_context",
    "max_seq_length": "max_context",
    "dtype": "weights",
    "torch_dtype": "weights",
    "quantization": "weights",
    "quantization_config": "weights",
    "quant": "weights",
    "load_in_4bit": "weights",
    "load_in_8bit": "weights",
    "n_threads": "threads",
    "num_threads": "threads",
    "n_threads_batch": "threads",
    "kv_cache_dtype": "kv_cache",
    "cache_type": "kv_cache",
    "type_k": "kv_cache",
    "type_v": "kv_cache",
    "cache_type_k": "kv_cache",
    "cache_type_v": "kv_cache",
    "draft_model": "drafter",
    "assistant_model": "drafter",
    "speculative_model": "drafter",
    "device_map": "device",
    "model": "source",
    "model_id": "source",
    "model_name": "source",
    "model_path": "source",
    "pretrained_model_name_or_path": "source",
    "repo_id": "name",
    "hf_token": "token",
    "use_auth_token": "token",
    "output": "destination",
    "save_directory": "destination",
    "sentences": "texts",
    "prompt_name": "prompt",
    "truncate_dim": "dimensions",
    "add_special_tokens": "add_bos",
    "skip_special_tokens": "skip_control",
}


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """Returns the member of ``known`` that ``name`` most likely means: other tools use ``name`` for it, or
    its spelling is similar. Returns None if no member fits.

    >>> did_you_mean("max_new_tokens", ["max_tokens", "seed"]), did_you_mean("temprature", ["temperature"])
    ('max_tokens', 'temperature')
    >>> did_you_mean("colour", ["max_tokens", "seed"])
    """
    choices = list(known)
    if not isinstance(name, str) or len(name) > 100:
        return None
    plain = name.lower().replace("-", "_").lstrip("_")
    if (found := _ELSEWHERE.get(plain)) in choices:
        return found
    import difflib

    written = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(plain, written, n=1)
    return written[near[0]] if near else None


def not_known(name: object, known: Iterable[str], listed: str = "known are") -> str:
    """The end of a message about the unknown ``name``: the name that was probably meant, and all known names.

    >>> print("has no option 'sed'" + not_known("sed", ["seed", "stop"]))
    has no option 'sed'; did you mean seed? Known are seed, stop
    """
    choices = list(known)
    meant = did_you_mean(name, choices)
    start = f"; did you mean {meant}? {listed.capitalize()}" if meant else f"; {listed}"
    return f"{start} {', '.join(choices) or 'none'}"
