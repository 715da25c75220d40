"""Finds the weight that each tensor of an adapter in PEFT's format changes: :func:`map_peft`.

The name of a tensor has three parts: ``base_model.model.``, the name of the module in the model on which the
adapter was trained, and ``.lora_A.weight``, ``.lora_B.weight`` or, with DoRA, ``.lora_magnitude_vector``.
"""

from __future__ import annotations

from math import prod

from gemlet.adapters.peft_config import CONFIG_FILE, NOT_IN_GPTQ, AdapterConfig
from gemlet.adapters.terms import (
    BY_ROW,
    COEFFICIENTS,
    ENDS,
    EXPERTS,
    TABLES,
    LowRank,
    OwnRows,
    Terms,
    kind_of,
    own_slots,
    target_slots,
    tower_matrices,
)
from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.checkpoint.safetensors_files import Checkpoint
from gemlet.config.text_config import TextConfig
from gemlet.errors import ConfigError, TensorError
from gemlet.weights.hf_names import (
    is_tower,
    split_prefix,
    tensor_name,
    unused_tensors,
    without_wrappers,
)
from gemlet.weights.slots import PER_LAYER_TABLE, expected_slots
from gemlet.weights.tower_slots import tower_module, tower_names, tower_slots

__all__ = ["map_peft"]

_OUTER = "base_model.model."
# Matches the name of a tensor and finds its module and its part, such as "A". PEFT leaves out the name of the
# adapter; tools that save PEFT's modules write it, as in "lora_A.default.weight". "tokens" are single rows
# that the adapter replaces, and "whole" is a weight that it replaces completely.
_PARTS = late_pattern(
    r"(?P<module>.+?)\.(?:lora_(?P<factor>[AB])(?:\.\w+)?\.weight"
    r"|lora_B(?:\.\w+)?\.(?P<bias>bias)"
    r"|(?:base_layer\.)?(?P<own_bias>bias)"
    r"|lora_(?P<table>embedding_[AB])(?:\.\w+)?"
    r"|lora_(?P<magnitude>magnitude)_vector(?:\.\w+){0,2}"
    r"|(?:token_adapter\.)?trainable_(?P<tokens>tokens)_delta(?:\.\w+)?"
    r"|(?:base_layer\.|(?:modules_to_save|ln_tuning_layers)\.(?:\w+\.)?)?(?P<whole>weight))"
)
_NAMES = {
    **{part: f"lora_{part}.weight" for part in "AB"},
    **{part: f"lora_{part}" for part in ("embedding_A", "embedding_B")},
    "bias": "lora_B.bias",
    "own_bias": "bias",
    "magnitude": "lora_magnitude_vector",
    "tokens": "token_adapter.trainable_tokens_delta",
    "weight": "weight",
}
# Names that follow the prefix of a text model.
_TRUNK = (
    "layers",
    "norm",
    "per_layer_projection_norm",
    "embed_tokens",
    "embed_tokens_per_layer",
    "per_layer_model_projection",
    "altup_projections",
    "altup_unembed_projections",
)

_Found = dict[str, dict[str, str]]  # slot, or module of a tower -> {part (a key of _NAMES): tensor}
# Tensors that only the training of VeLoRA and MonteCLoRA uses.
_OF_TRAINING = late_pattern(r".+\.lora_(?:velora_embed|monteclora_sampler)(?:\..+)?")
_NUMBERED = late_pattern(
    r"(?P<prefix>.*\.[^.]*)\.(?P<layer>[0-9]{1,4})\."
)  # PEFT finds the number of a layer in the same way


def map_peft(checkpoint: Checkpoint, file: str, adapter: AdapterConfig, config: TextConfig) -> Terms:
    """Returns the changes of the adapter whose tensors are in ``file``.

    Raises:
        TensorError: a tensor is missing, unexpected or does not fit the model.
        ConfigError: the configuration contradicts the tensors.
    """
    return _Mapping(checkpoint, checkpoint.path(file), adapter, config).terms()


