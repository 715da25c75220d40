"""Writes the golden checkpoint of EmbeddingGemma 2, tests/golden/embeddinggemma2, with transformers.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.24.0 safetensors
    python tests/golden/make_embeddinggemma2.py

The folder has the files of a published one, with random weights in bfloat16, and golden.safetensors, where N
is a prompt of variants_embedding.py and I one of its images or sounds:

    ids.N [T] int64             the prompt, placeholders included
    image.N.I [H, W, 3] uint8   an image
    frame.N.I [H, W, 3] uint8   a frame of its video
    seen.K [F] int64            which frames of the K-th of EMBEDDINGGEMMA2_VIDEOS are seen
    wave.N.I [samples]          a sound, mono at 16 kHz
    mean.N [D]                  the mean of the model's output over all tokens
    embedding.N [D]             the same at length 1

Everything is computed in float32 with eager attention."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.embedding_gemma2.video_processing_embedding_gemma2 import (
    EmbeddingGemma2VideoProcessor,
)
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.video_utils import VideoMetadata

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden import make_audio, make_vision  # noqa: E402
from golden.make_vision_gemma4 import VIDEO_BUDGET, prepared  # noqa: E402
from golden.variants_embedding import (  # noqa: E402
    EMBEDDINGGEMMA2,
    EMBEDDINGGEMMA2_PROCESSOR,
    EMBEDDINGGEMMA2_PROMPTS,
    EMBEDDINGGEMMA2_VIDEOS,
    EmbeddingPrompt,
)

FOLDER = HERE / "embeddinggemma2"
MODULES = (("", "base.modules.transformer.Transformer"),)
MODULES += (("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),)
MODULES += (("2_Normalize", "base.modules.normalize.Normalize"),)
PROMPTS = {"SearchQuery": "task: search result | query: ", "Document": "title: none | text: "}


def write_folder() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(2)
    pooling = {"embedding_dimension": 40, "include_prompt": True, "pooling_mode": "mean"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (path, kind) in enumerate(MODULES)
    ]
    files: dict[str, Any] = {
        "config.json": EMBEDDINGGEMMA2,
        "processor_config.json": EMBEDDINGGEMMA2_PROCESSOR,
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "config_sentence_transformers.json": {"default_prompt_name": None, "prompts": PROMPTS},
    }
    for name, content in files.items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(FOLDER))
    tensors = {}
    for name, weight in sorted(model.state_dict().items()):
        draw = make_vision.draw if "vision" in name else make_audio.draw
        tensors[name] = draw(name, weight.shape).bfloat16().contiguous()
    save_file(tensors, FOLDER / "model.safetensors", metadata={"format": "pt"})


def seen(count: int, rate: float) -> list[int]:
    """The frames of a video that the reference's processor chooses."""
    metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
    processor = EmbeddingGemma2VideoProcessor()
    options = {name: getattr(processor, name) for name in ("fps", "max_frames", "overflow_strategy")}
    return [int(index) for index in processor.sample_frames(metadata, **options)]


def results(model: Any, index: int, prompt: EmbeddingPrompt) -> dict[str, torch.Tensor]:
    config = EMBEDDINGGEMMA2
    generator = np.random.default_rng(zlib.crc32(f"embeddinggemma2 {index}".encode()))
    images = [make_vision.picture(generator, *size) for size in prompt.images]
    frames: list[Any] = []
    if prompt.video is not None:
        count, height, width, rate = prompt.video
        frames = [make_vision.picture(generator, height, width) for _ in range(count)]
    sounds = [make_audio.sound(generator, count) for count in prompt.sounds]
    inputs: dict[str, Any] = {}
    blocks: list[list[int]] = []
    if images:
        found, _ = prepared({"model_type": "gemma4"}, EMBEDDINGGEMMA2_PROCESSOR, images)
        for count in found["num_soft_tokens_per_image"]:
            places = [config["image_token_id"]] * int(count)
            blocks.append([config["boi_token_id"], *places, config["eoi_token_id"]])
        inputs |= {name: found[name] for name in ("pixel_values", "image_position_ids")}
    if frames:
        found, _ = prepared(
            {"model_type": "gemma4"},
            EMBEDDINGGEMMA2_PROCESSOR,
            [frames[i] for i in seen(count, rate)],
            max_soft_tokens=VIDEO_BUDGET,
        )
        block: list[int] = []
        for tokens in found["num_soft_tokens_per_image"]:
            places = [config["video_token_id"]] * int(tokens)
            block += [config["boi_token_id"], *places, config["eoi_token_id"]]
        blocks.append(block)
        inputs["num_frames_per_video"] = torch.tensor([len(found["pixel_values"])])
        inputs["pixel_values_videos"] = found["pixel_values"]
        inputs["video_position_ids"] = found["image_position_ids"]
    if sounds:
        features = Gemma4AudioFeatureExtractor()(sounds, return_tensors="pt")
        inputs |= {name: features[name] for name in ("input_features", "input_features_mask")}
        with torch.no_grad():
            heard = model.get_audio_features(
                inputs["input_features"], inputs["input_features_mask"], return_dict=True
            )
        for mask in heard.attention_mask:
            places = [config["audio_token_id"]] * int(mask.sum())
            blocks.append([config["boa_token_id"], *places, config["eoa_token_index"]])
    ids = [2, *generator.integers(3, 100, prompt.text).tolist()]
    for block in blocks:
        ids += [*block, *generator.integers(3, 100, prompt.text).tolist()]
    ids.append(1)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), **inputs).last_hidden_state[0]
    mean = hidden.mean(0)
    return {
        f"ids.{index}": torch.tensor(ids),
        **{f"image.{index}.{i}": torch.from_numpy(image) for i, image in enumerate(images)},
        **{f"frame.{index}.{i}": torch.from_numpy(frame) for i, frame in enumerate(frames)},
        **{f"wave.{index}.{i}": torch.from_numpy(wave) for i, wave in enumerate(sounds)},
        f"mean.{index}": mean,
        f"embedding.{index}": mean / mean.norm(),
    }


def main() -> None:
    torch.set_num_threads(1)
    write_folder()
    model, report = transformers.AutoModel.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(report.values()):
        raise SystemExit(f"transformers did not load it cleanly: {report}")
    golden = {f"seen.{i}": torch.tensor(seen(*one)) for i, one in enumerate(EMBEDDINGGEMMA2_VIDEOS)}
    for index, prompt in enumerate(EMBEDDINGGEMMA2_PROMPTS):
        golden |= results(model.eval(), index, prompt)
    save_file({name: value.contiguous() for name, value in golden.items()}, FOLDER / "golden.safetensors")
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    print(f"{sum(path.stat().st_size for path in files)} bytes")


if __name__ == "__main__":
    main()
