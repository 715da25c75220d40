"""Reads the description of an embedding model in a folder of sentence-transformers.

``modules.json`` lists the stages: the transformer, the mean over its tokens, dense layers (matrices without
bias or activation), the division by the length. ``config_sentence_transformers.json`` has prompts: what comes
before a text, depending on its use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from gemlet.base.keys import Keys
from gemlet.base.names import did_you_mean
from gemlet.base.records import field, record, replace
from gemlet.base.strict_json import read_json_list, read_json_object
from gemlet.base.text import show
from gemlet.config.limits import LIMITS
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError, InvalidRequestError

__all__ = ["Prompts", "read_dense_layers", "read_prompts"]

_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_LIMITS = "sentence_bert_config.json"
_OUTPUT = "sentence_embedding"  # the values that a module of sentence-transformers passes to the next
# EmbeddingGemma's prompts, for models that come without the file.
_EMBEDDINGGEMMA = {"query": "task: search result | query: ", "document": "title: none | text: "}
_DENSE = frozenset(  # the keys of a dense layer
    [
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "use_residual",
        "module_input_name",
        "module_output_name",
    ]
)
_PACKAGE = "sentence_transformers."
_NO_ACTIVATION = ("torch.nn.modules.linear.Identity", "torch.nn.Identity")
# Keys of the transformer, and keys about how it runs.
_OF_TRANSFORMER = frozenset(
    {
        *("do_lower_case", "transformer_task", "modality_config", "module_output_name", "max_seq_length"),
        *("unpad_inputs", "backend"),
    }
)
# Arguments for loading with transformers that change no value.
_OF_LOADING = frozenset({"attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype"})
_LOADING = ("model_args", "model_kwargs")
_ABOUT_FILE = ("__version__", "requirements", "similarity_fn_name")  # embeddings do not depend on these
_NO_LIMIT = 10**40  # some tools write a huge number
MAX_DENSE = 16
MAX_PROMPTS = 1024


@record(frozen=True)
class Prompts:
    """The prompts of an embedding model, which come before a text, by the text's use. ``default`` names the
    prompt for texts without a given use; None for no prompt. Unless the caller says otherwise, the first
    ``dimensions`` numbers of each vector are kept; None: all. ``passed_over`` are keys of the file that
    change nothing."""

    texts: Mapping[str, str] = field(default_factory=lambda: dict(_EMBEDDINGGEMMA))
    default: str | None = None
    dimensions: int | None = None
    passed_over: tuple[str, ...] = field(default=(), compare=False)

    def find(self, name: str | None) -> str:
        """The prompt ``name``, None: the default; raises :class:`InvalidRequestError` for an unknown one."""
        if name is None:
            return "" if self.default is None else self.texts[self.default]
        if not isinstance(name, str) or name not in self.texts:
            known = ", ".join(map(show, self.texts)) or "none"
            meant = did_you_mean(name, self.texts)
            raise InvalidRequestError(
                f"prompt: got {show(name)}, expected the name of one of the model's prompts ({known}), "
                "or None; write any other text in front of the texts themselves"
                + (f". Did you mean {show(meant)}?" if meant else "")
            )
        return self.texts[name]


def read_prompts(folder: str) -> Prompts:
    """The prompts of ``config_sentence_transformers.json``, or EmbeddingGemma's if there is no such file.

    Raises :class:`ConfigError` naming the key that is wrong.
    """
    path = os.path.join(folder, _PROMPTS)
    if not os.path.lexists(path):
        return Prompts()
    keys = Keys(read_json_object(path, error=ConfigError), path, "")
    texts = {name: "" if text is None else text for name, text in keys.mapping("prompts").items()}
    if len(texts) > MAX_PROMPTS or not all(isinstance(text, str) for text in texts.values()):
        raise keys.wrong("prompts", f"an object of up to {MAX_PROMPTS} strings")
    default = keys.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in texts):
        raise keys.wrong("default_prompt_name", "null, or one of the prompts")
    kind = keys.get("model_type")
    if kind not in (None, "SentenceTransformer"):
        raise keys.wrong(
            "model_type",
            "'SentenceTransformer', which makes one vector of each text. Run others with their library",
        )
    if keys.get("max_active_dims") is not None:
        raise keys.wrong("max_active_dims", "null; it belongs to sparse vectors, which gemlet does not make")
    dimensions = None
    if keys.get("truncate_dim") is not None:
        dimensions = keys.integer("truncate_dim", _NO_LIMIT)
    known = ("prompts", "default_prompt_name", "model_type", "max_active_dims", "truncate_dim", *_ABOUT_FILE)
    return Prompts(texts, default, dimensions, tuple(key for key in keys.raw if key not in known))


def read_dense_layers(folder: str, config: TextConfig) -> tuple[TextConfig, tuple[str, ...]]:
    """``config`` with the dense layers of ``modules.json`` and the longest text that
    ``sentence_bert_config.json`` allows, and the files that were read.

    A folder without ``modules.json`` has none. Raises :class:`ConfigError` for stages other than a
    transformer, the mean over its tokens, dense layers and the division by the length.
    """
    config, limits = _read_limits(folder, config)
    path = os.path.join(folder, _MODULES)
    if not os.path.lexists(path):
        return config, limits
    modules = read_json_list(path, error=ConfigError)
    places = [_module(path, i, module) for i, module in enumerate(modules)]
    kinds = [kind for kind, _ in places]
    count = kinds.count("Dense")
    expected = ["Transformer", "Pooling", *["Dense"] * count, "Normalize"]
    most = 0 if config.projects_itself else MAX_DENSE
    if kinds not in (expected, expected[:-1]) or count > most:
        dense = f"up to {most} times Dense, " if most else ""
        raise ConfigError(
            f"{path}: lists the modules {show(kinds)}; expected Transformer, Pooling, {dense}Normalize"
        )
    if places[0][1] and os.path.lexists(os.path.join(folder, places[0][1], "config.json")):
        raise ConfigError(
            f"{path}: puts the Transformer in {show(places[0][1])}; expected it in the folder itself. Move "
            "the files of that folder there, and set its path to an empty text"
        )
    files = [_MODULES]
    if os.path.lexists(os.path.join(folder, places[1][1], "config.json")):
        files.append(f"{places[1][1]}/config.json")
        _check_pooling(os.path.join(folder, files[-1]))
    sizes = [config.hidden_size]
    for i in range(count):
        place = f"{i + 2}_Dense"
        if places[i + 2][1] != place:
            raise ConfigError(f"{path}: puts a Dense module in {show(places[i + 2][1])}; expected {place}")
        files.append(f"{place}/config.json")
        sizes.append(_read_dense(os.path.join(folder, files[-1]), sizes[-1]))
    divided = kinds[-1:] == ["Normalize"]
    dense_sizes = config.dense_sizes if config.projects_itself else tuple(sizes[1:])
    return replace(config, dense_sizes=dense_sizes, unit_vectors=divided), (*files, *limits)


def _read_limits(folder: str, config: TextConfig) -> tuple[TextConfig, tuple[str, ...]]:
    """``config`` with a context of at most ``max_seq_length``."""
    path = os.path.join(folder, _LIMITS)
    if not os.path.lexists(path):
        return config, ()
    keys = Keys(read_json_object(path, error=ConfigError), path, "")
    if keys.get("do_lower_case") not in (None, False):
        raise keys.wrong("do_lower_case", "false (gemlet supports nothing else)")
    if keys.get("transformer_task") not in (None, "feature-extraction"):
        raise keys.wrong("transformer_task", "'feature-extraction' (gemlet supports nothing else)")
    text = keys.mapping("modality_config").get("text")
    output = text.get("method_output_name") if isinstance(text, dict) else None
    if output not in (None, "last_hidden_state"):
        raise keys.wrong(
            "modality_config",
            "'last_hidden_state' as method_output_name of text (gemlet supports nothing else)",
        )
    if keys.get("module_output_name") not in (None, "token_embeddings"):
        raise keys.wrong("module_output_name", "'token_embeddings' (gemlet supports nothing else)")
    for key in _LOADING:
        if set(keys.mapping(key)) - _OF_LOADING:
            raise keys.wrong(key, f"only {', '.join(sorted(_OF_LOADING))}, which change no embedding")
    keys.refuse_unknown(_OF_TRANSFORMER | set(_LOADING), {})
    if keys.get("max_seq_length") is not None:
        length = keys.integer("max_seq_length", _NO_LIMIT)
        config = replace(config, max_position_embeddings=min(length, config.max_position_embeddings))
    return config, (_LIMITS,)


def _module(path: str, index: int, module: Any) -> tuple[str, str]:
    """(class, folder) of an entry of modules.json."""
    kind = module.get("type") if isinstance(module, dict) else None
    place = module.get("path") if isinstance(module, dict) else None
    plain = (
        isinstance(place, str) and len(place) <= 255 and place.isprintable() and not set(place) & set("/\\:")
    )
    if not isinstance(kind, str) or not plain or place in (".", ".."):
        raise ConfigError(
            f"{path}: entry {index} is {show(module)}; expected an object with a type and, as path, "
            "the name of a folder"
        )
    # A class of another package may compute something else.
    return kind.rpartition(".")[2] if kind.startswith(_PACKAGE) else kind, str(place)


def _check_pooling(path: str) -> None:
    keys = Keys(read_json_object(path, error=ConfigError), path, "")
    wanted = "mean"
    if keys.get("pooling_mode") is not None:  # later versions write it in this way
        modes = keys.get("pooling_mode")
        found = modes if isinstance(modes, list) else [modes]
    else:
        prefix = "pooling_mode_"
        found = [key.removeprefix(prefix) for key, on in keys.raw.items() if key.startswith(prefix) and on]
        wanted = "mean_tokens"
    if found != [wanted]:
        raise ConfigError(f"{path}: pools by {show(found)}; expected the mean over all tokens, [{wanted!r}]")
    if keys.get("include_prompt") not in (None, True):
        raise keys.wrong("include_prompt", "true (gemlet supports nothing else)")


def _read_dense(path: str, inputs: int) -> int:
    """The outputs of a dense layer of this many inputs."""
    keys = Keys(read_json_object(path, error=ConfigError), path, "")
    keys.refuse_unknown(_DENSE, {})
    if keys.get("in_features") != inputs:
        raise keys.wrong("in_features", f"{inputs}, the outputs before it")
    if keys.raw.get("bias", True) not in (False, None):  # the default is true
        raise keys.wrong("bias", "false (gemlet supports nothing else)")
    activation = keys.get("activation_function")
    if activation not in _NO_ACTIVATION:
        raise keys.wrong(
            "activation_function", "'torch.nn.modules.linear.Identity' (gemlet supports nothing else)"
        )
    if keys.get("use_residual") not in (None, False):
        raise keys.wrong("use_residual", "false (gemlet supports nothing else)")
    for key in ("module_input_name", "module_output_name"):
        if keys.get(key) not in (None, _OUTPUT):
            raise keys.wrong(key, f"{_OUTPUT!r} (gemlet supports nothing else)")
    return keys.integer("out_features", LIMITS["hidden_size"])
