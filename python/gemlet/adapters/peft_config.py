"""Reads and checks PEFT's ``adapter_config.json`` of a LoRA adapter: :func:`read_adapter_config`.

Like ``config.json``, the file is not trusted. If gemlet does not support a key that may change the result, an
error names the key. PEFT writes all keys that it knows. Keys that are unset (null, false or empty) have no
effect and are ignored, even if gemlet does not know them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from gemlet.adapters.initial import INITIAL
from gemlet.adapters.name_patterns import ModulePatterns, PatternError
from gemlet.adapters.terms import BY_ROW
from gemlet.base.keys import Keys
from gemlet.base.late import log
from gemlet.base.records import field, record
from gemlet.base.strict_json import read_json_object
from gemlet.base.text import show
from gemlet.errors import ConfigError, ModelFileError
from gemlet.weights.hf_names import PREFIXES

__all__ = ["AdapterConfig", "read_adapter_config"]

CONFIG_FILE = "adapter_config.json"
_MAX_RANK = 1 << 16
_MAX_ITEMS = 8192  # items of a list or of an object of patterns

_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "target_modules": None,
    "exclude_modules": None,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "ensure_weight_tying": False,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "init_lora_weights": True,
    "base_model_name_or_path": None,
    "lora_bias": False,
    "target_parameters": None,
    "use_qalora": False,
    "qalora_group_size": 16,
}
# The keys of TRAINABLE_TOKENS, which replaces rows and nothing else.
_TOKENS_DEFAULTS: dict[str, Any] = {
    "token_indices": None,
    "target_modules": "embed_tokens",
    "base_model_name_or_path": None,
}
# The keys of LN_TUNING, which replaces modules and nothing else.
_NORMS_DEFAULTS: dict[str, Any] = {
    "target_modules": None,
    "modules_to_save": None,
    "base_model_name_or_path": None,
}
# Keys that may only have these values. Unset keys are not checked.
_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", "all", "lora_only"),  # text models have no biases, so a tensor of a bias is refused
}
_MERGE = "merge the adapter with PEFT's merge_and_unload() and load the result"
# Keys that gemlet does not support -> what to do instead. Unset keys are not checked.
_REFUSED = {
    "layer_replication": _MERGE,
    # In the engine, a sequence has one adapter from its first token on. PEFT cannot merge this kind either.
    "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only from these tokens on, which gemlet "
    "cannot do; run it with PEFT, or train a plain LoRA",
    "megatron_config": _MERGE,
    "use_bdlora": _MERGE,
    "kasa_config": "this kind also changes the model's own weights; " + _MERGE,
    "arrow_config": "this kind mixes several adapters; merge one of them with PEFT and load the result",
}
NOT_IN_GPTQ = (
    "a QA-LoRA adapter for a GPTQ model fits no other model, and PEFT cannot merge it; run it with "
    "PEFT, or train a plain LoRA"
)
# Objects that choose a variant of LoRA even if they are empty: PEFT fills in their defaults.
_VARIANTS = ("arrow_config", "kasa_config", "use_bdlora")
# Kinds of adapters that change the model's input and not its weights.
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
# Keys about training or about the file.
_IGNORED = frozenset(
    {
        "auto_mapping",
        "corda_config",  # these belong to values of init_lora_weights; only that key matters
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "monteclora_config",  # noise in training; without it, an ordinary LoRA
        "velora_config",  # changes gradients only
        "init_weights",
        "fan_in_fan_out",  # for Conv1D; PEFT sets it to false for every module that Gemma has
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)
# The values of init_lora_weights that do not matter when PEFT loads an adapter. Only for the values in
# INITIAL, PEFT subtracts something from the model's weights when it loads the adapter. With "lora_ga", it
# does so only in training.
_INITIALISATIONS = (True, "gaussian", "eva", "orthogonal", "mica", "lora_ga")


@record(frozen=True)
class AdapterConfig:
    """The modules that an adapter changes, and the factor on each change.

    Attributes:
        where: the file, for errors.
        base_model: the model on which the adapter was trained, according to the file; "" if the file does not
            say.
        targets, excluded: the modules that are changed or not changed: endings of their names, or one pattern
            for whole names.
        layers: the layers that the adapter changes; None for all.
        saved: the names of modules that the adapter replaces.
        parameters: endings of the names of parameters, such as the experts' stacks, that the adapter changes.
        bias: whether B has a bias.
        tokens: module -> the ids of the tokens whose rows the adapter replaces.
        pooled: the number of inputs in a group of QA-LoRA; 0 for other adapters.
        initial: the method of :mod:`gemlet.adapters.initial` by which PEFT subtracts a part from the model's
            weights; "" for none.
        tied: whether changes of the embedding table also hold for an output head that is tied to it.
        ranks, alphas: pattern of module names -> the value that replaces ``rank`` or ``alpha``.
    """

    where: str
    base_model: str
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    bias: bool
    parameters: tuple[str, ...]
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]
    saved: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    tied: bool
    pooled: int
    initial: str
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    _patterns: ModulePatterns = field(default_factory=ModulePatterns, repr=False, compare=False)

    @property
    def all_linear(self) -> bool:
        """Whether the adapter changes every linear module but the output head."""
        return isinstance(self.targets, str) and self.targets.lower() == "all-linear"

    def targets_module(self, name: str, prefix: str, layer: int | None) -> bool:
        """Whether the adapter changes the linear module ``name``, which is inside ``{prefix}.{layer}``. A
        layer of None means that the module is in no layer."""
        if self._listed("exclude_modules", self.excluded, name):
            return False
        if self.all_linear:
            return True
        if not self._listed("target_modules", self.targets, name):
            return False
        if self.layers is None or name in self.targets:
            return True
        if self.layers_patterns and not any(
            self._suffix_match("layers_pattern", pattern, prefix) for pattern in self.layers_patterns
        ):
            return False
        return layer in self.layers

    def saves(self, end: str) -> bool:
        """Whether the adapter replaces the whole embedding table or output head, ``end``. As in PEFT, a name
        in :attr:`saved` matches if ``end`` ends with it."""
        last = [name.rpartition(".")[2] for name in self.saved]
        return any(name and end.endswith(name) for name in last)

    def targets_parameter(self, name: str) -> bool:
        """Whether the adapter changes ``name`` as a parameter, not as a module."""
        return self._listed("target_parameters", self.parameters, name)

    def module_rank(self, name: str) -> int:
        """The rank of the module ``name``."""
        pattern = self._first_match("rank_pattern", self.ranks, name)
        return self.rank if pattern is None else self.ranks[pattern]

    def module_scale(self, name: str) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski, arXiv 2312.03732)."""
        rank = self.module_rank(name)
        pattern = self._first_match("alpha_pattern", self.alphas, name)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _listed(self, key: str, modules: str | tuple[str, ...], name: str) -> bool:
        if isinstance(modules, tuple):
            return any(name == module or name.endswith(f".{module}") for module in modules)
        try:
            return self._patterns.fullmatch(modules, name)
        except PatternError as problem:
            raise self._wrong_pattern(key, modules, problem) from None

    def _first_match(self, key: str, patterns: Iterable[str], name: str) -> str | None:
        return next((pattern for pattern in patterns if self._suffix_match(key, pattern, name)), None)

    def _suffix_match(self, key: str, pattern: str, name: str) -> bool:
        try:
            return self._patterns.suffix_match(pattern, name)
        except PatternError as problem:
            raise self._wrong_pattern(key, pattern, problem) from None

    def _wrong_pattern(self, key: str, pattern: str, problem: PatternError) -> ConfigError:
        return ConfigError(
            f"{self.where}: {key}: pattern {show(pattern)}: {problem}; list the modules' names instead"
        )


