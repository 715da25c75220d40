"""Writes the golden checkpoints with encoders for sound, tests/golden/audio, with transformers.

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 safetensors
    python tests/golden/make_audio.py              # all of them
    python tests/golden/make_audio.py gemma4       # some of them

Each folder has config.json and the tensors, and golden.safetensors, where N is a prompt and I one of its
sounds:

    ids.N [T] int64             the prompt, placeholders included
    wave.N.I [samples]          the sound, mono at 16 kHz
    features.N.I [frames, 128]  its log-mel spectra
    valid.N.I [1] int64         how many of the frames count
    encoded.N.I [n, d]          the encoder's output
    soft.N.I [n, D]             soft tokens
    logits.N [T, V]
    greedy.N [16] int64         what greedy decoding appends

Everything is computed in float32 with eager attention. Gemma 3n's tower for images exists only in one large
size, so it is left out; ids of the tables for images and sounds are in its prompts."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import (
    Gemma4UnifiedAudioFeatureExtractor,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.variants_audio import AUDIO_VARIANTS, AudioVariant  # noqa: E402

GREEDY = 16
LEAST_IDS = 5  # the least number of different tokens in a greedy text, so that it does not repeat one token
LEAST_LEAD = 0.02  # the chosen logit leads the next one by so much that rounding does not decide
EXTRACTORS: dict[str, Any] = {
    "gemma3n": Gemma3nAudioFeatureExtractor,
    "gemma4": Gemma4AudioFeatureExtractor,
    "gemma4_unified": lambda: Gemma4UnifiedAudioFeatureExtractor(80, audio_samples_per_token=80),
}


class AutoModelWithoutImages(modeling_gemma3n.AutoModel):  # type: ignore[misc]
    """Leaves the tower for images out of Gemma 3n."""

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any:
        if type(config).__name__ == "Gemma3nVisionConfig":
            return torch.nn.Identity()
        return transformers.AutoModel.from_config(config, **options)


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    """A random weight. Its size keeps every term visible in the logits."""
    noise = torch.randn(shape)
    if name.endswith(("input_min", "output_min")):
        return -1.2 - 0.5 * noise.abs()
    if name.endswith(("input_max", "output_max")):
        return 1.2 + 0.5 * noise.abs()
    if name.endswith("layer_scalar"):
        return 0.9 + 0.2 * noise.clamp(-2, 2)
    if name.endswith("correct_output_scale"):
        return 1.0 + 0.4 * noise
    if name.endswith("per_dim_scale"):
        return 0.5 * noise
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.6 + 0.3 * noise
    if "norm" in name.rsplit(".", 2)[-2] and len(shape) == 1:
        return 1.2 + 0.4 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    if name.endswith("modality_router.weight"):
        return noise * fan_in**0.5
    if name.endswith("_coefs.weight"):
        return noise * 0.15
    if name.endswith("embed_tokens_per_layer.weight"):
        return noise * 6**-0.5
    if name.endswith(("relative_k_proj.weight", "pos_proj.weight")):
        return noise * 0.5 / fan_in**0.5
    return noise * (1.2 if "embed_tokens" in name else 1.5) / fan_in**0.5


def sound(generator: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Tones that rise and fall, and noise."""
    time = np.arange(count) / 16000
    wave = np.zeros(count)
    for _ in range(4):
        pitch, speed, phase = generator.uniform(100, 3000), generator.uniform(1, 9), generator.uniform(0, 6)
        wave += 0.1 * np.sin(2 * np.pi * pitch * time + phase) * np.sin(2 * np.pi * speed * time)
    return (wave + generator.normal(0, 0.03, count)).astype(np.float32)


def build(config: Any) -> Any:
    return transformers.AutoModelForMultimodalLM.from_config(config, attn_implementation="eager").float()


