"""Runs a golden folder with transformers and records the taps. For make_goldens.py; needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from .variants import Variant

GREEDY = 24
# Submodule of a decoder layer -> the tap of its output. A family may lack some submodules.
LAYER_TAPS = {"self_attn": "attention", "mlp": "mlp", "experts": "moe"}
# Parts of a file that the text-only class does not have.
SKIPPED = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")


def model_class(variant: Variant) -> Any:
    """The class of the checkpoint. Gemma 3n gets the text class, because its image tower has only one size
    (300M)."""
    name = variant.config["architectures"][0]
    return getattr(transformers, {"Gemma3nForConditionalGeneration": "Gemma3nForCausalLM"}.get(name, name))


def open_official(variant: Variant, folder: Path) -> Any:
    """The checkpoint, opened by transformers, which must use every tensor of the file."""
    model, report = model_class(variant).from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    unused = tuple(name.removeprefix("model.").removeprefix("language_model.") for name in variant.unused)
    report["unexpected_keys"] = {
        name
        for name in report["unexpected_keys"]
        if not name.endswith(unused) and not name.startswith(SKIPPED)
    }
    if any(report.values()):
        raise SystemExit(f"{variant.name}: transformers did not load it cleanly: {report}")
    return model.eval()


def text_stack(model: Any) -> Any:
    """The submodule that owns embed_tokens, layers and norm."""
    return next(m for m in model.modules() if hasattr(m, "embed_tokens") and hasattr(m, "layers"))


class Recording:
    """The taps of one forward call, and how close a router came to choosing other experts."""

    def __init__(self) -> None:
        self.taps: dict[str, torch.Tensor] = {}
        self.router_lead = float("inf")

    def keep(self, name: str) -> Callable[..., None]:
        """A hook that stores a module's output [1, T, d] (experts: [T, d]) as [T, d]."""

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self.taps[name] = (tensor if tensor.dim() == 2 else tensor[0]).detach().clone()

        return hook

    def keep_layer(self, at: str) -> Callable[..., None]:
        """A hook for a layer: [1, T, d], or in Gemma 3n [streams, 1, T, d] with the active stream first."""

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self.streams(f"{at}.output", f"{at}.stream", output)

        return hook

    def keep_streams_before(self, _module: Any, inputs: Any) -> None:
        if inputs[0].dim() == 4:
            self.streams(None, "stream", inputs[0])

    def streams(self, first: str | None, others: str, tensor: torch.Tensor) -> None:
        tensor = (tensor if tensor.dim() == 4 else tensor[None]).detach().clone()
        if first:
            self.taps[first] = tensor[0, 0]
        for k in range(1, len(tensor)):
            self.taps[f"{others}.{k}"] = tensor[k, 0]

    def watch_router(self, top: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            order = output[0].log().sort(dim=-1, descending=True).values
            self.router_lead = min(self.router_lead, (order[:, top - 1] - order[:, top]).min().item())

        return hook


@contextmanager
def recording(model: Any) -> Iterator[Recording]:
    """Collects the taps of the forward calls inside."""
    record, stack = Recording(), text_stack(model)
    handles = [
        stack.embed_tokens.register_forward_hook(record.keep("embed")),
        stack.norm.register_forward_hook(record.keep("final_norm")),
        stack.layers[0].register_forward_pre_hook(record.keep_streams_before),
    ]
    for index, layer in enumerate(stack.layers):
        for module, tap in LAYER_TAPS.items():
            if hasattr(layer, module):
                target = layer.get_submodule(module)
                handles.append(target.register_forward_hook(record.keep(f"layers.{index}.{tap}")))
        if hasattr(layer, "router"):
            top = stack.config.top_k_experts
            handles.append(layer.router.register_forward_hook(record.watch_router(top)))
        handles.append(layer.register_forward_hook(record.keep_layer(f"layers.{index}")))
    per_layer = getattr(stack, "hidden_size_per_layer_input", 0)
    if per_layer:
        project = stack.project_per_layer_inputs

        def projecting(*args: Any) -> torch.Tensor:  # a method and not a module, so it has no hook
            result = project(*args)
            record.taps["per_layer_inputs"] = result.detach()[0].flatten(1).clone()  # [T, L * P]
            return result

        stack.project_per_layer_inputs = projecting
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
        if per_layer:
            del stack.project_per_layer_inputs


def logits_of(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"logits": [T, V]} for ids [1, T], or {} for an embedding model."""
    result = model(input_ids=ids, use_cache=False)
    return {"logits": result.logits[0]} if hasattr(result, "logits") else {}


def random_ids(variant: Variant, model: Any) -> torch.Tensor:
    ids = torch.randint(4, text_stack(model).embed_tokens.num_embeddings, (1, variant.tokens))
    ids[0, 0] = 2
    return ids


def run_embedding(variant: Variant, model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The contents of an embedding model's golden.safetensors."""
    ids = random_ids(variant, model)
    with recording(model) as record:
        x = model(input_ids=ids, use_cache=False).last_hidden_state.mean(dim=1)
    for path in sorted(folder.glob("*_Dense/model.safetensors")):
        x = torch.nn.functional.linear(x, load_file(path)["linear.weight"])
    x = torch.nn.functional.normalize(x, p=2, dim=1)
    return golden_tensors(variant, {"ids": ids[0], "embedding": x[0]}, record.taps)


def golden_tensors(
    variant: Variant, golden: dict[str, torch.Tensor], taps: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    rows = slice(None) if variant.rows is None else torch.tensor(variant.rows)
    if variant.rows is not None:
        golden["rows"] = rows
    golden |= {name: tap[rows] for name, tap in taps.items()}
    return {name: tensor.clone().contiguous() for name, tensor in golden.items()}


def run(variant: Variant, model: Any) -> tuple[dict[str, torch.Tensor], float, float]:
    """The contents of golden.safetensors, and the smallest leads of two kinds: of a greedy choice over the
    next one, and of the last chosen expert over the next one, as a difference of logarithms."""
    ids = random_ids(variant, model)
    with recording(model) as record:
        logits = model(input_ids=ids, use_cache=False).logits[0]
        taps = record.taps | {"logits": logits}
        record.taps = {}
        lead, sequence = float("inf"), ids
        for _ in range(GREEDY):
            best = logits[-1].topk(2)
            lead = min(lead, (best.values[0] - best.values[1]).item())
            sequence = torch.cat([sequence, best.indices[:1][None]], dim=1)
            logits = model(input_ids=sequence, use_cache=False).logits[0]
    golden = {"ids": ids[0], "greedy": sequence[0, variant.tokens :]}
    golden = golden_tensors(variant, golden, taps)
    return golden, lead, record.router_lead


def noise_gain(model: Any, golden: dict[str, torch.Tensor], size: float = 1e-6) -> float:
    """The relative change of a tap or of the logits, divided by a random relative change of the weights.

    The result is the largest of these ratios. A tap's change is relative to its largest value. The function
    changes the model.
    """

    def taps() -> dict[str, torch.Tensor]:
        with recording(model) as record:
            logits = logits_of(model, golden["ids"][None])
        return record.taps | logits

    before = taps()
    weights = [weight.clone() for weight in model.parameters()]
    worst = 0.0
    for _ in range(4):
        for weight, original in zip(model.parameters(), weights, strict=True):
            weight.copy_(original * (1 + size * torch.randn(weight.shape)))
        for name, tap in taps().items():
            worst = max(worst, ((tap - before[name]).abs().max() / before[name].abs().max()).item() / size)
    return worst