class _Mapping:
    def __init__(
        self, checkpoint: Checkpoint, where: str, adapter: AdapterConfig, config: TextConfig
    ) -> None:
        self.checkpoint = checkpoint
        self.where = where
        self.adapter = adapter
        self.config = config
        self.suffix = f"; the adapter was made for {show(adapter.base_model)}" if adapter.base_model else ""
        self.prefix, head_prefix = self._find_prefixes()
        self.shapes = expected_slots(config)
        self.shapes["lm_head"] = self.shapes["embed_tokens"]
        self.modules = {
            slot: tensor_name(slot, config.family, self.prefix, head_prefix).removesuffix(".weight")
            for slot in target_slots(config)
        }
        self.offsets = own_slots(config)
        # The modules that the adapter may replace. Parameters that are not in a separate module are left out.
        names = {slot: tensor_name(slot, config.family, self.prefix, head_prefix) for slot in self.offsets}
        self.whole = {
            name.removesuffix(".weight"): slot for slot, name in names.items() if name.endswith(".weight")
        }
        # slot -> the module's name in the file. PEFT wraps the experts of a layer once for each stack, and
        # each wrapper adds ".base_layer" to the name.
        self.stored = {slot: name for slot, name in self.modules.items() if kind_of(slot) not in EXPERTS}
        for layer in range(config.num_layers):
            slots = [slot for kind in EXPERTS if (slot := f"layers.{layer}.{kind}") in self.modules]
            targets = [slot for slot in slots if self._is_target(slot)]
            for place, slot in enumerate(targets):
                experts = self.modules[slot].rpartition(".")[0]
                self.stored[slot] = experts + ".base_layer" * (len(targets) - 1 - place)

    def terms(self) -> Terms:
        found, towers = self._sort()
        kinds = {kind_of(slot) for slot in found}
        low_rank = {}
        for slot in self.stored:
            # Names and patterns say which modules are changed. With "all-linear", a kind of module is changed
            # in all layers if the file has tensors of this kind.
            named = self._is_target(slot) and (not self.adapter.all_linear or kind_of(slot) in kinds)
            if named or any(part not in ("weight", "tokens") for part in found.get(slot, ())):
                low_rank[slot] = self._term(slot, found.get(slot, {}))
        of_towers, passed_over, biases, never_changed = self._tower_terms(towers)
        own_rows = self._own_rows(found)
        return Terms(low_rank | of_towers, own_rows, passed_over, biases, never_changed)

    def _tower_terms(
        self, found: _Found
    ) -> tuple[dict[str, LowRank], tuple[str, ...], dict[str, OwnRows], tuple[str, ...]]:
        """Returns four values: the low-rank terms for matrices of towers, by slot; the modules with other
        changes; the biases that replace the model's biases, by slot; and the modules with changes that gemlet
        cannot make even by merging. As in PEFT, a module without tensors in the file stays unchanged."""
        matrices, shapes = tower_matrices(self.config), tower_slots(self.config)
        slots = {name: slot for slot, name in tower_names(shapes, self.config.family).items()}
        terms: dict[str, LowRank] = {}
        biases: dict[str, OwnRows] = {}
        passed_over, never_changed = [], []
        for module, parts in found.items():
            plain = tower_module(module, self.config)
            slot, rows, cols = matrices.get(plain, ("", 0, 0))
            of_bias = slots.get(f"{plain}.bias", "")
            others = parts.keys() - ({"A", "B", "bias", "magnitude"} if slot else set())
            if others:
                passed_over.append(module)
            if others - ({"own_bias"} if of_bias else set()):
                never_changed.append(module)
                continue
            if others:
                self._check(module, "own_bias", parts, shapes[of_bias], "the module's own")
                biases[of_bias] = OwnRows(parts["own_bias"])
            if others == parts.keys():
                continue
            numbered = _NUMBERED.match(module)
            place = (numbered["prefix"], int(numbered["layer"])) if numbered else ("", None)
            if not self.adapter.targets_module(module, *place):
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(next(iter(parts.values())))}: target_modules in "
                    f"{CONFIG_FILE} does not name it"
                )
            terms[slot] = self._low_rank(module, module, (rows, cols), parts)
        return terms, tuple(sorted(passed_over)), biases, tuple(sorted(never_changed))

    def _sort(self) -> tuple[_Found, _Found]:
        """The tensors of each slot of the text model, and of each module of towers."""
        unused = {
            name.removesuffix(".weight")
            for name in unused_tensors(self.config, self.prefix, "")
            if name.startswith(f"{self.prefix}layers.")
        }
        slots = {module: slot for slot, module in self.stored.items()}
        found: _Found = {}
        towers: _Found = {}
        for tensor, info in self.checkpoint.tensors.items():
            if _OF_TRAINING.fullmatch(tensor):
                continue
            self.checkpoint.dtype(tensor)  # raises for a type that cannot be read
            module, part = _split(tensor)
            slot = slots.get(module, "")
            if part == "weight" and slot not in ENDS:
                slot = self.whole.get(module, "")
            of_rows = part in ("embedding_A", "embedding_B", "tokens")
            if is_tower(module, self.config.family):
                towers.setdefault(module, {})[part] = tensor
            elif module in unused and part:
                pass
            elif not slot or part in ("", "own_bias") or (of_rows and slot not in BY_ROW):
                kinds = ", ".join(dict.fromkeys(map(kind_of, self.stored)))
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(tensor)} of shape {list(info.shape)}; gemlet "
                    f"reads lora_A and lora_B of {kinds} in this {self.config.family} model of "
                    f"{self.config.num_layers} layers, and weights of modules saved whole. Merge any "
                    f"other adapter with PEFT's merge_and_unload() and load the result{self.suffix}"
                )
            elif part not in ("tokens", "weight") and not self._is_target(slot):
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(tensor)}: target_modules in {CONFIG_FILE} does "
                    "not name it"
                )
            elif part in found.setdefault(slot, {}):
                raise TensorError(
                    f"{self.where}: tensors {show(found[slot][part])} and {show(tensor)} are for the same "
                    "weight; expected one of them"
                )
            else:
                found[slot][part] = tensor
        return found, towers

    def _term(self, slot: str, found: dict[str, str]) -> LowRank:
        table = slot in TABLES
        *stack, rows, cols = reversed(self.shapes[slot]) if table else self.shapes[slot]
        self._check_kind(slot, found)
        return self._low_rank(
            self.modules[slot],
            self.stored[slot],
            (rows, cols),
            found,
            ab=("embedding_A", "embedding_B") if table else ("A", "B"),
            experts=stack[0] if stack else 0,
        )

    def _low_rank(
        self,
        module: str,
        stored: str,
        matrix: tuple[int, int],
        found: dict[str, str],
        *,
        ab: tuple[str, str] = ("A", "B"),
        experts: int = 0,
    ) -> LowRank:
        """The low-rank term of a ``module``, whose tensors in the file are ``found``."""
        name = f"{module}.weight" if self._has_target_weight(module) else module
        rank, (rows, cols), (a, b) = self.adapter.module_rank(name), matrix, ab
        table = ab[0] == "embedding_A"
        if self.adapter.initial and not table:
            rank = min(rank, rows, cols)  # PEFT makes A and B from matrices of this rank
        ranks = rank * max(1, experts)
        expected: dict[str, tuple[int, ...]] = {a: (ranks, cols), b: (rows, ranks)}
        if self.adapter.dora:
            expected["magnitude"] = (rows,)
        if self.adapter.bias:
            expected["bias"] = (rows,)
        for part in found.keys() - expected.keys() - {"weight", "tokens", "own_bias"}:
            keys = {"magnitude": "use_dora", "bias": "lora_bias"}
            hint = f": {CONFIG_FILE} does not set {keys[part]}" if part in keys else ""
            raise TensorError(f"{self.where}: unexpected tensor {show(found[part])}{hint}")
        why = f"rank {rank} in {CONFIG_FILE}, on a matrix of {rows} x {cols}"
        if self.adapter.pooled:
            why += f". {NOT_IN_GPTQ[0].upper()}{NOT_IN_GPTQ[1:]}"
        for part, shape in expected.items():
            self._check(stored, part, found, shape, why)
        return LowRank(
            a=found[a],
            b=found[b],
            rank=rank,
            scale=self.adapter.module_scale(name),
            magnitude=found.get("magnitude", ""),
            bias=found.get("bias", ""),
            experts=experts,
            # PEFT subtracts nothing from an embedding table. For a head, the file may have the weight after
            # the subtraction.
            initial="" if table or "weight" in found else self.adapter.initial,
        )

    def _check_kind(self, slot: str, found: dict[str, str]) -> None:
        """Raises :class:`ConfigError` for a kind of adapter that PEFT or gemlet does not support on this
        matrix."""
        kind, adapter = kind_of(slot), self.adapter
        # For a tied output head, PEFT also changes the embedding table by its subtraction. gemlet supports
        # only files that have the weight after the subtraction, as they usually do.
        tied_head = kind == "lm_head" and self._is_one() and "weight" not in found
        not_initial = kind in EXPERTS or tied_head
        wrong = f"init_lora_weights is {show(adapter.initial)}" if adapter.initial and not_initial else ""
        if adapter.dora and kind in EXPERTS:
            wrong = "use_dora is true"
        elif adapter.dora and kind in TABLES and ("weight" in found or "tokens" in found):
            if "tokens" in found or adapter.saves(kind):
                wrong = "use_dora is true, and the adapter also replaces rows,"
        elif adapter.bias and kind in (*EXPERTS, *COEFFICIENTS, *TABLES):
            wrong = "lora_bias is true"
        if wrong:
            raise ConfigError(
                f"{adapter.where}: {wrong} for {self.modules[slot]}, which gemlet does not compute; train "
                "the adapter without it, or merge it with PEFT's merge_and_unload() if PEFT can"
            )

    def _own_rows(self, found: _Found) -> dict[str, OwnRows]:
        """slot -> the tensor that replaces the weight or some of its rows, for tables, the head and other
        modules."""
        vocab, hidden = self.shapes["embed_tokens"]
        saved = {slot for slot in ENDS if self.adapter.saves(slot)}
        tokens = dict(self.adapter.tokens)
        one = self.config.tie_word_embeddings and not self.config.bidirectional  # the head is the table
        self._check_tied_tokens(found)
        if one and tokens.get("lm_head") == tokens.get("embed_tokens"):
            tokens.pop("lm_head", None)  # PEFT stores these rows only once
        rows: dict[str, OwnRows] = {}
        for slot in ENDS if "lm_head" in self.modules else ENDS[:1]:
            parts = found.get(slot, {})
            follows = slot == "lm_head" and one and self.adapter.tied
            if "weight" in parts or (slot in saved and not follows):
                self._check(
                    self.stored[slot],
                    "weight",
                    parts,
                    (vocab, hidden),
                    f"the vocabulary has {vocab} tokens. If it was enlarged for the training, merge the "
                    "adapter with PEFT's merge_and_unload() and load the result",
                )
                rows[slot] = OwnRows(parts["weight"])
            if "tokens" in parts or slot in tokens:
                rows[slot] = self._own_tokens(slot, parts, () if slot in rows else tokens.get(slot, ()))
        if one and len(rows) == 2 and not (rows["embed_tokens"].ids or rows["lm_head"].ids):
            tensors = rows["embed_tokens"].tensor, rows["lm_head"].tensor
            if self.checkpoint.same_values(*tensors):
                rows["lm_head"] = rows["embed_tokens"]
        if one and len(rows) == 1:
            slot, own = next(iter(rows.items()))
            other = ENDS[1 - ENDS.index(slot)]
            shared = slot not in saved and not own.ids  # PEFT saved the tied weight because a LoRA changes it
            if shared or (other == "lm_head" and (own.ids or self.adapter.tied)):
                rows[other] = own
        parts = found.get(PER_LAYER_TABLE, {})
        if "tokens" in parts or PER_LAYER_TABLE in tokens:
            rows[PER_LAYER_TABLE] = self._own_tokens(PER_LAYER_TABLE, parts, tokens.get(PER_LAYER_TABLE, ()))
        return rows | self._own_modules(found)

    def _own_tokens(self, slot: str, parts: dict[str, str], ids: tuple[int, ...]) -> OwnRows:
        """The rows of the tokens ``ids`` that replace those of the weight ``slot``."""
        if slot not in self.modules:
            raise ConfigError(
                f"{self.adapter.where}: has tokens of {slot}, which this {self.config.family} model does not "
                f"have{self.suffix}"
            )
        if not ids:
            raise TensorError(
                f"{self.where}: unexpected tensor {show(parts.get('tokens', slot))}: "
                f"trainable_token_indices in {CONFIG_FILE} has no tokens for it, or the adapter has "
                "all rows of this matrix"
            )
        rows, width = self.shapes[slot]
        if max(ids) >= rows:
            raise ConfigError(
                f"{self.adapter.where}: trainable_token_indices has {max(ids)}; expected tokens below {rows}"
            )
        why = f"trainable_token_indices in {CONFIG_FILE}"
        self._check(self.stored[slot], "tokens", parts, (len(ids), width), why)
        return OwnRows(parts["tokens"], ids)

    def _own_modules(self, found: _Found) -> dict[str, OwnRows]:
        """slot -> the tensor that replaces the weight of another module. As in PEFT, a name in
        ``modules_to_save`` means every module whose name ends with this name, and all modules inside such a
        module."""
        rows = {}
        for module, slot in self.whole.items():
            parts = module.split(".")
            around = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            named = self.adapter.saved and any(f".{name}".endswith(self.adapter.saved) for name in around)
            own = found.get(slot, {})
            if not named and "weight" not in own:
                continue
            if other := next((tensor for part, tensor in own.items() if part != "weight"), ""):
                whole = own.get("weight", f"{_OUTER}{module}.weight")
                raise TensorError(
                    f"{self.where}: unexpected tensor {show(other)} beside {show(whole)}: gemlet "
                    "replaces a module or adds to it, not both; merge the adapter with PEFT's "
                    "merge_and_unload() and load the result"
                )
            self._check(module, "weight", own, self.shapes[slot], "the module's own")
            rows[slot] = OwnRows(own["weight"], offset=self.offsets[slot])
        return rows

    def _check_tied_tokens(self, found: _Found) -> None:
        """Drops the second copy of the rows that TRAINABLE_TOKENS stores for a tied output head. Raises
        :class:`TensorError` if the copies differ."""
        table, head = (found.get(slot, {}).get("tokens") for slot in ENDS)
        if not (self._is_one() and table and head) or "lm_head" in self.adapter.tokens:
            return
        if not self.checkpoint.same_values(table, head):
            raise TensorError(
                f"{self.where}: tensors {show(table)} and {show(head)} differ, but the output head of this "
                f"model is its embedding table{self.suffix}"
            )
        del found["lm_head"]["tokens"]

    def _check(self, stored: str, part: str, found: dict[str, str], shape: tuple[int, ...], why: str) -> None:
        if part not in found:
            raise TensorError(
                f"{self.where}: tensor {show(f'{_OUTER}{stored}.{_NAMES[part]}')} is missing; "
                f"{CONFIG_FILE} names its module"
            )
        got = self.checkpoint.tensors[found[part]].shape
        flat = got
        if part == "magnitude":
            flat = (prod(got),)
        elif len(got) > 2 and part in ("A", "B"):  # the matrix of a convolution
            flat = (got[0], prod(got[1:]))
        if flat != shape:
            raise TensorError(
                f"{self.where}: tensor {show(found[part])} has shape {list(got)}; expected {list(shape)} in "
                f"this model: {why}{self.suffix}"
            )

    def _find_prefixes(self) -> tuple[str, str]:
        """The prefix of the names of the trunk's modules in the adapter's file, and that of the head. They
        depend on the class of the model on which the adapter was trained."""
        trunk: str | None = None
        head: str | None = None
        for tensor in self.checkpoint.tensors:
            module, part = _split(tensor)
            prefix, inner = split_prefix(module)
            if part and trunk is None and inner.partition(".")[0] in _TRUNK:
                trunk = prefix
            if part and head is None and inner == "lm_head":
                head = prefix
        if (
            trunk is None
            and head is None
            and not any(is_tower(_split(tensor)[0], self.config.family) for tensor in self.checkpoint.tensors)
        ):
            some = f", got {show(next(iter(self.checkpoint.tensors)))}" if self.checkpoint.tensors else ""
            raise TensorError(
                f"{self.where}: has no tensors for the layers of a text model: expected one of "
                f"'{_OUTER}model.layers.N', '{_OUTER}model.language_model.layers.N' or a similar name{some}"
                f"{self.suffix}"
            )
        return "model." if trunk is None else trunk, head or ""

    def _is_one(self) -> bool:
        """Whether the output head is the embedding table in the model."""
        return self.config.tie_word_embeddings and not self.config.bidirectional

    def _is_target(self, slot: str) -> bool:
        module = self.modules[slot]
        if kind_of(slot) in EXPERTS:
            return self.adapter.targets_parameter(module)
        linear = slot not in (*ENDS, *TABLES)
        if (self.adapter.all_linear and not linear) or (slot in ENDS and self.adapter.saves(slot)):
            return False
        if slot == "lm_head" and self.adapter.tied and self._is_one() and self._is_target("embed_tokens"):
            return True  # PEFT then adapts both
        layer = int(slot.split(".")[1]) if slot.startswith("layers.") else None
        if linear and self._has_target_weight(module):
            return True
        return self.adapter.targets_module(module, f"{self.prefix}layers", layer)

    def _has_target_weight(self, module: str) -> bool:
        """Whether the adapter names the weight of a linear module instead of the module."""
        return self.adapter.targets_parameter(f"{module}.weight")


def _split(tensor: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and which part of the module it is; "" for an unknown part."""
    plain = without_wrappers(tensor)
    module = plain.removeprefix(_OUTER)
    match = _PARTS.fullmatch(module) if module != plain else None
    if match is None:
        return module, ""
    parts = match.groupdict()
    if parts.pop("own_bias"):  # the bias of the module itself, not of lora_B
        return parts["module"], "own_bias"
    return parts.pop("module"), next(part for part in parts.values() if part)