def read_adapter_config(folder: str) -> AdapterConfig:
    """Reads ``folder/adapter_config.json``.

    Raises :class:`ModelFileError` if the file is missing or cannot be read, and :class:`ConfigError`, which
    names the key, if gemlet does not support the adapter.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.lexists(path):
        raise ModelFileError(f"{path}: missing; expected the folder of a PEFT adapter")
    raw = read_json_object(path, error=ConfigError)
    found = {
        key: value
        for key, value in raw.items()
        if not _is_unset(value) or (key in _VARIANTS and isinstance(value, dict))
    }
    if raw.get("peft_type") == "TRAINABLE_TOKENS":
        return _only_tokens(Keys(found, path, "", _TOKENS_DEFAULTS))
    if raw.get("peft_type") == "LN_TUNING":
        return _only_norms(Keys(found, path, "", _NORMS_DEFAULTS))
    keys = Keys(found, path, "", _DEFAULTS)
    kind = keys.get("peft_type")
    if kind != "LORA":
        way_out = f"for another kind, {_MERGE}" if isinstance(kind, str) else "PEFT writes this key"
        if kind in _PROMPTS:
            way_out = "this kind changes the prompt and cannot be merged, so only PEFT can run it"
        raise keys.wrong(
            "peft_type", f"'LORA' (also DoRA and rsLoRA), 'LN_TUNING' or 'TRAINABLE_TOKENS'; {way_out}"
        )
    for key, way_out in _REFUSED.items():
        if key in keys.raw:
            raise keys.wrong(key, f"it not to be set; {way_out}")
    keys.refuse_unknown(_IGNORED, _FIXED)
    start = keys.get("init_lora_weights")
    if isinstance(start, str) and start.lower() in ("gaussian", "olora", "mica"):
        start = start.lower()  # as in PEFT
    known = (*_INITIALISATIONS, *INITIAL)
    if not any(type(start) is type(own) and start == own for own in known):
        raise keys.wrong(
            "init_lora_weights",
            f"one of {', '.join(map(show, known))}. With any other value, loading changes the model's own "
            "weights in a way that depends on random numbers or on missing data. For PiSSA and CorDA, make a "
            "plain adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...). For "
            "LoftQ, also save the model on which the adapter was trained, and set this key to true",
        )
    if start == "lora_ga":
        log.warning(
            "%s: the adapter's training first changed the model's own weights (lora_ga). Loading does "
            "not, as in PEFT. To get a plain adapter, save it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...)",
            path,
        )
    base_model = keys.get("base_model_name_or_path")
    targets = _names_or_pattern(keys, "target_modules")
    parameters = _names_or_pattern(keys, "target_parameters")
    if isinstance(parameters, str):
        raise keys.wrong("target_parameters", "a list of parameters")
    if not targets and not parameters:
        raise keys.wrong("target_modules", "the names of modules, or a pattern")
    return AdapterConfig(
        where=path,
        base_model=base_model if isinstance(base_model, str) else "",
        rank=keys.integer("r", _MAX_RANK),
        alpha=keys.number("lora_alpha", -1e6, 1e6),
        rslora=keys.flag("use_rslora"),
        dora=keys.flag("use_dora"),
        bias=keys.flag("lora_bias"),
        parameters=parameters,
        targets=targets,
        excluded=_names_or_pattern(keys, "exclude_modules"),
        layers=_layers(keys),
        saved=_saved(keys),
        tokens=_tokens(keys),
        tied=keys.flag("ensure_weight_tying"),
        pooled=_pooled(keys),
        initial=start if start in INITIAL else "",
        layers_patterns=_as_tuple(_names_or_pattern(keys, "layers_pattern")),
        ranks=_pattern_values(keys, "rank_pattern", lambda inner, key: inner.integer(key, _MAX_RANK)),
        alphas=_pattern_values(keys, "alpha_pattern", lambda inner, key: inner.number(key, -1e6, 1e6)),
    )


def _only_tokens(keys: Keys) -> AdapterConfig:
    """The configuration of an adapter that replaces the rows of some tokens, and nothing else."""
    keys.refuse_unknown(_IGNORED, {"peft_type": ("TRAINABLE_TOKENS",)})
    ids = _ids(keys, "token_indices", keys.get("token_indices"), "token ids, each once")
    modules = _names_or_pattern(keys, "target_modules")
    patterns = ModulePatterns()
    tokens = {}
    for end in BY_ROW:
        places = (end, *(f"{prefix}{end}" for pair in PREFIXES for prefix in pair))
        try:
            if (
                any(name.rpartition(".")[2] == end for name in modules)
                if isinstance(modules, tuple)
                else modules == end or any(patterns.fullmatch(modules, place) for place in places)
            ):
                tokens[end] = ids
        except PatternError as problem:
            raise keys.wrong("target_modules", f"a pattern that gemlet can match: {problem}") from None
    others = [n for n in modules if n.rpartition(".")[2] not in BY_ROW] if isinstance(modules, tuple) else []
    if not tokens or others:
        raise keys.wrong("target_modules", f"some of {', '.join(BY_ROW)}")
    return _without_lora(keys, tokens=tokens)


def _only_norms(keys: Keys) -> AdapterConfig:
    """The configuration of an adapter that replaces norms or other modules, and nothing else."""
    keys.refuse_unknown(_IGNORED, {"peft_type": ("LN_TUNING",)})
    targets = _names_or_pattern(keys, "target_modules")
    if isinstance(targets, str) or not targets:
        raise keys.wrong("target_modules", "the names of modules")
    return _without_lora(keys, saved=(*(f".{name}" for name in targets), *_saved(keys)))


def _without_lora(
    keys: Keys, *, saved: tuple[str, ...] = (), tokens: Mapping[str, tuple[int, ...]] | None = None
) -> AdapterConfig:
    base_model = keys.get("base_model_name_or_path")
    return AdapterConfig(
        where=keys.where,
        base_model=base_model if isinstance(base_model, str) else "",
        rank=1,
        alpha=1.0,
        rslora=False,
        dora=False,
        bias=False,
        parameters=(),
        targets=(),
        excluded=(),
        layers=None,
        saved=saved,
        tokens=tokens or {},
        tied=False,
        pooled=0,
        initial="",
        layers_patterns=(),
        ranks={},
        alphas={},
    )


def _is_unset(value: object) -> bool:
    return value is None or value is False or (isinstance(value, (dict, list)) and not value)


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _names_or_pattern(keys: Keys, key: str) -> str | tuple[str, ...]:
    value = keys.get(key)
    if value is None:
        return ()
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or len(value) > _MAX_ITEMS or not all(isinstance(v, str) for v in value):
        raise keys.wrong(key, f"a string or a list of up to {_MAX_ITEMS} strings")
    return tuple(value)


def _pooled(keys: Keys) -> int:
    """The group size of QA-LoRA; 0 for other adapters. PEFT uses the flag of QA-LoRA only for GPTQ models.
    The adapters for such models have other shapes, except if a group has one input; this case is refused."""
    if not keys.flag("use_qalora"):
        return 0
    group = keys.integer("qalora_group_size", _MAX_RANK)
    if group == 1:
        raise keys.wrong("qalora_group_size", f"at least 2 beside use_qalora; {NOT_IN_GPTQ}")
    log.info("%s: use_qalora is passed over: PEFT reads it for models in GPTQ only", keys.where)
    return group


def _saved(keys: Keys) -> tuple[str, ...]:
    names = _names_or_pattern(keys, "modules_to_save")
    if isinstance(names, str):
        raise keys.wrong("modules_to_save", "a list of modules")
    return names


def _tokens(keys: Keys) -> dict[str, tuple[int, ...]]:
    value = keys.get("trainable_token_indices")
    found = {"embed_tokens": value} if isinstance(value, list) else {} if value is None else value
    expected = f"token ids, each once, or an object with such lists for {', '.join(BY_ROW)}"
    if not isinstance(found, dict):
        raise keys.wrong("trainable_token_indices", expected)
    tokens = {}
    for name, ids in found.items():
        module = name.rpartition(".")[2]
        if module not in BY_ROW or module in tokens:
            raise keys.wrong("trainable_token_indices", expected)
        tokens[module] = _ids(keys, "trainable_token_indices", ids, expected)
    return tokens


def _ids(keys: Keys, key: str, ids: object, expected: str) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise keys.wrong(key, expected)
    if not ids or len(set(ids)) < len(ids):
        raise keys.wrong(key, expected)
    return tuple(ids)


def _layers(keys: Keys) -> frozenset[int] | None:
    value = keys.get("layers_to_transform")
    if value is None:
        return None
    layers = value if isinstance(value, list) else [value]
    if len(layers) > _MAX_ITEMS or not all(type(layer) is int and 0 <= layer < 1 << 31 for layer in layers):
        raise keys.wrong("layers_to_transform", "the number of a layer, or a list of them")
    return frozenset(layers)


def _pattern_values(keys: Keys, key: str, read: Any) -> dict[str, Any]:
    values = keys.mapping(key)
    if len(values) > _MAX_ITEMS:
        raise keys.wrong(key, f"at most {_MAX_ITEMS} patterns")
    inner = Keys(values, keys.where, f"{key}.")
    return {pattern: read(inner, pattern) for pattern in values}