def write_folder(variant: AudioVariant, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    torch.manual_seed(seed)
    (folder / "config.json").write_text(json.dumps(variant.config, indent=2, sort_keys=True) + "\n")
    model = build(transformers.AutoConfig.from_pretrained(folder))
    saved = model.state_dict()
    tensors = {}
    for name in sorted(saved):
        if name != "lm_head.weight":
            tensors[name] = draw(name, saved[name].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def open_official(folder: Path) -> Any:
    model, report = transformers.AutoModelForMultimodalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(report.values()):
        raise SystemExit(f"{folder}: transformers did not load it cleanly: {report}")
    return model.eval()


class CloseChoiceError(Exception):
    """Rounding could decide a greedy choice, so other weights are drawn."""


def results(variant: AudioVariant, model: Any, index: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    config = variant.config
    generator = np.random.default_rng(zlib.crc32(f"{variant.name} {index}".encode()))
    waves = [sound(generator, length) for length in lengths]
    family = config["model_type"]
    prepared = EXTRACTORS[family]()(waves, return_tensors="pt")
    features, mask = prepared["input_features"], prepared["input_features_mask"]
    golden: dict[str, Any] = {}
    for i, wave in enumerate(waves):
        alone = EXTRACTORS[family]()([wave], return_tensors="pt")
        golden |= {
            f"wave.{index}.{i}": torch.from_numpy(wave),
            f"features.{index}.{i}": alone["input_features"][0],
            f"valid.{index}.{i}": alone["input_features_mask"][0].sum()[None],
        }
    taken: dict[str, torch.Tensor] = {}
    inner = model.model
    hooks = []
    if getattr(inner, "audio_tower", None) is not None:
        hook = inner.audio_tower.register_forward_hook(
            lambda _m, _a, out: taken.__setitem__("encoded", out.last_hidden_state)
        )
        hooks.append(hook)
    hooks.append(
        inner.embed_audio.register_forward_hook(
            lambda _m, _a, options, out: (
                taken.__setitem__("soft", out) if options.get("input_ids") is None else None
            ),
            with_kwargs=True,
        )
    )
    counts = []
    with torch.no_grad():
        gemma4 = family != "gemma3n"
        made = inner.get_audio_features(features, mask if gemma4 else ~mask, return_dict=True)
        for i in range(len(waves)):
            valid = made.attention_mask[i] if gemma4 else ~made.audio_mel_mask[i]
            counts.append(int(valid.sum()))
            if "encoded" in taken:
                golden[f"encoded.{index}.{i}"] = taken["encoded"][i][valid]
            golden[f"soft.{index}.{i}"] = taken["soft"][i][valid]
    for hook in hooks:
        hook.remove()
    ids = [2, *generator.integers(3, 100, 4).tolist()]
    for count in counts:
        places = count if gemma4 else config["audio_soft_tokens_per_image"]
        end = config["eoa_token_index" if gemma4 else "eoa_token_id"]
        ids += [config["boa_token_id"], *[config["audio_token_id"]] * places, end]
        ids += generator.integers(3, 100, 2).tolist()
    if not gemma4:
        ids += [143, 147, 155, 7, 159, 9]  # ids of the tables for images and sounds

    def logits_of(tokens: list[int]) -> torch.Tensor:
        return model(
            input_ids=torch.tensor([tokens]),
            input_features=features,
            input_features_mask=mask,
            use_cache=False,
        ).logits[0]

    special = [config["audio_token_id"], config["image_token_id"]]
    special += [config["video_token_id"]] if gemma4 else range(140, 160)
    with torch.no_grad():
        logits = logits_of(ids)
        greedy: list[int] = []
        row = logits[-1].clone()
        for _ in range(GREEDY):
            row[special] = -torch.inf  # they are never written
            best = row.topk(2)
            if best.values[0] - best.values[1] < LEAST_LEAD:
                raise CloseChoiceError
            greedy.append(int(best.indices[0]))
            row = logits_of(ids + greedy)[-1].clone()
    golden |= {
        f"ids.{index}": torch.tensor(ids),
        f"logits.{index}": logits,
        f"greedy.{index}": torch.tensor(greedy),
    }
    return golden


def make(variant: AudioVariant) -> None:
    folder = HERE / "audio" / variant.name
    for seed in range(100):
        write_folder(variant, folder, zlib.crc32(variant.name.encode()) + seed)
        model = open_official(folder)
        try:
            golden: dict[str, Any] = {}
            for index, lengths in enumerate(variant.prompts):
                golden |= results(variant, model, index, lengths)
        except CloseChoiceError:
            continue
        if len(set(golden["greedy.0"].tolist())) < LEAST_IDS:
            continue
        save_file({name: value.contiguous() for name, value in golden.items()}, folder / "golden.safetensors")
        for file in folder.iterdir():
            file.chmod(0o644)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{variant.name}: seed {seed}, {size} bytes, {len(set(golden['greedy.0'].tolist()))} ids")
        return
    raise SystemExit(f"{variant.name}: every seed has a choice that rounding could decide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    modeling_gemma3n.AutoModel = AutoModelWithoutImages
    torch.set_num_threads(1)
    for variant in AUDIO_VARIANTS:
        if not names or variant.name in names:
            make(variant)


if __name__ == "__main__":
    main()
