"""Writes tests/golden/quantized with transformers: checkpoints in the forms of Google's quantized ones.

    pip install torch==2.13.0 transformers==5.24.0 compressed-tensors==0.20.1 loguru safetensors
    python tests/golden/make_quantized.py

`gemma` is a Gemma 4 E2B with weights of 2, 4 and 8 bits and inputs and outputs rounded with fixed scales
(quant_method "gemma"), `gemma-plain` the same with a plain embedding, some scales of zero and a folder in
bfloat16. `w4a16` has weights of 4 bits with a scale for 32 (quant_method "compressed-tensors"). The scales of
inputs and outputs are the largest magnitudes in a pass with random ids, as training would find them.

golden.safetensors: prompts `ids.N` [T] int64, their `logits.N` [T, V] float32 and `greedy.N` [G] int64, which
are computed without a cache. If a number is half-way between two integers when it is rounded, another order
of sums would round it the other way, and the logits would change by a tenth. So prompts are drawn until no
number of a prompt's pass is closer to such a place than MARGIN. The greedy text ends before the first choice
that leads by less than LEAD."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations import gemma_quant

HERE = Path(__file__).parent
TRANSFORMERS = "5.24.0"
MARGIN = 2e-5  # the least distance from a rounding border, in steps
LEAD = 0.3
PROMPT, PROMPTS, GREEDY = 5, 3, 8
HIDDEN, VOCAB, LAYERS, SHARED, OWN = 64, 160, 5, 2, 8

TEXT = {
    "model_type": "gemma4_text",
    "hidden_size": HIDDEN,
    "hidden_size_per_layer_input": OWN,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_kv_shared_layers": SHARED,
    "layer_types": [
        *("sliding_attention", "sliding_attention", "full_attention"),
        *("sliding_attention", "full_attention"),
    ],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "max_position_embeddings": 4096,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "enable_moe_block": False,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA_BITS = {
    r"layers\.[34]\.mlp": {"num_bits": 2},
    "lm_head": {"num_bits": 2},
    r"embed_tokens$": {"num_bits": 2},
    "per_layer_input_gate|per_layer_projection|per_layer_model_projection": {"num_bits": 8},
}


def config_of(dtype: str, tied: bool, quantization: dict[str, Any] | None) -> dict[str, Any]:
    text = TEXT | {"dtype": dtype, "tie_word_embeddings": tied}
    raw = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": dtype,
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": None,
        "audio_config": None,
    }
    return raw if quantization is None else raw | {"quantization_config": quantization}


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    noise = torch.randn(shape)
    if name.endswith("layer_scalar"):
        return 0.9 + 0.1 * noise.clamp(-2, 2)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    gain = 1.2 if "embed_tokens" in name else 4.0 if "lm_head" in name else 1.3
    return noise * gain / shape[-1] ** 0.5


def float_model(dtype: str, tied: bool) -> Any:
    config = transformers.Gemma4Config(**{k: v for k, v in config_of(dtype, tied, None).items()})
    model = transformers.Gemma4ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.copy_(draw(name, weight.shape))
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("layer_scalar"):
                buffer.copy_(draw(name, buffer.shape))
    return model.float().eval()


def stored(model: Any) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def ranges_of(model: Any) -> dict[str, tuple[float, float]]:
    """The largest magnitude of the inputs and of the outputs of every linear module."""
    found: dict[str, tuple[float, float]] = {}

    def hook(name: str) -> Any:
        def keep(_module: Any, inputs: Any, output: Any) -> None:
            a, b = found.get(name, (0.0, 0.0))
            found[name] = max(a, inputs[0].abs().max().item()), max(b, output.abs().max().item())

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    model(input_ids=torch.randint(3, VOCAB, (1, 40)))
    for handle in handles:
        handle.remove()
    return found


def packed(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers of `weight` [rows, columns] in the form of the file, and the scale of each row."""
    most = {2: 1.6, 4: 7.5, 8: 127}[bits]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / most
    q = torch.clamp(torch.round(weight / scale), low, high).to(torch.int32)
    if bits == 8:
        return q.to(torch.int8), scale
    shifted, per_byte = q - low, 8 // bits
    byte = torch.zeros((len(q), q.shape[1] // per_byte), dtype=torch.int32)
    for j in range(per_byte):
        byte |= shifted[:, j::per_byte] << (bits * j)
    return byte.to(torch.uint8), scale


def write_gemma(folder: Path, *, plain: bool) -> None:
    dtype = "bfloat16" if plain else "float32"
    patterns = {key: value for key, value in GEMMA_BITS.items() if not (plain and "embed" in key)}
    quantization = {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": not plain,
        "module_quant_configs": patterns,
        "modules_to_not_convert": [],
    }
    raw = config_of(dtype, False, quantization)
    model = float_model(dtype, False)
    ranges = ranges_of(model)
    tensors: dict[str, torch.Tensor] = {}

    def bits_of(module: str) -> int:
        found = re.search("|".join(f"(?:{pattern})" for pattern in patterns), module)
        if found is None:
            return 4
        return next(value["num_bits"] for key, value in patterns.items() if re.match(key, found.group()))

    for name, tensor in stored(model).items():
        module = name.removesuffix(".weight")
        if module in ranges:
            weight, scale = packed(tensor, bits_of(module))
            tensors[name], tensors[f"{module}.weight_scale"] = weight, scale
            zero = plain and module.endswith(("o_proj", "gate_proj"))
            for kind, largest in zip(("input", "output"), ranges[module], strict=True):
                step = 0.0 if zero and kind == "output" else largest / 127 * 0.9
                if plain and module.endswith("k_proj"):
                    step = 0.0
                tensors[f"{module}.{kind}_activation_scale"] = torch.tensor(step)
        elif "embed_tokens" in module and not plain:
            weight, scale = packed(tensor, bits_of(module))
            tensors[f"{module}.embedding_quantized"], tensors[f"{module}.embedding_scale"] = weight, scale
        else:
            tensors[name] = tensor.to(getattr(torch, dtype))
    layer = "model.language_model.layers.0.self_attn"
    tensors |= {f"{layer}.{kind}_cache_scale": torch.tensor(0.1) for kind in "kv"}  # nothing reads it
    save_folder(folder, raw, tensors)


def write_w4a16(folder: Path) -> None:
    raw = config_of(
        "bfloat16",
        True,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": 32,
                    },
                }
            },
            "ignore": ["lm_head", "re:.*per_layer.*"],
        },
    )
    model = float_model("bfloat16", True)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in stored(model).items():
        module = name.removesuffix(".weight")
        if name == "lm_head.weight":
            continue
        if not module.endswith("_proj") or "per_layer" in module:
            tensors[name] = tensor.to(torch.bfloat16)
            continue
        rows, columns = tensor.shape
        groups = tensor.reshape(rows, columns // 32, 32)
        scale = (groups.abs().amax(dim=2) / 7.5).to(torch.bfloat16)
        q = torch.clamp(torch.round(groups / scale.float()[..., None]), -8, 7).reshape(rows, columns)
        words = torch.zeros((rows, columns // 8), dtype=torch.int64)
        for k in range(8):
            words |= (q[:, k::8].to(torch.int64) + 8) << (4 * k)
        tensors[f"{module}.weight_packed"] = torch.where(words >= 1 << 31, words - (1 << 32), words).to(
            torch.int32
        )
        tensors[f"{module}.weight_scale"] = scale
        tensors[f"{module}.weight_shape"] = torch.tensor([rows, columns])
    save_folder(folder, raw, tensors)


def save_folder(folder: Path, raw: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


class Nearest:
    """The smallest distance of a number from the middle between two integers when it was rounded."""

    def __init__(self) -> None:
        self.margin = 1.0
        self._round = gemma_quant.apply_srq

    def apply_srq(self, x: torch.Tensor, scale: torch.Tensor, bits: int = 8) -> torch.Tensor:
        if scale.item() != 0:
            steps = (x.double() / scale.double()).abs()
            between = (steps - steps.floor() - 0.5).abs()[steps < 127]
            if between.numel():
                self.margin = min(self.margin, between.min().item())
        return self._round(x, scale, bits)


def write_golden(folder: Path) -> bool:
    """Whether clear prompts were found."""
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    nearest = Nearest()
    gemma_quant.apply_srq = nearest.apply_srq
    golden: dict[str, torch.Tensor] = {}
    found = draws = 0
    while found < PROMPTS:
        draws += 1
        if draws > 100:
            return False
        ids = torch.cat([torch.tensor([2]), torch.randint(3, VOCAB, (PROMPT - 1,))])
        nearest.margin = 1.0
        logits = model(input_ids=ids[None]).logits[0]
        if nearest.margin < MARGIN:
            continue
        text = ids
        for _ in range(GREEDY):
            last = model(input_ids=text[None]).logits[0, -1]
            best = last.topk(2)
            if (best.values[0] - best.values[1]).item() < LEAD:
                break
            text = torch.cat([text, best.indices[:1]])
        if len(text) < PROMPT + 3:
            continue
        golden |= {f"ids.{found}": ids, f"logits.{found}": logits.clone(), f"greedy.{found}": text[PROMPT:]}
        found += 1
    save_file({n: t.contiguous() for n, t in golden.items()}, folder / "golden.safetensors")
    top = max(golden[f"logits.{i}"].abs().max().item() for i in range(PROMPTS))
    print(f"{folder.name:12} {draws:4} draws, largest logit {top:.2f}", flush=True)
    return True


def main() -> None:
    if transformers.__version__ != TRANSFORMERS:
        sys.exit(f"goldens are made with transformers {TRANSFORMERS}, this is {transformers.__version__}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    at = HERE / "quantized"
    with torch.inference_mode():
        for name in ("gemma", "gemma-plain", "w4a16"):
            for seed in range(17, 100):  # with some weights, even the token <bos> comes too close
                torch.manual_seed(seed)
                if name == "w4a16":
                    write_w4a16(at / name)
                else:
                    write_gemma(at / name, plain=name == "gemma-plain")
                if write_golden(at / name):
                    break


if __name__ == "__main__":
    main()
