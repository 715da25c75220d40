"""Writes tests/golden/shieldgemma2 with transformers: a tiny ShieldGemma 2, and how it judges an image.

    pip install torch==2.13.0 transformers==5.24.0 safetensors pillow jinja2
    python tests/golden/make_shieldgemma2.py shieldgemma-2-4b-it.jinja

golden.safetensors has:

    levels [H, W, 3] uint8        the image, in the size that the tower takes
    ids.N [T] int64               a prompt, placeholders included
    probabilities.N [2]           of "Yes" and of "No"

prompts.json has conversations and the chat template's texts for them. The template is published in
transformers' converter, and is not part of this repository."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.variants_vision import VISION_VARIANTS  # noqa: E402

FOLDER = HERE / "shieldgemma2"
SHA256 = "e3789259ff0687d9da416affb9baf56d0ad525d7f7f3ed18d18e19b64dd8d51a"
VERDICTS = {"yes_token_index": 17, "no_token_index": 23}
POLICIES = ("No cats.", " Two\n lines <end_of_turn> ", "")


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    noise = torch.randn(shape)
    if name.endswith("bias") or "position_embedding" in name:
        return 0.3 * noise
    if len(shape) == 1:
        return 0.3 + 0.3 * noise
    return noise * 1.3 / int(np.prod(shape[1:])) ** 0.5


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    template = Path(sys.argv[1]).read_text(encoding="utf-8")
    found = hashlib.sha256(template.strip().encode()).hexdigest()
    assert found == SHA256, found
    write_prompts(template)
    (variant,) = (one for one in VISION_VARIANTS if one.name == "gemma3")
    config = {**variant.config, "architectures": ["ShieldGemma2ForImageClassification"]}
    config |= {"model_type": "shieldgemma2", "dtype": "float32", **VERDICTS}
    config.pop("torch_dtype")
    config["text_config"] = {**config["text_config"], "num_hidden_layers": 3}
    write_json(FOLDER / "config.json", config)
    write_json(FOLDER / "preprocessor_config.json", variant.preprocessor)
    torch.manual_seed(5)
    loaded = transformers.AutoConfig.from_pretrained(FOLDER, attn_implementation="eager")
    model = transformers.ShieldGemma2ForImageClassification(loaded).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.copy_(draw(name, weight.shape))
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    write_json(FOLDER / "config.json", config)
    save_file(judged(model, config), FOLDER / "golden.safetensors", metadata={"format": "pt"})


def judged(model: Any, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(6)
    size = config["vision_config"]["image_size"]
    levels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels = torch.from_numpy((levels.astype(np.float32) - 127.5) / 127.5).permute(2, 0, 1)[None]
    image = [config["boi_token_index"]]
    image += [config["image_token_index"]] * config["mm_tokens_per_image"] + [config["eoi_token_index"]]
    out: dict[str, torch.Tensor] = {"levels": torch.from_numpy(levels)}
    for index, length in enumerate((3, 20, 45)):
        text = random.integers(3, 140, length).tolist()
        ids = torch.tensor([[2, 105, *image, *text]])
        types = (ids == config["image_token_index"]).long()
        with torch.no_grad():
            result = model(input_ids=ids, pixel_values=pixels, token_type_ids=types)
        out |= {f"ids.{index}": ids[0], f"probabilities.{index}": result.probabilities[0]}
        print(index, result.probabilities[0].tolist())
    return out


def write_prompts(template: str) -> None:
    rendering = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    cases = []
    for policy in POLICIES:
        content = [{"type": "image"}, {"type": "text", "text": policy}]
        text = rendering.render(bos_token="<bos>", messages=[{"role": "user", "content": content}])
        cases.append({"policy": policy, "text": text})
    write_json(
        FOLDER / "prompts.json",
        {"sha256": hashlib.sha256(template.strip().encode()).hexdigest(), "cases": cases},
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
